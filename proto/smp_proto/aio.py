"""The one anyio driver of the codec: used by the daemon, by the worker links and by the async client.

``Channel`` moves frames and descriptors over a Unix stream socket. ``Caller`` asks (REQUEST, then DATA until
END); ``serve`` answers. Either side of a link or control connection is one of the two.
"""

import array
import contextlib
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import msgspec
from anyio.abc import TaskGroup

from smp_proto.errors import DaemonError, ErrorBody, SmpError
from smp_proto.wire import FDS_MAX, Frame, FrameDecoder, FrameType, encode_frame

_RECEIVE_BYTES = 1 << 18
_STREAMS_MAX = 256
_FDS_PENDING_MAX = 4 * FDS_MAX
_INT_BYTES = array.array("i").itemsize
_INBOX_MAX = 1024
_FAULT = SmpError("internal", "a fault in SMP", hint="see the daemon's log; please report it")
T = TypeVar("T")


class End(msgspec.Struct, omit_defaults=True):
    """Body of END: either ``error`` or the encoded ``ok`` reply."""

    ok: msgspec.Raw = msgspec.Raw(b"\xc0")
    error: ErrorBody | None = None


def encode(body: Any) -> bytes:
    """Encode one message body (msgpack, maps)."""
    return msgspec.msgpack.encode(body)


