"""Asking a fetch process: again where a fault may pass, and not for ever."""

import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

import anyio

from smp_proto.aio import Exchange, close_all
from smp_proto.errors import SmpError
from smpd.links import fetching
from smpd.transfer.workers import Worker

# A fetch process notices a silent server itself, by what moves, however long that takes. Whether the process is alive
# is seen by asking it for nothing.
LOOK_S = 60.0
HUNG_S = 60.0
ATTEMPTS = 3
BUSY_MOST = 16  # refusals of one request in a row, while others are answered: then it is not the server that is full
_AGAIN_S = 0.5  # the most before the third of them
T = TypeVar("T")


class Tries(NamedTuple, Generic[T]):
    """An answer, and how often it was asked for; pauses do not count."""

    answer: T
    made: int


async def persist(ask: Callable[[], Awaitable[T]]) -> Tries[T]:
    """Ask until it is answered: of faults that may pass two, and pauses, which cost time only, up to :data:`BUSY_MOST`.

    Raises:
        SmpError: what the remote said last. Being turned away is that only where nothing was tried.
    """
    failed = busy = 0
    last: SmpError | None = None
    while True:
        try:
            return Tries(await ask(), failed + 1)
        except SmpError as error:
            if "held" in error.details:
                raise last or error from None
            if error.code == "remote_busy" and busy < BUSY_MOST - 1:
                busy += 1
                continue  # the gate knows until when
            failed += 1
            if not error.retryable or failed == ATTEMPTS or error.code == "remote_busy":
                raise
            last = error
            await anyio.sleep(_AGAIN_S * (failed - 1) * random.random())


async def until_answered(worker: Worker, wait: Callable[[], Awaitable[T]]) -> T:
    """Wait for a message of a process for as long as it is alive. ``wait`` may be cancelled and called again.

    Raises:
        TimeoutError: it hangs.
    """
    while True:
        with anyio.move_on_after(LOOK_S):
            return await wait()
        await worker.caller.call(fetching.Hold(0.0), type(None), timeout=HUNG_S)


async def messages(worker: Worker, exchange: Exchange, kind: type[T]) -> AsyncGenerator[T, None]:
    """DATA messages until END.

    Raises:
        TimeoutError: the process hangs.
    """
    with contextlib.suppress(anyio.EndOfStream):
        while True:
            message, fds = await until_answered(worker, lambda: exchange.receive(kind))
            close_all(fds)
            yield message
