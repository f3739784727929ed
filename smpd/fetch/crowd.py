"""How many requests are under way at one server: the more, the longer an answer takes to begin.

Asking for a small object and taking it keeps this process busy for :data:`BUSY_S`. As many requests as fit the time
until an answer begins therefore keep it busy all the time; more would only wait for each other. A server may take
fewer, and refuse the others (503): half as many are under way then, and one more after a while of good answers.
"""

import heapq
import math
from contextvars import ContextVar
from types import TracebackType

import anyio

from smpd.links.fetching import NORMAL

BUSY_S = 0.5e-3  # of a core, for a request and its answer
FORGET_S = 10.0  # without a request for so long, the server may be nearer now, or farther
GOOD_ANSWERS = 16  # for each that is under way, before one more may be

# Of the job that a request is for: 0 is the most urgent. Of the request that a task works for.
rank: ContextVar[int] = ContextVar("rank", default=NORMAL)


class Crowd:
    """Who may ask now: an async context manager for the length of a request.

    Those who wait are served by the rank of their job, then in order.

    Args:
        least: how many at once where the server refuses none, if ``most`` allows that.
        most: how many at once at most.
    """

    def __init__(self, least: int, most: int) -> None:
        self._least = min(least, most)
        self._most = most
        self._waiting: list[tuple[int, int, anyio.Event]] = []
        self._number = 0
        self._inside = 0
        self._left_at = -math.inf
        self._quickest_s = math.inf
        self._worth = self._least  # as many as keep this process busy
        self._refused_at: float | None = None
        self._good = 0  # answers, since it last changed how many the server takes
        self.at_once = self._least

    async def __aenter__(self) -> None:
        if not self._inside and anyio.current_time() - self._left_at > FORGET_S:
            self._quickest_s = math.inf
        if self._inside < self.at_once:  # then nobody waits
            self._inside += 1
            return
        self._number += 1
        entry = rank.get(), self._number, anyio.Event()
        heapq.heappush(self._waiting, entry)
        try:
            await entry[2].wait()
        except BaseException:
            if entry[2].is_set():
                self._leave()
            else:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left_at = anyio.current_time()
        self._leave()

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
        self._let_in()

    def _leave(self) -> None:
        self._inside -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._inside < self.at_once:
            self._inside += 1
            heapq.heappop(self._waiting)[2].set()
