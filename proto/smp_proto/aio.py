"""The one anyio driver of the protocol: used by the daemon, by the worker links and by the async client.

``Channel`` moves frames and descriptors over a Unix stream socket. ``Caller`` asks (REQUEST, then DATA until
END); :func:`smp_proto.serving.serve` answers. Either side of a link or control connection is one of the two.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskGroup

from smp_proto.channel import Channel, close_all, decode, encode
from smp_proto.errors import DaemonError, ErrorBody, SmpError
from smp_proto.wire import STREAM_MAX, Frame, FrameType, encode_secret

__all__ = ["Caller", "Channel", "End", "Exchange", "aside", "close_all", "decode", "encode"]

T = TypeVar("T")

# Set in a task, and in those that it starts, whose questions are no work on a job: see Caller.heard.
aside: ContextVar[bool] = ContextVar("aside", default=False)


class End(msgspec.Struct, omit_defaults=True):
    """Body of END: either ``error`` or the encoded ``ok`` reply."""

    ok: msgspec.Raw = msgspec.Raw(b"\xc0")
    error: ErrorBody | None = None


def _as_it_is(error: SmpError) -> SmpError:
    return error


class Exchange:
    """One open stream, on either side: DATA both ways until END. One task at a time receives.

    Args:
        believe: what to make of an error that the peer ends it with.
    """

    def __init__(self, channel: Channel, stream: int, believe: Callable[[SmpError], SmpError] = _as_it_is) -> None:
        self.channel = channel
        self.stream = stream
        self.aside = False
        self._believe = believe
        self._inbox: deque[tuple[Frame, list[int]]] = deque()
        self._arrival: asyncio.Future[None] | None = None  # what receive() waits for
        self._closed = False
        self._result: bytes | None = None

    def deliver(self, frame: Frame, fds: list[int]) -> None:
        """Hand in a received frame; called by the connection's reader only.

        Raises:
            DaemonError: ``protocol`` when too much is unread on this connection.
        """
        if self._closed:
            self.channel.discard(fds)
            return
        self._inbox.append((frame, fds))
        self._wake()
        if frame.type is FrameType.DATA:
            self.channel.count_unread(1, frame)

    async def send(self, body: Any, fds: Sequence[int] = ()) -> None:
        """Send one DATA message."""
        await self.channel.send(FrameType.DATA, self.stream, encode(body), fds)

    async def send_many(self, bodies: Iterable[Any]) -> None:
        """Send several DATA messages in one go."""
        await self.channel.send_many(FrameType.DATA, self.stream, [encode(body) for body in bodies])

    async def receive(self, kind: type[T]) -> tuple[T, list[int]]:
        """Return the next DATA message and its descriptors, which the caller must close.

        Raises:
            anyio.EndOfStream: the peer sent END with a reply; see :meth:`result`.
            SmpError: the peer sent END with an error, or the connection is gone (``worker_died`` or
                ``daemon_down``, as the connection was told).
        """
        if self._inbox or self._closed:
            await anyio.lowlevel.checkpoint()
        while not self._inbox:
            if self._closed:
                raise anyio.EndOfStream
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        frame, fds = self._inbox.popleft()
        if frame.type is FrameType.DATA:
            self.channel.count_unread(-1, frame)
            try:
                return decode(frame.body, kind), fds
            except DaemonError:
                self.channel.discard(fds)
                raise
        self.channel.discard(fds)
        self._closed = True
        end = decode(frame.body, End)
        if end.error is not None:
            raise self._believe(SmpError.from_body(end.error))
        self._result = bytes(end.ok)
        raise anyio.EndOfStream

    @property
    def ended(self) -> bool:
        """Whether END was received: the peer is done with the request."""
        return self._closed

    async def messages(self, kind: type[T]) -> AsyncIterator[T]:
        """Yield DATA messages until END; descriptors that come along are refused."""
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                message, fds = await self.receive(kind)
                if fds:
                    self.channel.discard(fds)
                    raise DaemonError("protocol", "descriptors came with a message that carries none")
                yield message

    async def result(self, kind: type[T]) -> T:
        """Skip what DATA is left and return the reply of END."""
        while self._result is None:
            try:
                _, fds = await self.receive(msgspec.Raw)
                self.channel.discard(fds)
            except anyio.EndOfStream:
                break
        return decode(self._result or b"\xc0", kind)

    async def cancel(self) -> None:
        """Send CANCEL and wait for END: then the peer has let go of whatever the request named."""
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, SmpError):
            if not self._closed:
                await self.channel.send(FrameType.CANCEL, self.stream)
            while True:
                self.channel.discard((await self.receive(msgspec.Raw))[1])

    def close(self) -> None:
        """Release what was received and not read."""
        self._closed = True
        self._wake()
        while self._inbox:
            frame, fds = self._inbox.popleft()
            self.channel.discard(fds)
            if frame.type is FrameType.DATA:
                self.channel.count_unread(-1, frame)

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


class Caller:
    """The asking side of a channel, an async context manager.

    Args:
        channel: the connection, closed at the end.
        lost: makes the error for requests whose peer is gone.
        believe: what to make of an error that the peer answers with; as it is by default.

    Attributes:
        heard: frames that came, but those of questions that were asked :data:`aside`.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        lost: Callable[[], SmpError],
        believe: Callable[[SmpError], SmpError] = _as_it_is,
    ) -> None:
        self._channel = channel
        self._lost = lost
        self._believe = believe
        self._open: dict[int, Exchange] = {}
        self.heard = 0
        self._next = 1
        self._gone = anyio.Event()
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
        return not self._gone.is_set()

    async def wait_closed(self) -> None:
        """Wait until the peer is gone."""
        await self._gone.wait()

    @contextlib.asynccontextmanager
    async def open(self, request: Any, fds: Sequence[int] = (), *, secret: bool = False) -> AsyncIterator[Exchange]:
        """Send REQUEST and yield the exchange; leaving before END sends CANCEL. ``secret`` as for a channel's send."""
        if not self.alive:
            raise self._lost()
        exchange = Exchange(self._channel, self._take_stream(), self._believe)
        exchange.aside = aside.get()
        self._open[exchange.stream] = exchange
        try:
            with self._peer():
                await self._request(exchange, request, fds, secret)
                yield exchange
        finally:
            # The stream's number stays taken until END comes, so that a late frame finds its stream.
            if exchange.stream in self._open and self.alive:
                with anyio.CancelScope(shield=True), contextlib.suppress(anyio.BrokenResourceError):
                    await self._channel.send(FrameType.CANCEL, exchange.stream)
            exchange.close()

    async def call(
        self,
        request: Any,
        kind: type[T],
        *,
        timeout: float | None = None,
        fds: Sequence[int] = (),
        secret: bool = False,
    ) -> T:
        """Send a request and return its reply.

        Raises:
            TimeoutError: no END within ``timeout`` seconds.
            SmpError: the peer's error, or the peer is gone.
        """
        with anyio.fail_after(timeout):
            async with self.open(request, fds, secret=secret) as exchange:
                return await exchange.result(kind)

    async def _request(self, exchange: Exchange, request: Any, fds: Sequence[int], secret: bool) -> None:
        try:
            body = encode_secret(request) if secret else encode(request)
            await self._channel.send(FrameType.REQUEST, exchange.stream, body, fds, secret=secret)
        except BaseException:
            self._open.pop(exchange.stream, None)  # never asked, so there is nothing to cancel or to wait for
            raise

    def _take_stream(self) -> int:
        stream = self._next
        while stream in self._open:
            stream = stream % STREAM_MAX + 1
        self._next = stream % STREAM_MAX + 1
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
                    self._channel.discard(fds)
                    raise DaemonError("protocol", f"the peer sent {frame.type.name} on stream {frame.stream}")
                self.heard += not exchange.aside
                if frame.type is FrameType.END:
                    del self._open[frame.stream]
                exchange.deliver(frame, fds)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass
        except DaemonError as violation:
            error = violation
        finally:
            self._gone.set()
            self._channel.shutdown()
            body = encode(End(error=(error or self._lost()).body()))
            for exchange in self._open.values():
                exchange.deliver(Frame(FrameType.END, exchange.stream, body), [])
            self._open.clear()
