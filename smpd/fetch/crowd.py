"""How many requests are under way at one server: the more, the longer an answer takes to begin.

Asking for a small object and taking it keeps this process busy for :data:`BUSY_S`. As many requests as fit the time
until an answer begins therefore keep it busy all the time; more would only wait for each other. A server may take
fewer, and refuse the others (503): half as many are under way then, and one more after a while of good answers.
"""

import math
from types import TracebackType

import anyio

BUSY_S = 0.5e-3  # of a core, for a request and its answer
FORGET_S = 10.0  # without a request for so long, the server may be nearer now, or farther
GOOD_ANSWERS = 16  # for each that is under way, before one more may be


class Crowd:
    """Who may ask now: an async context manager for the length of a request; those who wait are served in order.

    Args:
        least: how many at once where the server refuses none, if ``most`` allows that.
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
        self._worth = self._least  # as many as keep this process busy
        self._refused_at: float | None = None
        self._good = 0  # answers, since it last changed how many the server takes
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
        """The server did what it was asked; its answer began so long after the request.

        The quickest counts, since others wait for this process, or for each other at the server.
        """
        if seconds < self._quickest_s:
            self._quickest_s = seconds
            self._worth = max(self._least, min(self._most, math.ceil(seconds / BUSY_S)))
        if self._refused_at is None:
            self._allow(self._worth)
            return
        self._good += 1
        more = self._good >= GOOD_ANSWERS * self.at_once
        self._good = 0 if more else self._good
        self._allow(self.at_once + more)

    def refused(self, asked: float) -> None:
        """The server has no room for a request that came in at ``asked``, of the event loop's clock.

        Those that came in before the last time say nothing new.
        """
        if self._refused_at is None or asked > self._refused_at:
            self._refused_at, self._good = anyio.current_time(), 0
            self._allow(max(1, self.at_once // 2))

    def _allow(self, count: int) -> None:
        self.at_once = min(count, self._worth)
        while self._given > self.at_once and self._room.value:
            self._room.acquire_nowait()
            self._given -= 1
        while self._given < self.at_once:
            self._room.release()
            self._given += 1