def decode(body: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Decode one message body.

    Raises:
        DaemonError: ``protocol`` when the body is not a ``kind``.
    """
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DaemonError(
            "protocol", f"a message does not fit the protocol: {error}", hint="update the older side"
        ) from error


class Channel:
    """Frames over a connected Unix stream socket, which it owns."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._decoder = FrameDecoder()
        self._ready: deque[Frame] = deque()
        self._fds: deque[int] = deque()
        self._send_lock = anyio.Lock()

    async def send(self, frame_type: FrameType, stream: int, body: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send one frame; the descriptors stay open here.

        Raises:
            anyio.BrokenResourceError: the peer is gone.
        """
        data = memoryview(encode_frame(frame_type, stream, body, len(fds)))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        # Shielded: half a frame would garble every later one. A peer that stops reading is the caller's
        # to notice; closing the socket ends the wait.
        async with self._send_lock:
            with anyio.CancelScope(shield=True):
                while data:
                    try:
                        sent = self.socket.sendmsg([data], rights)
                    except (BlockingIOError, InterruptedError):
                        await anyio.wait_writable(self.socket)
                        continue
                    except (OSError, ValueError) as error:
                        raise anyio.BrokenResourceError from error
                    data, rights = data[sent:], []

    async def receive(self) -> tuple[Frame, list[int]]:
        """Return the next frame and its descriptors, which the caller must close.

        Raises:
            anyio.EndOfStream: the peer closed between frames.
            anyio.BrokenResourceError: the connection broke inside one.
            DaemonError: ``protocol``.
        """
        while not self._ready:
            try:
                data, ancillary, flags, _ = self.socket.recvmsg(
                    _RECEIVE_BYTES, socket.CMSG_SPACE(FDS_MAX * _INT_BYTES), socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                await anyio.wait_readable(self.socket)
                continue
            except (OSError, ValueError) as error:
                raise anyio.BrokenResourceError from error
            self._take_descriptors(ancillary, flags)
            if not data:
                raise anyio.BrokenResourceError if self._decoder.partial else anyio.EndOfStream
            self._decoder.feed(data)
            self._ready.extend(self._decoder.frames())
        frame = self._ready.popleft()
        if frame.fds > len(self._fds):
            raise DaemonError("protocol", f"a frame announced {frame.fds} descriptors and brought fewer")
        return frame, [self._fds.popleft() for _ in range(frame.fds)]

    def _take_descriptors(self, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % _INT_BYTES])
                self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC or len(self._fds) > _FDS_PENDING_MAX:
            raise DaemonError("protocol", "descriptors were lost or sent without being announced")

    def close(self) -> None:
        """Close the socket and every descriptor not yet handed out."""
        anyio.notify_closing(self.socket)
        self.socket.close()
        while self._fds:
            os.close(self._fds.popleft())


class Exchange:
    """One open stream, on either side: DATA both ways until END."""

    def __init__(self, channel: Channel, stream: int) -> None:
        self.channel = channel
        self.stream = stream
        send, self._inbox = anyio.create_memory_object_stream[tuple[Frame, list[int]]](_INBOX_MAX)
        self._outbox = send
        self._result: bytes | None = None

    def deliver(self, frame: Frame, fds: list[int]) -> None:
        """Hand in a received frame; called by the connection's reader only.

        Raises:
            DaemonError: ``protocol`` when the peer sends faster than is read, which no SMP peer does.
        """
        try:
            self._outbox.send_nowait((frame, fds))
        except anyio.WouldBlock:
            close_all(fds)
            raise DaemonError("protocol", f"more than {_INBOX_MAX} unread messages on one stream") from None
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            close_all(fds)

    async def send(self, body: Any, fds: Sequence[int] = ()) -> None:
        """Send one DATA message."""
        await self.channel.send(FrameType.DATA, self.stream, encode(body), fds)

    async def receive(self, kind: type[T]) -> tuple[T, list[int]]:
        """Return the next DATA message and its descriptors.

        Raises:
            anyio.EndOfStream: the peer sent END with a reply; see :meth:`result`.
            SmpError: the peer sent END with an error, or the connection is gone (``worker_died`` or
                ``daemon_down``, as the connection was told).
        """
        frame, fds = await self._inbox.receive()
        if frame.type is FrameType.DATA:
            try:
                return decode(frame.body, kind), fds
            except DaemonError:
                close_all(fds)
                raise
        close_all(fds)
        self._outbox.close()
        end = decode(frame.body, End)
        if end.error is not None:
            raise SmpError.from_body(end.error)
        self._result = bytes(end.ok)
        raise anyio.EndOfStream

    async def messages(self, kind: type[T]) -> AsyncIterator[T]:
        """Yield DATA messages until END; descriptors that come along are refused."""
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                message, fds = await self.receive(kind)
                if fds:
                    close_all(fds)
                    raise DaemonError("protocol", "descriptors came with a message that carries none")
                yield message

    async def result(self, kind: type[T]) -> T:
        """Skip what DATA is left and return the reply of END."""
        while self._result is None:
            try:
                _, fds = await self.receive(msgspec.Raw)
                close_all(fds)
            except anyio.EndOfStream:
                break
        return decode(self._result or b"\xc0", kind)

    def close(self) -> None:
        """Release what was received and not read."""
        self._outbox.close()
        with contextlib.suppress(anyio.WouldBlock, anyio.EndOfStream, anyio.ClosedResourceError):
            while True:
                close_all(self._inbox.receive_nowait()[1])
        self._inbox.close()


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody took."""
    for fd in fds:
        os.close(fd)


class Caller:
    """The asking side of a channel, an async context manager.

    Args:
        channel: the connection, closed at the end.
        lost: makes the error for requests whose peer is gone.
    """

    def __init__(self, channel: Channel, *, lost: Callable[[], SmpError]) -> None:
        self._channel = channel
        self._lost = lost
        self._open: dict[int, Exchange] = {}
        self._next = 1
        self._gone = False
        self._group: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._group.start_soon(self._read)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._group is not None
        self._group.cancel_scope.cancel()
        try:
            await self._group.__aexit__(None, None, None)
        finally:
            self._channel.close()

    @property
    def alive(self) -> bool:
        """Whether the peer was still there when last heard of."""
        return not self._gone

    @contextlib.asynccontextmanager
    async def open(self, request: Any, fds: Sequence[int] = ()) -> AsyncIterator[Exchange]:
        """Send REQUEST and yield the exchange; leaving before END sends CANCEL."""
        if self._gone:
            raise self._lost()
        exchange = Exchange(self._channel, self._take_stream())
        self._open[exchange.stream] = exchange
        try:
            with self._peer():
                await self._channel.send(FrameType.REQUEST, exchange.stream, encode(request), fds)
                yield exchange
        finally:
            # The stream's number stays taken until END comes, so that a late frame finds its stream.
            if exchange.stream in self._open and not self._gone:
                with anyio.CancelScope(shield=True), contextlib.suppress(anyio.BrokenResourceError):
                    await self._channel.send(FrameType.CANCEL, exchange.stream)
            exchange.close()

    async def call(self, request: Any, kind: type[T], *, timeout: float | None = None, fds: Sequence[int] = ()) -> T:
        """Send a request and return its reply.

        Raises:
            TimeoutError: no END within ``timeout`` seconds.
            SmpError: the peer's error, or the peer is gone.
        """
        with anyio.fail_after(timeout):
            async with self.open(request, fds) as exchange:
                return await exchange.result(kind)

    def _take_stream(self) -> int:
        stream = self._next
        self._next = stream % 0xFFFF_FFFF + 1
        return stream

    @contextlib.contextmanager
    def _peer(self) -> Iterator[None]:
        try:
            yield
        except anyio.BrokenResourceError as error:
            raise self._lost() from error

    async def _read(self) -> None:
        error: SmpError | None = None
        try:
            while True:
                frame, fds = await self._channel.receive()
                exchange = self._open.get(frame.stream)
                if exchange is None or frame.type not in (FrameType.DATA, FrameType.END):
                    close_all(fds)
                    raise DaemonError("protocol", f"the peer sent {frame.type.name} on stream {frame.stream}")
                if frame.type is FrameType.END:
                    del self._open[frame.stream]
                exchange.deliver(frame, fds)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass
        except DaemonError as violation:
            error = violation
        finally:
            self._gone = True
            body = encode(End(error=(error or self._lost()).body()))
            for exchange in self._open.values():
                exchange.deliver(Frame(FrameType.END, exchange.stream, body), [])
            self._open.clear()


Handler = Callable[[bytes, list[int], Exchange], Awaitable[Any]]


async def serve(
    channel: Channel,
    handler: Handler,
    *,
    unexpected: Callable[[Exception], None],
    streams_max: int = _STREAMS_MAX,
) -> None:
    """Answer requests until the peer closes; each runs as a task and ends with exactly one END.

    Args:
        handler: gets the request's body, its descriptors (to close) and the exchange; returns the reply.
        unexpected: is told of an exception that is no SmpError; the peer gets ``internal``.
        streams_max: how many requests one peer may have open.

    Raises:
        DaemonError: ``protocol``; the caller closes the channel.
    """
    scopes: dict[int, tuple[anyio.CancelScope, Exchange]] = {}

    async def answer(frame: Frame, fds: list[int], scope: anyio.CancelScope, exchange: Exchange) -> None:
        end = End(error=SmpError("cancelled", "the request was cancelled").body())
        try:
            with scope:
                try:
                    end = End(ok=msgspec.Raw(encode(await handler(frame.body, fds, exchange))))
                except SmpError as error:
                    end = End(error=error.body())
                except (anyio.BrokenResourceError, anyio.EndOfStream):
                    return
                except Exception as error:  # noqa: BLE001 - one request's fault must not end the others
                    unexpected(error)
                    end = End(error=_FAULT.body())
        finally:
            scopes.pop(frame.stream, None)
            exchange.close()
            with anyio.CancelScope(shield=True), contextlib.suppress(anyio.BrokenResourceError):
                await channel.send(FrameType.END, frame.stream, encode(end))

    try:
        async with anyio.create_task_group() as group:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    frame, fds = await channel.receive()
                    known = scopes.get(frame.stream)
                    if frame.type is FrameType.REQUEST and known is None and len(scopes) < streams_max:
                        scope, exchange = anyio.CancelScope(), Exchange(channel, frame.stream)
                        scopes[frame.stream] = scope, exchange
                        group.start_soon(answer, frame, fds, scope, exchange)
                    elif frame.type is FrameType.DATA and known is not None:
                        known[1].deliver(frame, fds)
                    elif frame.type is FrameType.CANCEL:
                        if known is not None:
                            known[0].cancel()
                    elif frame.type is FrameType.DATA:
                        close_all(fds)  # it crossed our END
                    else:
                        close_all(fds)
                        raise DaemonError("protocol", f"{frame.type.name} refused on stream {frame.stream}")
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        violation, rest = errors.split(DaemonError)
        if rest is not None:
            raise
        assert violation is not None
        raise violation.exceptions[0] from None
