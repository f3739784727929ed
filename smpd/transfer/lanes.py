"""The lanes of one remote: handed out by priority, then in order, and no more at once than the window allows.

What is handed out is a lane of the fetch process that has the fewest in use, and of its free ones the one that was used
last: its memory may still be in the processor's cache. Not all processes need take part (:mod:`smpd.transfer.packing`).
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import NamedTuple

import anyio

from smpd.links.fetching import NORMAL
from smpd.transfer.pacing import Pacing
from smpd.transfer.packing import Packing

RANGES_AHEAD = 4  # of an object

# Of the job that a task works for: 0 is the most urgent. The runner sets it for all that an attempt does.
rank: ContextVar[int] = ContextVar("rank", default=NORMAL)


class Lane(NamedTuple):
    """A slot of one fetch process's ring, held by one range at a time."""

    worker: int
    slot: int


class _Waiter:
    def __init__(self, *, spread: bool, brief: bool) -> None:
        self.spread = spread
        self.brief = brief
        self.ready = anyio.Event()
        self.lane: Lane | None = None


class Lanes:
    """All lanes of a remote. Belongs to the event loop's thread.

    Args:
        lanes: all there are.
        pacing: says how many may be in use at once.
        packing: says how many processes take part; without it, all of them.

    Attributes:
        given: is told of each lane that comes back.
    """

    def __init__(self, lanes: Iterable[Lane], pacing: Pacing, packing: Packing | None = None) -> None:
        self._free: dict[int, list[Lane]] = {}
        for lane in lanes:
            self._free.setdefault(lane.worker, []).append(lane)
        self._used: Counter[int] = Counter()
        self._brief: set[Lane] = set()
        self._parked = 0
        self._pacing = pacing
        self._packing = packing
        self._waiting: list[tuple[int, int, _Waiter]] = []
        self._number = 0
        self._idle = anyio.Event()
        self.given: Callable[[Lane], None] = lambda lane: None

    @property
    def in_use(self) -> int:
        """How many are handed out."""
        return self._used.total()

    @property
    def under_way(self) -> int:
        """How many of them the window is for: not those that are parked, nor brief ones."""
        return self._used.total() - self._parked - len(self._brief)

    def park(self) -> None:
        """What came into a lane waits in it: another range may be under way meanwhile."""
        self._parked += 1
        self.wake()

    def unpark(self) -> None:
        """A lane that was parked is used again."""
        self._parked -= 1

    def used_by(self, worker: int) -> bool:
        """Whether a lane of this fetch process is handed out."""
        return self._used[worker] > 0

    async def take(self, *, spread: bool = False, brief: bool = False) -> Lane:
        """Wait for a free lane. Those who wait are served by the rank of their job, and then in order.

        Args:
            spread: its process has more to do than to receive, so all of them take part.
            brief: for a request that is answered by few bytes: the window, which is for what fills the line, does not
                hold it back where a lane is free.
        """
        if (brief or not self._waiting) and (free := self._open_to(spread=spread, brief=brief)):
            return self._hand_out(free, brief=brief)
        waiter = _Waiter(spread=spread, brief=brief)
        self._number += 1
        heapq.heappush(self._waiting, (rank.get(), self._number, waiter))
        try:
            await waiter.ready.wait()
        except BaseException:
            if waiter.lane is not None:
                self.give(waiter.lane)
            else:
                self._waiting = [each for each in self._waiting if each[2] is not waiter]
                heapq.heapify(self._waiting)
            raise
        assert waiter.lane is not None
        return waiter.lane

    def give(self, lane: Lane) -> None:
        """Return a lane."""
        self._free[lane.worker].append(lane)
        self._used[lane.worker] -= 1
        self._brief.discard(lane)
        self.wake()
        if not self.in_use:
            self._idle.set()
        self.given(lane)

    def wake(self) -> None:
        """Hand out what the window allows; it may have grown."""
        while self._waiting:
            first = self._waiting[0][2]
            free = self._open_to(spread=first.spread, brief=first.brief)
            if not free:
                return
            waiter = heapq.heappop(self._waiting)[2]
            waiter.lane = self._hand_out(free, brief=waiter.brief)
            waiter.ready.set()

    def _open_to(self, *, spread: bool, brief: bool) -> list[int]:
        """The processes that have a lane for it; none where the window is full."""
        if self.under_way >= self._pacing.window and not brief:
            return []
        count = len(self._free) if self._packing is None or spread else self._packing.used
        return [worker for worker, free in self._free.items() if free and worker < count]

    def _hand_out(self, workers: Iterable[int], *, brief: bool) -> Lane:
        worker = min(workers, key=self._used.__getitem__)
        self._used[worker] += 1
        lane = self._free[worker].pop()
        if brief:
            self._brief.add(lane)
        return lane

    async def until_idle(self) -> None:
        """Wait until all lanes are back."""
        while self.in_use:
            self._idle = anyio.Event()
            await self._idle.wait()
