"""How the client for anyio asks: its connection, and what it does where it is told to ask more rarely."""

import contextlib
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.abc
import msgspec

from smp_proto import control as c
from smp_proto.aio import Caller, Channel, Exchange
from smp_proto.errors import DaemonError
from smpctl.address import connect
from smpctl.asking import ANSWER_TIMEOUT_S
from smpctl.async_connection import greet, hold, in_thread, messages
from smpctl.connection import encode_request, too_slow
from smpctl.watching import pause_after

T = TypeVar("T")


class AsyncAsking:
    """A connection to the daemon, made when first used; see :class:`smpctl.AsyncClient`, which says what can be asked.

    Args:
        path: as of :class:`smpctl.Client`.
    """

    def __init__(self, path: str | None = None) -> None:
        self._path = path
        self._hello: c.Hello | None = None
        self._caller: Caller | None = None
        self._connecting = anyio.Lock()
        self._release = anyio.Event()
        self._group: anyio.abc.TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._group is not None
        self._group.cancel_scope.cancel()
        await self._group.__aexit__(None, None, None)  # the block's own exception goes on as it is, in no group

    async def connect(self) -> c.Hello:
        """Connect now, if need be, and return what the daemon said of itself."""
        assert self._group is not None, "use it as: async with AsyncClient() as client"
        async with self._connecting:
            if self._caller is None or self._hello is None or not self._caller.alive:
                sock = await in_thread(connect, self._path, undo=socket.socket.close)
                channel = Channel(sock)
                try:
                    self._hello = await greet(channel)
                except BaseException:
                    channel.close()
                    raise
                # The connection lives in a task of the client, since whoever asks first may be gone before others.
                self._release.set()
                self._release = anyio.Event()
                self._caller = await self._group.start(hold, channel, self._release)
            return self._hello

    @contextlib.asynccontextmanager
    async def _open(self, request: Any) -> AsyncIterator[Exchange]:
        body = msgspec.Raw(encode_request(request))
        await self.connect()
        assert self._caller is not None
        async with self._caller.open(body) as exchange:
            yield exchange

    async def _call(self, request: Any, kind: type[T], timeout: float = ANSWER_TIMEOUT_S) -> T:
        return await self._ask(request, lambda exchange: exchange.result(kind), timeout)

    async def _parts(self, request: Any, kind: type[T], timeout: float = ANSWER_TIMEOUT_S) -> list[T]:
        """Every part of an answer that may not fit one frame: DATA of the reply's own kind, then the reply."""

        async def take(exchange: Exchange) -> list[T]:
            parts = [part async for part in exchange.messages(kind)]
            return [*parts, await exchange.result(kind)]

        return await self._ask(request, take, timeout)

    async def _ask(self, request: Any, take: Callable[[Exchange], Awaitable[T]], timeout: float) -> T:
        async def ask() -> T:
            async with self._open(request) as exchange:
                return await take(exchange)

        try:
            with anyio.fail_after(timeout):
                return await self._again(ask, timeout)
        except TimeoutError:
            raise too_slow(timeout) from None

    async def _again(self, act: Callable[[], Awaitable[T]], timeout: float = ANSWER_TIMEOUT_S) -> T:
        """Do it once more where the daemon wants to be asked more rarely, which it says before anything else."""
        until = time.monotonic() + timeout
        while True:
            try:
                return await act()
            except DaemonError as error:
                await anyio.sleep(pause_after(error, until))

    async def _stream(self, request: Any, kind: type[T], timeout: float = ANSWER_TIMEOUT_S) -> AsyncGenerator[T, None]:
        """Every part of an answer as it comes."""
        until, begun = time.monotonic() + ANSWER_TIMEOUT_S, False
        while True:
            try:
                async with self._open(request) as exchange:
                    async for part in messages(exchange, kind, timeout):
                        begun = True
                        yield part
                return
            except DaemonError as error:
                if begun:
                    raise
                await anyio.sleep(pause_after(error, until))
