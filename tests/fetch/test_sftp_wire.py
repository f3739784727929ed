"""Reading over SFTP without I/O: replies cut anywhere and in any order, and servers that lie."""

import contextlib
import random
import struct

import asyncssh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smpd.fetch import sftp_wire as wire

FILE = random.Random(5).randbytes(4000)


def data_reply(number: int, body: bytes) -> bytes:
    return struct.pack(">IBII", len(body) + 9, wire.DATA, number, len(body)) + body


def status(number: int, code: int) -> bytes:
    return struct.pack(">IBII", 9, wire.STATUS, number, code)


class Scripted:
    """A read of ``length`` bytes of FILE in blocks of 100, and the READs that it sent and nobody answered yet."""

    def __init__(self, length: int, offset: int = 0) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self.outcome: list[asyncssh.SFTPError | None] = []
        self.memory = bytearray(b"\xaa" * (length + 20))
        self.requests = wire.Requests(self._sent)
        place = memoryview(self.memory)[10 : 10 + length]
        self.read = wire.RangeRead(self.requests, b"h", offset, place, 100, self.outcome.append)

    def _sent(self, packets: bytes) -> None:
        while packets:
            length, kind, number, handle, offset, count = struct.unpack_from(">IBI5sQI", packets)
            assert (kind, handle) == (wire.READ, b"\0\0\0\1h")
            self.asked.append((number, offset, count))
            packets = packets[4 + length :]

    @property
    def untouched(self) -> bool:
        return self.memory[:10] == self.memory[-10:] == b"\xaa" * 10


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 900), st.randoms(use_true_random=False))
def test_any_order_any_cut_any_length(length: int, offset: int, rng: random.Random) -> None:
    """Replies in any order, shorter than asked for and cut anywhere fill exactly the range."""
    run = Scripted(length, offset)
    while run.asked:
        number, start, count = run.asked.pop(rng.randrange(len(run.asked)))
        reply = data_reply(number, FILE[start : start + rng.randint(1, count)])
        while reply:
            cut = rng.randint(1, len(reply))
            run.requests.feed(reply[:cut])
            reply = reply[cut:]
    assert run.outcome == [None]
    assert run.memory[10:-10] == FILE[offset : offset + length]
    assert run.untouched
    assert run.requests.idle


@pytest.mark.parametrize(
    "reply",
    [
        data_reply(0, bytes(101)),  # more than asked for
        data_reply(0, b""),
        data_reply(77, bytes(100)),  # an id of nobody
        status(77, 1),
        struct.pack(">IBII", 50, wire.DATA, 0, 100),  # two lengths
        struct.pack(">IBII", 8, wire.DATA, 0, 1),
        struct.pack(">IBII", 1 << 30, wire.STATUS, 0, 1),
        struct.pack(">IBII", 0, wire.STATUS, 0, 1),
        struct.pack(">IBI", 5, wire.VERSION, 3),  # nobody greeted
    ],
)
def test_a_reply_that_is_none_ends_the_session(reply: bytes) -> None:
    """It is refused before anything is written beside its place."""
    run = Scripted(100)
    with pytest.raises(asyncssh.SFTPBadMessage):
        run.requests.feed(reply)
        run.requests.feed(status(0, 1))
        run.requests.feed(status(0, 1))  # answered already
    assert run.memory == b"\xaa" * 120


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (status(1, 1), asyncssh.SFTPEOFError),
        (status(1, 3), asyncssh.SFTPPermissionDenied),
        (status(1, 4), asyncssh.SFTPFailure),
        (status(1, 99), asyncssh.SFTPFailure),
        (status(1, 0), asyncssh.SFTPBadMessage),
        (struct.pack(">IBI", 5, wire.HANDLE, 1), asyncssh.SFTPBadMessage),
    ],
)
def test_a_refused_block_ends_the_read(reply: bytes, error: type[Exception]) -> None:
    """The read ends once, with the reason; what else arrives of it is dropped."""
    run = Scripted(300)
    run.requests.feed(reply + data_reply(0, bytes(100)) + data_reply(2, bytes(100)))
    assert [type(outcome) for outcome in run.outcome] == [error]
    assert run.memory == b"\xaa" * 320
    assert run.requests.idle


def test_nothing_is_written_after_a_read_was_abandoned() -> None:
    """Not even the rest of a block that is half there."""
    run = Scripted(200)
    reply = data_reply(0, bytes(100))
    run.requests.feed(reply[:50])
    run.read.abandon()
    run.memory[:] = b"\xaa" * 220
    run.requests.feed(reply[50:] + data_reply(1, bytes(100)))
    assert run.memory == b"\xaa" * 220
    assert run.outcome == []
    assert run.requests.idle


def test_what_is_under_way_is_bounded() -> None:
    """Further blocks are asked for as answers come, those of an abandoned read never."""
    run = Scripted(100 * 200)
    assert len(run.asked) == wire.REQUESTS_MAX
    run.read.abandon()
    for number, _, _ in list(run.asked):
        run.requests.feed(data_reply(number, bytes(100)))
    assert len(run.asked) == wire.REQUESTS_MAX
    assert run.requests.idle


@pytest.mark.parametrize(
    ("said", "taken"),
    [(0, 32 << 10), (1, 32 << 10), (32 << 10, 32 << 10), (261_120, 261_120), (1 << 20, 1 << 20), (1 << 63, 1 << 20)],
)
def test_what_a_read_may_ask_for(said: int, taken: int) -> None:
    """As the server says, but not less than each has to be able to send, which would make millions of a range."""
    assert wire.read_limit(wire.Reply(wire.EXTENDED_REPLY, struct.pack(">QQQQ", 1 << 18, said, said, 0))) == taken


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused_or_waited_for(noise: bytes) -> None:
    """No other error, and nothing outside the place."""
    run = Scripted(300)
    for take in (run.requests.feed, wire.tells_limits):
        with contextlib.suppress(asyncssh.SFTPBadMessage):
            take(noise)
    for kind in (wire.ATTRS, wire.HANDLE, wire.EXTENDED_REPLY, wire.STATUS):
        for decode in (wire.attributes_of, wire.handle_of, wire.read_limit):
            with contextlib.suppress(asyncssh.SFTPError):
                decode(wire.Reply(kind, noise))
    assert run.untouched
