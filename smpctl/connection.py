"""A blocking connection to the daemon: frames out, frames in, several open streams on one socket.

The daemon never sends descriptors to a client. They are not asked for (plain ``recv``), so that the kernel
drops any that come along, and a frame that announces one is refused.
"""

import array
import contextlib
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Self, TypeVar

import msgspec

from smp_proto import __version__
from smp_proto.control import Hello
from smp_proto.errors import DaemonError, ErrorBody, SmpError, UsageError
from smp_proto.structs import decoder
from smp_proto.wire import (
    BODY_MAX_BYTES,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    Frame,
    FrameDecoder,
    FrameType,
    encode_frame,
)
from smpctl.address import START_HINT, connect

HELLO_TIMEOUT_S = 10.0
_RECEIVE_BYTES = 1 << 16
_UNREAD_MAX = 4096
T = TypeVar("T")


class End(msgspec.Struct, omit_defaults=True):
    """Body of END, as in ``smp_proto.aio``, which would bring anyio along."""

    ok: msgspec.Raw = msgspec.Raw(b"\xc0")
    error: ErrorBody | None = None


def our_hello() -> Hello:
    """What a client says first."""
    return Hello(PROTOCOL_MIN, PROTOCOL_MAX, __version__)


def check_hello(theirs: Hello) -> Hello:
    """Give back what the daemon said, unless it will not serve us.

    Raises:
        DaemonError: ``protocol_version``, saying which side to upgrade.
        SmpError: the daemon's own reason, such as ``forbidden`` or ``busy``.
    """
    if theirs.protocol_min > PROTOCOL_MAX or theirs.protocol_max < PROTOCOL_MIN:
        older = "smpctl" if theirs.protocol_min > PROTOCOL_MAX else "smpd"
        message = (
            f"smpctl {__version__} speaks protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}, "
            f"smpd {theirs.version} speaks {theirs.protocol_min} to {theirs.protocol_max}"
        )
        raise DaemonError("protocol_version", message, hint=f"upgrade {older}", details={"upgrade": older})
    if theirs.error is not None:
        raise SmpError.from_body(theirs.error)
    return theirs


def lost() -> DaemonError:
    """The daemon closed the connection."""
    return DaemonError("daemon_down", "smpd closed the connection", hint=START_HINT)


def too_slow(timeout: float) -> DaemonError:
    """The daemon is there and says nothing."""
    hint = "it may be busy; look at its log: journalctl -u smpd"
    return DaemonError("daemon_down", f"smpd did not answer within {timeout:g} s", hint=hint)


