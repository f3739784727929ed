"""Steps of a long request, the parts of an upload or the pages of a listing: each again, where a fault may pass.

The pause that a server asks for when it has no room (503, 429) holds all steps of all requests. smpd is told, so that
its other processes hold theirs.
"""

import random
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TypeVar

import anyio

from smp_proto.errors import SmpError
from smpd.links.pause import Pause

PATIENCE_S = 60.0  # a longer pause ends the request: smpd gives its place to another job
ATTEMPTS = 3
_AGAIN_S = 0.5  # the most before the third of them
T = TypeVar("T")

# Tells smpd of a pause, in seconds. Of the request that a task works for.
tell: ContextVar[Callable[[float], Awaitable[None]] | None] = ContextVar("tell", default=None)


class Steps:
    """The steps of all requests to one server."""

    def __init__(self) -> None:
        self._rng = random.Random()
        self._pause = Pause(self._rng)

    def hold(self, seconds: float) -> None:
        """Begin nothing for so long."""
        self._pause.extend(time.monotonic(), seconds)

    async def do(self, step: Callable[[], Awaitable[T]], attempts: int = ATTEMPTS) -> T:
        """Do a step; again where it failed, so often in all. One that must not be done twice has one attempt.

        Raises:
            SmpError: it failed for good, too often, or the server asks for more patience than we have.
        """
        failed = 0
        while True:
            if wait_s := self._pause.wait_s(time.monotonic()):
                await anyio.sleep(wait_s)
                continue  # it may have become longer
            try:
                answer = await step()
            except SmpError as error:
                if error.code == "remote_busy":
                    await self._busy(error)
                    continue
                failed += 1
                if not error.retryable or failed == attempts:
                    raise
                await anyio.sleep(_AGAIN_S * (failed - 1) * self._rng.random())
            else:
                self._pause.answered(time.monotonic())
                return answer

    async def _busy(self, error: SmpError) -> None:
        now = time.monotonic()
        pause_s = self._pause.busy(now, float(error.details.get("retry_after", 0.0)))
        if pause_s > PATIENCE_S or self._pause.spent:
            raise error
        if (told := tell.get()) is not None:
            await told(pause_s)
