"""The first ranges of an object, fetched before anybody has room for their plaintext: while its job waits for the
processor, which runs one job at a time.

What waits is ciphertext, in lanes: half of them at most, a few for each object. They do not count for the window. So
whoever has the processor always gets lanes, and whoever comes next has a part of its object at once. While a job's
results are on their way nothing of it is left to fetch or to open: with one object ahead a fifth of two cores was idle
then. On a long line an object takes far longer to come than to be worked on, so there it takes many of them.
"""

import contextlib
from collections.abc import AsyncIterator

import anyio

from smp_proto.errors import SmpError
from smpd.transfer.lanes import RANGES_AHEAD, Lane
from smpd.transfer.pool import RemotePool
from smpd.transfer.source import Cut


class Arrival:
    """A range on its way into a lane, or there.

    Attributes:
        asked: how many bytes the remote was asked for; 0 where they did not come.
    """

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.asked = 0
        self.parked = False
        self._scope = anyio.CancelScope()
        self._done = anyio.Event()

    async def fetch(self, pool: RemotePool, cut: Cut, start: int, end: int) -> None:
        """Bring it. What goes wrong is found again, and told, by who asks for it then."""
        try:
            with self._scope, contextlib.suppress(SmpError):
                self.asked = await pool.read(self.lane, cut.path, cut.pin, start, end - start)
        finally:
            self._done.set()

    async def wait(self) -> int:
        """Wait until nothing is written to the lane any more, also when cancelled; returns ``asked``."""
        try:
            await self._done.wait()
        except BaseException:
            self._scope.cancel()
            with anyio.CancelScope(shield=True):
                await self._done.wait()
            raise
        return self.asked


class Ahead:
    """Fetches the first ranges of an object.

    Args:
        pool: of its remote.
        cut: the object.
    """

    def __init__(self, pool: RemotePool, cut: Cut) -> None:
        self._pool = pool
        self._cut = cut
        self._arrivals: dict[int, Arrival] = {}
        self._claimed = 0  # from this one on nobody has asked
        self._begun = False  # all that are to be fetched
        self._over = anyio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Ahead"]:
        """Fetch for the length of a block; what nobody asked for is given back at its end."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._run)
            try:
                yield self
            finally:
                group.cancel_scope.cancel()

    def claim(self, index: int) -> Arrival | None:
        """The range, if it was begun: its lane is the caller's from now on. They are asked for in order."""
        self._claimed = index + 1
        arrival = self._arrivals.pop(index, None)
        if arrival is not None:
            self._catch_up(index, arrival)
        if self._begun and not self._arrivals:
            self._over.set()
        return arrival

    async def _run(self) -> None:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._begin)
                await self._pool.closing_or(self._over)
                group.cancel_scope.cancel()
        finally:
            for index, arrival in self._arrivals.items():
                self._give(index, arrival)
            self._arrivals.clear()

    async def _begin(self) -> None:
        async with anyio.create_task_group() as group:
            for index in range(RANGES_AHEAD):
                segments = self._cut.cutting.first(index)
                if segments is None:
                    break
                span = self._cut.cutting.span(segments)
                if index < self._claimed or span[0] >= self._cut.here:
                    continue
                arrival = Arrival(await self._pool.take_ahead((self, index)))
                if index < self._claimed:
                    self._give(index, arrival)
                    continue
                self._arrivals[index] = arrival
                group.start_soon(self._fetch, index, arrival, *span)
        self._begun = True
        if not self._arrivals:
            self._over.set()

    async def _fetch(self, index: int, arrival: Arrival, start: int, end: int) -> None:
        await arrival.fetch(self._pool, self._cut, start, end)
        if index in self._arrivals:
            arrival.parked = True
            self._pool.park()

    def _catch_up(self, index: int, arrival: Arrival) -> None:
        if arrival.parked:
            self._pool.unpark()
        self._pool.caught_up((self, index))

    def _give(self, index: int, arrival: Arrival) -> None:
        self._catch_up(index, arrival)
        self._pool.give(arrival.lane)
