"""What the client for anyio does with its connection: greet the daemon, hold the connection, take messages from it."""

import contextlib
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

import anyio
import anyio.abc
import anyio.to_thread

from smp_proto import control as c
from smp_proto.aio import Caller, Channel, Exchange, close_all, encode
from smp_proto.errors import DaemonError
from smp_proto.wire import FrameType
from smpctl.asking import ANSWER_TIMEOUT_S
from smpctl.connection import HELLO_TIMEOUT_S, check_hello, decode, lost, our_hello, too_slow

T = TypeVar("T")


async def greet(channel: Channel) -> c.Hello:
    """Say HELLO, and return what the daemon said of itself."""
    try:
        with anyio.fail_after(HELLO_TIMEOUT_S):
            with contextlib.suppress(anyio.BrokenResourceError):  # turned away already: why is there to be read
                await channel.send(FrameType.HELLO, 0, encode(our_hello()))
            frame, fds = await channel.receive()
    except TimeoutError:
        raise too_slow(HELLO_TIMEOUT_S) from None
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        raise lost() from None
    close_all(fds)
    if frame.type is not FrameType.HELLO or fds:
        raise DaemonError("protocol", f"the peer began with {frame.type.name}", hint="is this smpd's socket?")
    return check_hello(decode(frame.body, c.Hello))


async def hold(channel: Channel, release: anyio.Event, *, task_status: anyio.abc.TaskStatus[Caller]) -> None:
    """Keep a connection until it is released."""
    async with Caller(channel, lost=lost) as caller:
        task_status.started(caller)
        await release.wait()


async def messages(exchange: Exchange, kind: type[T], timeout: float = ANSWER_TIMEOUT_S) -> AsyncGenerator[T, None]:
    """DATA until END, each within the time given."""
    while True:
        try:
            with anyio.fail_after(timeout):
                message = await message_of(exchange, kind)
        except TimeoutError:
            raise too_slow(timeout) from None
        except anyio.EndOfStream:
            return
        yield message


async def in_thread(call: Callable[..., T], *args: Any, undo: Callable[[T], object]) -> T:
    """Run a call in a thread to its end, and undo what it gave where nobody is there any more to take it.

    A task of asyncio can be cancelled by asyncio itself, by ``asyncio.timeout`` say, of which no scope of anyio keeps
    anything; what the thread opened would then never be closed.
    """
    lock, ended = threading.Lock(), threading.Event()
    begun = gone = False
    came: list[T] = []

    def run() -> T | None:
        nonlocal begun
        with lock:
            if gone:
                return None
            begun = True
        try:
            came.append(call(*args))
        finally:
            ended.set()
        return came[0]

    try:
        await anyio.to_thread.run_sync(run)
    except BaseException:
        with lock:
            gone = True
        if begun:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(ended.wait)
        for each in came:
            undo(each)
        raise
    return came[0]


async def message_of(exchange: Exchange, kind: type[T]) -> T:
    """The next DATA."""
    message, fds = await exchange.receive(kind)
    if fds:
        close_all(fds)
        raise DaemonError("protocol", "smpd sent descriptors, which a client never takes")
    return message
