"""The range reader's parsing and checks, fed by hand."""

import asyncio
import contextlib
import itertools
import socket

import anyio
import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smp_proto.errors import SmpError
from smpd.fetch.dialling import dial
from smpd.fetch.exchange import Answer, Exchange, Suffix, Unspoken, Wanted, parse_head

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


def test_a_connection_that_said_too_much_is_not_kept() -> None:
    """Bytes after the body, in the same piece, may be meant as the next answer."""
    answer, got, clean = run([HEAD + BODY + b"x"])
    assert (answer.status, got, clean) == (206, BODY, False)


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


FIELDS = [
    "Server: nginx", "Content-Length: 100", "content-length: 100", "Content-Length: 7", "Content-Length: 100, 100",
    "Content-Length: +1", "Content-Length:", "Transfer-Encoding: chunked", "Connection: keep-alive",
    "Connection: Keep-Alive", "Connection: close", "Connection: keep-alive, close", 'ETag: "tag"', "X:  a  b ",
    "X: \t a\t", " folded", "X : y", "X\x00: y", "X: \x00", "X: \x7f", "X: \xe9", ": y", "X", "", "X: a\rb", "X: a\nb: c",
]  # fmt: skip
LINES = ["HTTP/1.1 206 Partial Content", "HTTP/1.1 200", "HTTP/1.1 200 ", "HTTP/1.0 200 OK", "HTTP/1.1 2000 OK",
         "HTTP/1.1 200OK", "http/1.1 200 OK", "HTTP/1.1 204 No", "HTTP/1.1 100 C", "HTTP/1.1 200 \xe9", " HTTP/1.1 200 OK"]  # fmt: skip
EDIT = st.tuples(st.integers(0, 200), st.integers(0, 3), st.binary(max_size=3))


def as_h11(data: bytes) -> tuple[int, list[tuple[str, str]], bytes, bool] | None:
    """What h11 makes of a whole answer's head: status, fields, what is left, and whether the connection stays open."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(data)
    try:
        event = parser.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.Response):
        return None
    fields = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
    return event.status_code, fields, parser.trailing_data[0], parser.our_state is h11.DONE


@given(
    st.sampled_from(LINES),
    st.lists(st.sampled_from(FIELDS), max_size=5),
    st.binary(max_size=8),
    st.lists(EDIT, max_size=2),
)
@example(LINES[0], FIELDS[:2], b"body", [])
@example("HTTP/1.0 200 OK", FIELDS[:2], b"", [])
@example(LINES[0], ["Server: a", "Server: b", "Content-Length: 100"], b"", [])
@example(LINES[0], ["Connection: close", "Content-Length: 100"], b"", [])
@example(LINES[0], ["Transfer-Encoding: chunked", "Content-Length: 100"], b"", [])
def test_a_head_means_to_us_what_it_means_to_h11(
    line: str, fields: list[str], body: bytes, edits: list[tuple[int, int, bytes]]
) -> None:
    """Whatever head is parsed here is parsed by h11 too, to the same fields, the same rest and a connection to keep."""
    fields = [*fields, *(["Content-Length: 100"] if len(edits) < 2 and "Content-Length: 100" not in fields else [])]
    data = "\r\n".join([line, *fields, "", ""]).encode("latin-1") + body
    for place, gone, inserted in edits:
        data = data[:place] + inserted + data[place + gone :]
    found = parse_head(data)
    if found is None:
        return
    answer, length = found
    assert as_h11(data) == (answer.status, list(answer.headers.items()), data[length:], True)
    assert {"content-length"} <= set(answer.headers)


def test_usual_heads_do_not_need_h11() -> None:
    """The heads of nginx, AWS and rclone are parsed here."""
    aws = (
        b"HTTP/1.1 206 Partial Content\r\nx-amz-id-2: a/b+c=\r\nx-amz-request-id: 4B\r\nDate: Tue, 24 Nov 2026 13:00:00 GMT\r\n"
        b'Last-Modified: Tue, 24 Nov 2026 13:00:00 GMT\r\nETag: "0f-2"\r\nx-amz-server-side-encryption: AES256\r\n'
        b"Accept-Ranges: bytes\r\nContent-Range: bytes 0-9/10\r\nContent-Type: binary/octet-stream\r\n"
        b"Content-Length: 10\r\nServer: AmazonS3\r\n\r\n"
    )
    for head in (aws, HEAD, HEAD.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n")):
        found = parse_head(head + b"0123456789")
        assert found is not None
        assert (found[0].status, found[1]) == (206, len(head))


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300), st.sampled_from([200, 206]), st.integers(0, 300))
@example(200, 299, 300, 206, 100)
@example(0, 49, 50, 206, 50)
@example(100, 199, 300, 206, 100)
@example(250, 299, 300, 206, 50)
@example(200, 299, 300, 206, 99)
def test_only_the_end_of_an_object_is_its_tail(first: int, last: int, size: int, status: int, length: int) -> None:
    """Of all answers to a suffix range, only the last 100 bytes, or all of fewer, are taken."""
    headers = {"content-range": f"bytes {first}-{last}/{size}", "content-length": str(length)}
    right = last == size - 1 and length == last + 1 - first == min(100, size) > 0
    try:
        assert Suffix("x", 100).check(Answer(status, headers)) == length
    except Unspoken:
        assert not right
    else:
        assert right


@given(st.integers(0, 300))
def test_a_whole_object_may_stand_for_its_tail(size: int) -> None:
    """An answer of 200 without Content-Range is the tail only where the object is no larger than that."""
    headers = {"content-length": str(size)}
    if 0 < size <= 100:
        assert Suffix("x", 100).check(Answer(200, headers)) == size
    else:
        with pytest.raises(Unspoken):
            Suffix("x", 100).check(Answer(200, headers))


@pytest.mark.parametrize("first", ["silent", "refusing"])
async def test_an_address_that_does_not_answer_hides_no_other(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a name with several: one of a dead machine, or IPv6 that leads nowhere, came first each time."""
    with contextlib.ExitStack() as stack:
        good = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = good.getsockname()[1]
        if first == "silent":
            dead = stack.enter_context(socket.create_server(("127.0.0.2", port), backlog=0))
            for _ in range(4):  # then it takes no more, and says nothing
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(dead.getsockname())

        async def addresses(host: str, asked: int, **_: object) -> list[object]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, asked)) for each in ("127.0.0.2", "127.0.0.1")]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
        with anyio.fail_after(60):
            found = stack.enter_context(await dial("store.example", port))
        assert found.getpeername() == ("127.0.0.1", port)
