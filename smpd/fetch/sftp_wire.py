"""Reading files over SFTP version 3 (draft-ietf-secsh-filexfer-02), without I/O.

:class:`Requests` numbers what is asked and takes the server's stream apart. What a read brings goes from the chunk it
came in straight to where it belongs; nothing is put together first. :class:`RangeRead` keeps the requests of one range
under way. Whatever a server answers, only ever the range's own bytes are written, and nothing once it is abandoned.
"""

import functools
import stat
import struct
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import asyncssh

INIT, VERSION = 1, 2
OPEN, CLOSE, READ, STAT, FSTAT, EXTENDED = 3, 4, 5, 17, 8, 200
STATUS, HANDLE, DATA, ATTRS, EXTENDED_REPLY = 101, 102, 103, 105, 201
LIMITS = b"limits@openssh.com"  # OpenSSH's PROTOCOL, section 4.8
BLOCK_BYTES = 32 << 10  # what every server must be able to send (section 3)
BLOCK_MAX_BYTES = 1 << 20
# What is under way in one session. OpenSSH's server reads all that it is asked for into memory at once, and is slower
# the more it is; its client has 64 requests under way.
REQUESTS_MAX = 64
AHEAD_BYTES = 4 << 20
_REPLY_MAX_BYTES = 256 << 10  # of other replies than DATA
_HANDLE_MAX_BYTES = 256  # section 6.3
_READ_FLAG = 1
_OK, _EOF = 0, 1
_DATA_HEADER_BYTES = 13
_HEADER = struct.Struct(">IBI")
_U32, _U64 = struct.Struct(">I"), struct.Struct(">Q")
_RANGE = struct.Struct(">QI")
_LIMITS = struct.Struct(">QQQQ")
_STATUS_ERRORS: dict[int, Callable[[str], asyncssh.SFTPError]] = {
    2: asyncssh.SFTPNoSuchFile,
    3: asyncssh.SFTPPermissionDenied,
    5: asyncssh.SFTPBadMessage,
    6: asyncssh.SFTPNoConnection,
    7: asyncssh.SFTPConnectionLost,
    8: asyncssh.SFTPOpUnsupported,
}


class Reply(NamedTuple):
    """One answer. Of DATA, ``size`` bytes have been put into their place; of others ``body`` is what follows the id."""

    kind: int
    body: bytes = b""
    size: int = 0


Done = Callable[[Reply], None]


class _Pending:
    """A request without its answer. ``into`` is None unless it is a read that is still wanted."""

    __slots__ = ("done", "into", "limit", "number")

    def __init__(self, number: int, done: Done | None, into: memoryview | None) -> None:
        self.number = number
        self.done = done
        self.into = into
        self.limit = len(into) if into is not None else 0


