"""The first ranges of an object, fetched before anybody has room for their plaintext: while its job waits for the
processor, which runs one job at a time.

What waits is ciphertext, in lanes: half of them at most, of few objects of a remote at a time. They do not count for
the window. So whoever has the processor always gets lanes, and whoever comes next has a part of its object at once.
While a job's results are on their way nothing of it is left to fetch or to open: with one object ahead a fifth of two
cores was idle then.
"""

import contextlib
from collections.abc import AsyncIterator

import anyio

from smp_proto.errors import SmpError
from smpd.transfer.lanes import RANGES_AHEAD, Lane
from smpd.transfer.pool import RemotePool
from smpd.transfer.source import Source


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

    async def fetch(self, pool: RemotePool, source: Source, start: int, end: int) -> None:
        """Bring it. What goes wrong is found again, and told, by who asks for it then."""
        try:
            with self._scope, contextlib.suppress(SmpError):
                self.asked = await pool.read(self.lane, source.path, source.info.pin, start, end - start)
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
        source: the object, whose envelope was checked.
    """

    def __init__(self, pool: RemotePool, source: Source) -> None:
        self._pool = pool
        self._source = source
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
        if arrival is not None and arrival.parked:
            self._pool.unpark()
        if self._begun and not self._arrivals:
            self._over.set()
        return arrival

    async def _run(self) -> None:
        async with self._pool.ahead:
            try:
                async with anyio.create_task_group() as group:
                    for index in range(min(RANGES_AHEAD, self._pool.lanes // 2)):
                        segments = self._source.cutting.first(index)
                        if segments is None:
                            break
                        span = self._source.opener.layout.span(segments)
                        if index < self._claimed or self._source.came(*span) is not None:
                            continue
                        lane = await self._pool.take()
                        if index < self._claimed:
                            self._pool.give(lane)
                            continue
                        self._arrivals[index] = Arrival(lane)
                        group.start_soon(self._fetch, index, self._arrivals[index], *span)
                self._begun = True
                if self._arrivals:
                    await self._pool.closing_or(self._over)
            finally:
                for arrival in self._arrivals.values():
                    self._give(arrival)
                self._arrivals.clear()

    async def _fetch(self, index: int, arrival: Arrival, start: int, end: int) -> None:
        await arrival.fetch(self._pool, self._source, start, end)
        if index in self._arrivals:
            arrival.parked = True
            self._pool.park()

    def _give(self, arrival: Arrival) -> None:
        if arrival.parked:
            self._pool.unpark()
        self._pool.give(arrival.lane)
