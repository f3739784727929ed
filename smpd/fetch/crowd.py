"""How many requests are under way at one server: the more, the longer an answer takes to begin.

Asking for a small object and taking it keeps this process busy for :data:`BUSY_S`. As many requests as fit the time
until an answer begins therefore keep it busy all the time; more would only wait for each other.
"""

import math
from types import TracebackType

import anyio

BUSY_S = 0.5e-3  # of a core, for a request and its answer
FORGET_S = 10.0  # without a request for so long, the server may be nearer now, or farther


class Crowd:
    """Who may ask now: an async context manager for the length of a request; those who wait are served in order.

    Args:
        least: how many at once in any case, if ``most`` allows that.
        most: how many at once at most.
    """

    def __init__(self, least: int, most: int) -> None:
        self._least = min(least, most)
        self._most = most
        self._room = anyio.Semaphore(self._least, fast_acquire=True)
        self._given = self._least  # what the semaphore was given in all
        self._inside = 0
        self._left_at = -math.inf
        self._quickest_s = math.inf
        self.at_once = self._least

    async def __aenter__(self) -> None:
        await self._room.acquire()
        if not self._inside and anyio.current_time() - self._left_at > FORGET_S:
            self._quickest_s = math.inf
        self._inside += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside -= 1
        self._left_at = anyio.current_time()
        if self._given > self.at_once:
            self._given -= 1
        else:
            self._room.release()

    def answered(self, seconds: float) -> None:
        """An answer began so long after its request.

        The quickest counts, since others wait for this process, or for each other at the server.
        """
        if seconds >= self._quickest_s:
            return
        self._quickest_s = seconds
        self.at_once = max(self._least, min(self._most, math.ceil(seconds / BUSY_S)))
        while self._given < self.at_once:
            self._room.release()
            self._given += 1