class Requests:
    """The requests of one session.

    Args:
        write: sends bytes to the server, later if need be.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._next = 0
        self._pending: dict[int, _Pending] = {}
        self._queue: deque[Block] = deque()
        self._ahead = 0  # how many bytes were asked for and are not there yet
        self._head = bytearray()  # a reply that is not whole yet, unless it is DATA whose header is
        self._data: _Pending | None = None
        self._place = 0  # where in its destination the next byte of DATA goes
        self._left = 0  # how many bytes of DATA are to come
        self._greeted: Callable[[bytes], None] | None = None

    @property
    def idle(self) -> bool:
        """Whether all that was asked is answered."""
        return not self._pending

    def greet(self, done: Callable[[bytes], None]) -> None:
        """Ask for version 3; ``done`` gets the body of the VERSION, which has no id."""
        self._greeted = done
        self._write(struct.pack(">IBI", 5, INIT, 3))

    def ask(self, kind: int, fields: bytes, done: Done | None) -> None:
        """Send one request; without ``done`` nobody waits for its answer."""
        self._write(self._request(kind, fields, done, None))

    def enqueue(self, blocks: Iterable["Block"], *, first: bool = False) -> None:
        """Ask for blocks as soon as few enough bytes are under way; what was enqueued first is asked for first."""
        if first:
            self._queue.extendleft(blocks)
        else:
            self._queue.extend(blocks)
        self._fill()

    def _fill(self) -> None:
        # By halves and in one write: each write costs SSH packets.
        if not self._queue or self._ahead > AHEAD_BYTES // 2 or len(self._pending) > REQUESTS_MAX // 2:
            return
        packets = []
        while self._queue and self._ahead < AHEAD_BYTES and len(self._pending) < REQUESTS_MAX:
            block = self._queue.popleft()
            if block.read.abandoned:
                continue
            block.read.under_way.add(self._next)
            self._ahead += len(block.into)
            fields = string(block.read.handle) + _RANGE.pack(block.offset, len(block.into))
            done = functools.partial(block.read.answered, self._next, block)
            packets.append(self._request(READ, fields, done, block.into))
        if packets:
            self._write(b"".join(packets))

    def forget(self, number: int) -> None:
        """Drop the answer to a request when it comes."""
        pending = self._pending.get(number)
        if pending is not None:
            pending.done = pending.into = None

    def _request(self, kind: int, fields: bytes, done: Done | None, into: memoryview | None) -> bytes:
        number = self._next
        self._next = (self._next + 1) & 0xFFFFFFFF
        self._pending[number] = _Pending(number, done, into)
        return _HEADER.pack(len(fields) + 5, kind, number) + fields

    def feed(self, data: bytes | memoryview) -> None:
        """Take what the server sent, cut anywhere.

        Raises:
            asyncssh.SFTPBadMessage: it is no answer to what was asked. The session is of no use then.
        """
        view = memoryview(data)
        while view:
            view = self._take(self._data, view) if self._data is not None else self._collect(view)

    def _take(self, pending: _Pending, view: memoryview) -> memoryview:
        part = view[: self._left]
        count = len(part)
        if pending.into is not None:
            pending.into[self._place : self._place + count] = part
        self._place += count
        self._left -= count
        if not self._left:
            self._data = None
            self._finish(pending, Reply(DATA, size=self._place))
        return view[count:]

    def _collect(self, view: memoryview) -> memoryview:
        head = self._head
        missing = self._wanted(head) - len(head)
        head += view[:missing]
        rest = view[missing:]
        if len(head) < self._wanted(head):
            return rest
        self._head = bytearray()
        kind = head[4]
        if kind == DATA:
            self._begin_data(head)
        elif kind == VERSION and self._greeted is not None:
            greeted, self._greeted = self._greeted, None
            greeted(bytes(head[5:]))
        else:
            pending = self._answered(head)
            self._finish(pending, Reply(kind, bytes(head[9:])))
        return rest

    def _wanted(self, head: bytearray) -> int:
        """How many bytes of a reply to collect, as far as can be told."""
        if len(head) < _HEADER.size:
            return _HEADER.size  # each reply has at least this: VERSION is followed by a number too
        length = int(_U32.unpack_from(head)[0])
        kind = head[4]
        if kind == DATA:
            if length < _DATA_HEADER_BYTES - 4:
                raise asyncssh.SFTPBadMessage("a DATA reply that is too short")
            return _DATA_HEADER_BYTES
        if not 5 <= length <= _REPLY_MAX_BYTES:
            raise asyncssh.SFTPBadMessage("a reply of a length that none has")
        return 4 + length

    def _finish(self, pending: _Pending, reply: Reply) -> None:
        del self._pending[pending.number]
        self._ahead -= pending.limit
        if pending.done is not None:
            pending.done(reply)
        self._fill()

    def _answered(self, head: bytearray) -> _Pending:
        pending = self._pending.get(int(_U32.unpack_from(head, 5)[0]))
        if pending is None:
            raise asyncssh.SFTPBadMessage("an answer to nothing that was asked")
        return pending

    def _begin_data(self, head: bytearray) -> None:
        pending = self._answered(head)
        length, size = int(_U32.unpack_from(head)[0]), int(_U32.unpack_from(head, 9)[0])
        if length != size + 9 or not 0 < size <= pending.limit:
            raise asyncssh.SFTPBadMessage("a DATA reply of another size than was asked for")
        self._data, self._place, self._left = pending, 0, size


class Block(NamedTuple):
    """A part of a range, to be asked for at once."""

    read: "RangeRead"
    offset: int
    into: memoryview


class RangeRead:
    """Fills ``into``, which is not empty, from byte ``offset`` of an open file on.

    Args:
        block_bytes: how much to ask for at once.
        done: called once with None when all is there, or with why not: SFTPEOFError when the file ends before.
    """

    def __init__(
        self,
        requests: Requests,
        handle: bytes,
        offset: int,
        into: memoryview,
        block_bytes: int,
        done: Callable[[asyncssh.SFTPError | None], None],
    ) -> None:
        self._requests = requests
        self._done = done
        self._left = len(into)
        self.handle = handle
        self.under_way: set[int] = set()  # ids
        self.abandoned = False
        starts = range(0, len(into), block_bytes)
        requests.enqueue(Block(self, offset + start, into[start : start + block_bytes]) for start in starts)

    def abandon(self) -> None:
        """Nothing is written from here on, whatever still arrives; ``done`` is not called any more."""
        self.abandoned = True
        for number in self.under_way:
            self._requests.forget(number)
        self.under_way.clear()

    def answered(self, number: int, block: Block, reply: Reply) -> None:
        """One block's answer is there."""
        self.under_way.discard(number)
        if reply.kind != DATA:
            self._end(refusal(reply) or asyncssh.SFTPBadMessage("no data and no reason"))
            return
        self._left -= reply.size
        if not self._left:
            self._end(None)
        elif reply.size < len(block.into):  # a server may send less than it was asked for
            rest = Block(self, block.offset + reply.size, block.into[reply.size :])
            self._requests.enqueue([rest], first=True)

    def _end(self, error: asyncssh.SFTPError | None) -> None:
        self.abandon()
        self._done(error)