def decode(body: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Decode a message body; ``protocol`` when it is no ``kind``."""
    try:
        decoded: T = decoder(kind).decode(body)
        return decoded
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        message = f"an answer of smpd does not fit the protocol: {error}"
        raise _violation(message) from None


def encode(message: Any) -> bytes:
    """Encode a message body.

    Raises:
        UsageError: ``bad_request``; it holds what no message can.
    """
    try:
        return msgspec.msgpack.encode(message)
    except OverflowError:
        hint = "the most is 18446744073709551615, the least -9223372036854775808"
        raise UsageError("bad_request", "a number is too large for a message", hint=hint) from None
    except UnicodeEncodeError as error:
        message = f"{error.object[:80]!a} is not UTF-8"
        raise UsageError("bad_request", message, hint="give names as UTF-8 text") from None


def encode_request(request: Any) -> bytes:
    """Encode what a stream begins with.

    Raises:
        UsageError: ``bad_request``; it holds what no message can, or is too long for a frame.
    """
    body = encode(request)
    if len(body) > BODY_MAX_BYTES:
        message = f"the request is {len(body)} bytes long, and {BODY_MAX_BYTES} is the most"
        raise UsageError("bad_request", message, hint="name fewer recipients, prefixes or parameters")
    return body


class Connection:
    """One socket to the daemon, past HELLO. Not for several threads at once.

    Raises:
        DaemonError: ``daemon_down``, ``protocol`` or ``protocol_version``.
    """

    def __init__(self, path: str | None = None) -> None:
        self._socket = connect(path)
        self._decoder = FrameDecoder()
        self._open: dict[int, Exchange] = {}
        self._next = 1
        self.alive = True
        try:
            self._greet()
            frame = self._read_frame(HELLO_TIMEOUT_S)
            if frame.type is not FrameType.HELLO:
                raise DaemonError("protocol", f"the peer began with {frame.type.name}", hint="is this smpd's socket?")
            self.hello = check_hello(decode(frame.body, Hello))
        except BaseException:
            self.close()
            raise

    def _greet(self) -> None:
        try:
            self._socket.settimeout(HELLO_TIMEOUT_S)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # turned away already: why can be read
                self._socket.sendall(encode_frame(FrameType.HELLO, 0, msgspec.msgpack.encode(our_hello())))
        except OSError as error:
            raise _broken(error, HELLO_TIMEOUT_S) from None

    def open(self, request: Any, *, timeout: float | None) -> "Exchange":
        """Send REQUEST; the exchange is a context manager, and leaving it before END sends CANCEL.

        Raises:
            UsageError: as of :func:`encode_request`.
        """
        body = encode_request(request)
        exchange = Exchange(self, self._next, timeout)
        self._next = self._next % 0xFFFF_FFFF + 1
        self._open[exchange.stream] = exchange
        self.send(FrameType.REQUEST, exchange.stream, body, timeout=timeout)
        return exchange

    def send(
        self, kind: FrameType, stream: int, body: bytes = b"", fds: Sequence[int] = (), *, timeout: float | None
    ) -> None:
        """Send one frame whole; the descriptors stay open here."""
        if not self.alive:
            raise lost()
        data = memoryview(encode_frame(kind, stream, body, len(fds)))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.settimeout(timeout)
            while data:
                sent = self._socket.sendmsg([data], rights)
                data, rights = data[sent:], []
        except OSError as error:
            self.close()
            raise _broken(error, timeout) from None
        except BaseException:  # half a frame may be out: the stream is of no further use
            self.close()
            raise

    def pump(self, timeout: float | None) -> None:
        """Read one frame and hand it to its stream."""
        frame = self._read_frame(timeout)
        exchange = self._open.get(frame.stream)
        if exchange is None or frame.type not in (FrameType.DATA, FrameType.END):
            self.close()
            raise _violation(f"smpd sent {frame.type.name} on stream {frame.stream}")
        if frame.type is FrameType.END:
            del self._open[frame.stream]
        if not exchange.take(frame):
            self.close()
            raise _violation(f"more than {_UNREAD_MAX} unread messages on one stream")

    def _read_frame(self, timeout: float | None) -> Frame:
        try:
            while True:
                for frame in self._decoder.frames():
                    if frame.fds:
                        raise _violation("smpd announced descriptors, which a client never takes")
                    return frame
                if not self.alive:
                    raise lost()
                self._socket.settimeout(timeout)
                data = self._socket.recv(_RECEIVE_BYTES)
                if not data:
                    raise lost()
                self._decoder.feed(data)
        except OSError as error:
            self.close()
            raise _broken(error, timeout) from None
        except SmpError:
            self.close()
            raise

    def close(self) -> None:
        """Close the socket; the daemon then ends what was open here, except jobs."""
        self.alive = False
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for the daemon
        self._socket.close()


class Exchange:
    """One open stream: DATA both ways until END."""

    def __init__(self, connection: Connection, stream: int, timeout: float | None) -> None:
        self._connection = connection
        self.stream = stream
        self._timeout = timeout
        self._unread: deque[Frame] = deque()
        self._left = False
        self._result: bytes | None = None
        self._ended = False

    def take(self, frame: Frame) -> bool:
        """Keep a frame for the reader; False when too many are kept."""
        if frame.type is FrameType.END:
            self._ended = True
        if not self._left:
            self._unread.append(frame)
        return len(self._unread) <= _UNREAD_MAX

    def send(self, body: Any, fds: Sequence[int] = ()) -> None:
        """Send one DATA message, unless the daemon has answered already."""
        if not self._ended:
            data = encode(body)
            self._connection.send(FrameType.DATA, self.stream, data, fds, timeout=self._timeout)

    def receive(self, kind: type[T]) -> T | None:
        """The next DATA message; None once the daemon has sent END with a reply.

        Raises:
            SmpError: the daemon's error, or the connection's.
        """
        if self._result is not None:
            return None
        while not self._unread:
            self._connection.pump(self._timeout)
        frame = self._unread.popleft()
        if frame.type is FrameType.DATA:
            return decode(frame.body, kind)
        end = decode(frame.body, End)
        if end.error is not None:
            raise SmpError.from_body(end.error)
        self._result = bytes(end.ok)
        return None

    def messages(self, kind: type[T]) -> Iterator[T]:
        """Yield DATA messages until END."""
        while (message := self.receive(kind)) is not None:
            yield message

    def result(self, kind: type[T]) -> T:
        """Skip what DATA is left and return the reply of END."""
        while self.receive(msgspec.Raw) is not None:
            pass
        assert self._result is not None
        return decode(self._result, kind)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._left = True
        self._unread.clear()
        if not self._ended and self._connection.alive:
            self._connection.send(FrameType.CANCEL, self.stream, timeout=HELLO_TIMEOUT_S)


def _broken(error: OSError, timeout: float | None) -> DaemonError:
    return too_slow(timeout or 0.0) if isinstance(error, TimeoutError) else lost()


def _violation(message: str) -> DaemonError:
    return DaemonError("protocol", message, hint="update the older of smpctl and smpd")
