"""The range reader's parsing and checks, fed by hand."""

import asyncio
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smp_proto.errors import SmpError
from smpd.fetch.exchange import Answer, Exchange, Unspoken, Wanted

BODY = bytes(range(100))
WANTED = Wanted("x", 1000, "tag", 200, 100)
HEAD = (
    b'HTTP/1.1 206 Partial Content\r\nETag: "tag"\r\nContent-Range: bytes 200-299/1000\r\nContent-Length: 100\r\n\r\n'
)


def run(pieces: list[bytes], *, closed: bool = True) -> tuple[Answer, bytes, bool]:
    """Feed an exchange as the connection would; returns the answer, the slot and whether the connection is clean."""

    async def inside() -> tuple[Answer, bytes, bool]:
        into = bytearray(100)
        exchange = Exchange(WANTED, memoryview(into))
        for piece in pieces:
            data = piece
            while data and not exchange.done:
                if exchange.in_body:
                    count = min(len(exchange.room), len(data))
                    exchange.room[:count] = data[:count]
                    exchange.advance(count)
                    data = data[count:]
                else:
                    exchange.feed(data)
                    data = b""
        if closed:
            exchange.lost()
        return exchange.result(), bytes(into), exchange.clean

    return asyncio.run(inside())


def test_a_head_may_come_byte_by_byte() -> None:
    """Head and body split at every byte give what they give in one piece."""
    whole = HEAD + BODY
    answer, got, clean = run([whole[i : i + 1] for i in range(len(whole))])
    assert (answer.status, got, clean) == (206, BODY, True)
    assert (run([whole])[0].status, *run([whole])[1:]) == (206, BODY, True)


@given(st.lists(st.integers(0, len(HEAD) + 100), max_size=8))
def test_a_head_may_be_split_anywhere(cuts: list[int]) -> None:
    """Any split of an answer gives the same bytes."""
    whole = HEAD + BODY
    edges = [0, *sorted(cuts), len(whole)]
    _, got, clean = run([whole[a:b] for a, b in itertools.pairwise(edges)])
    assert (got, clean) == (BODY, True)


@given(st.integers(0, len(HEAD) + 99))
def test_a_cut_answer_is_an_error(cut: int) -> None:
    """An answer cut at any byte is never taken for a success."""
    with pytest.raises(SmpError) as caught:
        run([(HEAD + BODY)[:cut]])
    assert caught.value.retryable


@given(st.binary(max_size=400), st.integers(0, len(HEAD)), st.binary(max_size=20))
@example(b"", 0, b"")
def test_no_head_does_harm(noise: bytes, place: int, inserted: bytes) -> None:
    """Random bytes, and a right answer with bytes inserted, end in the range, a refusal or one of our errors."""
    for data in (noise, HEAD[:place] + inserted + HEAD[place:] + BODY):
        try:
            answer, got, _ = run([data])
        except (SmpError, Unspoken):
            continue
        if answer.wanted:
            assert len(got) == 100
            WANTED.check(answer)


def test_a_refusal_is_bounded() -> None:
    """A refusal's body is kept to 64 KiB, and its connection not kept if it is longer."""
    answer, _, clean = run([b"HTTP/1.1 500 Oh\r\n\r\n", b"x" * 50_000, b"x" * 50_000, b"x" * 50_000])
    assert (answer.status, clean) == (500, False)
    assert 64 << 10 < len(answer.body) <= 100_000


def test_what_is_not_framed_by_length_is_for_another_reader() -> None:
    """Chunked and close-delimited bodies are declined, not misread."""
    chunked = b"Transfer-Encoding: chunked"
    for framing in (chunked, chunked + b"\r\nContent-Length: 100", b"X: y"):
        with pytest.raises(Unspoken):
            run([HEAD.replace(b"Content-Length: 100", framing) + BODY])


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 2000), st.sampled_from([200, 206]))
def test_only_the_exact_range_passes(first: int, last: int, total: int, status: int) -> None:
    """Of all Content-Range values one passes; another total means that the object changed."""
    headers = {"etag": '"tag"', "content-range": f"bytes {first}-{last}/{total}"}
    if (first, last, total) == (200, 299, 1000):
        WANTED.check(Answer(status, headers))
        return
    with pytest.raises(SmpError) as caught:
        WANTED.check(Answer(status, headers))
    assert ("source_changed" if total != 1000 else "remote_failed") == caught.value.code


@given(st.text(max_size=60))
def test_no_content_range_does_harm(value: str) -> None:
    """Any text is checked without another error."""
    with pytest.raises(SmpError):
        WANTED.check(Answer(206, {"etag": '"tag"', "content-range": value}))