def string(value: bytes) -> bytes:
    """A string of the protocol (section 2 of the draft, RFC 4251 §5)."""
    return _U32.pack(len(value)) + value


def opening(path: bytes) -> bytes:
    """The fields of an OPEN for reading."""
    return string(path) + struct.pack(">II", _READ_FLAG, 0)


def refusal(reply: Reply) -> asyncssh.SFTPError | None:
    """The error of a STATUS; None when it says that all is well, or for another reply."""
    if reply.kind != STATUS:
        return None
    if len(reply.body) < _U32.size:
        return asyncssh.SFTPBadMessage("a STATUS without a code")
    code = int(_U32.unpack_from(reply.body)[0])
    if code == _OK:
        return None
    if code == _EOF:
        return asyncssh.SFTPEOFError()
    # The server's own words are not taken along: they may hold anything.
    kind = _STATUS_ERRORS.get(code, asyncssh.SFTPFailure)
    return kind("refused")


def expect(reply: Reply, kind: int) -> bytes:
    """The body of a reply of the kind that belongs to the request.

    Raises:
        asyncssh.SFTPError: the server's refusal, or SFTPBadMessage for any other reply.
    """
    if error := refusal(reply):
        raise error
    if reply.kind != kind:
        raise asyncssh.SFTPBadMessage("another kind of reply than was asked for")
    return reply.body


def handle_of(reply: Reply) -> bytes:
    """The handle in the answer to OPEN."""
    body = expect(reply, HANDLE)
    handle = body[_U32.size :]
    if len(body) < _U32.size or _U32.unpack_from(body)[0] != len(handle) or len(handle) > _HANDLE_MAX_BYTES:
        raise asyncssh.SFTPBadMessage("a handle that is none")
    return handle


def attributes_of(reply: Reply) -> asyncssh.SFTPAttrs:
    """Type, size and mtime in the answer to STAT or FSTAT (section 5)."""
    body = expect(reply, ATTRS)
    found = asyncssh.SFTPAttrs(type=asyncssh.FILEXFER_TYPE_UNKNOWN)
    try:
        flags, at = int(_U32.unpack_from(body)[0]), 4
        if flags & 1:
            found.size, at = int(_U64.unpack_from(body, at)[0]), at + 8
        if flags & 2:
            at += 8  # owner and group
        if flags & 4:
            mode, at = int(_U32.unpack_from(body, at)[0]), at + 4
            regular = stat.S_ISREG(mode) or not stat.S_IFMT(mode)
            found.type = asyncssh.FILEXFER_TYPE_REGULAR if regular else asyncssh.FILEXFER_TYPE_SPECIAL
        if flags & 8:
            found.mtime = int(_U32.unpack_from(body, at + 4)[0])
    except struct.error:
        raise asyncssh.SFTPBadMessage("attributes that end too early") from None
    return found


def read_limit(reply: Reply) -> int:
    """How much a READ may ask for, by the answer to the extended request :data:`LIMITS`; 0 in it says nothing.

    Less than every server has to be able to send counts for nothing: a range would be millions of requests.
    """
    body = expect(reply, EXTENDED_REPLY)
    if len(body) < _LIMITS.size:
        raise asyncssh.SFTPBadMessage("limits that end too early")
    _, limit, _, _ = _LIMITS.unpack_from(body)
    return max(BLOCK_BYTES, min(int(limit), BLOCK_MAX_BYTES))


def tells_limits(version: bytes) -> bool:
    """Whether a VERSION's body announces :data:`LIMITS`.

    Raises:
        asyncssh.SFTPBadMessage: another version than 3, or a list of extensions that is none.
    """
    names: list[bytes] = []
    at = _U32.size
    if len(version) < at or _U32.unpack_from(version)[0] != 3:
        raise asyncssh.SFTPBadMessage("a version of SFTP other than 3")
    while at < len(version):
        try:
            length = int(_U32.unpack_from(version, at)[0])
        except struct.error:
            raise asyncssh.SFTPBadMessage("extensions that end too early") from None
        names.append(version[at + 4 : at + 4 + length])
        at += 4 + length
    return LIMITS in names[::2]
