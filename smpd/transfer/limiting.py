"""Who may ask a remote now: rates of bytes and of requests, and quiet hours, of each remote and of all together.

Whoever waits is served by the rank of the job, then in order, also across remotes: a limit on all is no race. What was
begun is never stopped. The hours are looked at anew all the time, so a clock that is set is no more than another time.
"""

import heapq
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from zoneinfo import ZoneInfo

import anyio

from smp_proto.control import LimitView
from smp_proto.errors import RemoteError
from smpd.config import Limits, RemoteLimits
from smpd.links import fetching
from smpd.schedules import Rule, Schedule, parse_entries
from smpd.transfer.lanes import Lane, rank
from smpd.transfer.tokens import Bucket

LOOK_S = 30.0  # the longest that anybody waits before the hours are looked at again
_QUIET_LOOK_S = 60.0
_ENOUGH_S = 1e-6  # of waiting, that a sum of floats may leave
ALL = ""


class _Scope:
    """The limits of one remote, or of all."""

    def __init__(self, schedule: Schedule, now: float, wall: float) -> None:
        self.schedule = schedule
        rule = schedule.at(wall)
        self.bytes = Bucket(rule.bytes_per_s, now)
        self.requests = Bucket(rule.requests_per_s, now)

    def follow(self, now: float, wall: float) -> Rule:
        """Go by what holds now."""
        rule = self.schedule.at(wall)
        self.bytes.set_rate(rule.bytes_per_s, now)
        self.requests.set_rate(rule.requests_per_s, now)
        return rule

    def take(self, count: float, requests: float, now: float) -> None:
        self.bytes.take(count, now)
        self.requests.take(requests, now)


class _Waiter:
    def __init__(self, name: str, count: float, requests: float) -> None:
        self.name = name
        self.count = count
        self.requests = requests
        self.ready = anyio.Event()


class Limiter:
    """The limits of a running daemon. Belongs to the event loop's thread.

    Args:
        limits: of all remotes together.
        remotes: of remotes by name, besides.
        clock: monotonic seconds, for rates.
        wall: seconds since 1970, for hours.
    """

    def __init__(
        self,
        limits: Limits = Limits(),  # noqa: B008 - it is frozen
        remotes: Mapping[str, RemoteLimits] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._scopes: dict[str, _Scope] = {}
        self._waiting: list[tuple[int, int, _Waiter]] = []
        self._number = 0
        self._changed = anyio.Event()  # others were taken up
        self._paying: Counter[str] = Counter()  # uploads that wait in between, by remote
        self.configure(limits, remotes or {})

    def configure(self, limits: Limits, remotes: Mapping[str, RemoteLimits]) -> None:
        """Take other limits up; who waits is looked at again. Debts are forgiven."""
        zone = ZoneInfo(limits.zone) if limits.zone else None
        now, wall = self._clock(), self._wall()
        tables: dict[str, RemoteLimits] = {ALL: limits, **remotes}
        self._scopes = {name: _Scope(_schedule(table, zone), now, wall) for name, table in tables.items()}
        self._changed.set()
        self._changed = anyio.Event()
        self._serve()

    @property
    def waiting(self) -> int:
        """How many wait to go on."""
        return len(self._waiting) + self._paying.total()

    async def admit(self, name: str, count: float, requests: float = 1.0) -> None:
        """Wait until a remote may be asked for so many bytes by so many requests."""
        if not self._waiting and not self._wait_s(name):
            self._take(name, count, requests)
            return
        waiter = _Waiter(name, count, requests)
        self._number += 1
        entry = (rank.get(), self._number, waiter)
        heapq.heappush(self._waiting, entry)
        try:
            while not waiter.ready.is_set():
                self._serve()
                with anyio.move_on_after(min(LOOK_S, self._wait_s(name))):  # 0 where it may by now
                    await waiter.ready.wait()
        except BaseException:
            if waiter.ready.is_set():
                self.correct(name, -count, -requests)
            else:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            self._serve()
            raise

    def correct(self, name: str, count: float, requests: float = 0.0) -> None:
        """More was asked for than was said, or less (negative)."""
        self._take(name, count, requests)
        if count < 0 or requests < 0:
            self._serve()

    async def sent(self, name: str, count: float) -> None:
        """So many bytes of an upload left: wait until more may."""
        self._take(name, count, 0.0)
        self._paying[name] += 1
        try:
            while wait_s := self._wait_s(name, requests=False):
                with anyio.move_on_after(min(LOOK_S, wait_s)):
                    await self._changed.wait()
        finally:
            self._paying[name] -= 1

    def limits_bytes(self, name: str) -> bool:
        """Whether there are hours in which bytes are limited."""
        return any(scope.schedule.limits_bytes for scope in self._of(name))

    def quiet(self, name: str) -> RemoteError | None:
        """Why a remote is not to be asked in these hours."""
        wall = self._wall()
        for scope in self._of(name):
            if scope.schedule.at(wall).quiet:
                left_s = scope.schedule.until_change(wall)
                until = scope.schedule.clock(wall + left_s) if left_s < math.inf else "the configuration is changed"
                return RemoteError(
                    "quiet_hours",
                    f"remote {name} is left alone until {until}",
                    hint="its jobs go on then; [limits] in the configuration says so",
                    details={"held": name, "retry_after": min(left_s, _QUIET_LOOK_S)},
                )
        return None

    def views(self) -> list[LimitView]:
        """The limits that hold now, those of all first."""
        now, wall = self._clock(), self._wall()
        views = []
        for name, scope in self._scopes.items():
            rule, left_s = scope.follow(now, wall), scope.schedule.until_change(wall)
            waiting = sum(name in (ALL, waiter.name) for _, _, waiter in self._waiting)
            waiting += self._paying[name] if name else self._paying.total()
            count, requests = (0.0 if math.isinf(rate) else rate for rate in (rule.bytes_per_s, rule.requests_per_s))
            if count or requests or rule.quiet:
                changes_s = left_s if left_s < math.inf else 0.0
                views.append(LimitView(name, count, requests, rule.quiet, changes_s, waiting))
        return views

    def _of(self, name: str) -> Iterator[_Scope]:
        yield self._scopes[ALL]
        if name in self._scopes:
            yield self._scopes[name]

    def _wait_s(self, name: str, *, requests: bool = True) -> float:
        now, wall = self._clock(), self._wall()
        longest = 0.0
        for scope in self._of(name):
            scope.follow(now, wall)
            longest = max(longest, scope.bytes.wait_s(now), scope.requests.wait_s(now) if requests else 0.0)
        return longest if longest > _ENOUGH_S else 0.0

    def _take(self, name: str, count: float, requests: float) -> None:
        now = self._clock()
        for scope in self._of(name):
            scope.take(count, requests, now)

    def _serve(self) -> None:
        """Let go, in order, who may: whose remote has to wait is passed over, and a limit on all holds all."""
        held: list[tuple[int, int, _Waiter]] = []
        blocked: set[str] = set()
        while self._waiting:
            entry = heapq.heappop(self._waiting)
            waiter = entry[2]
            if waiter.name in blocked or self._wait_s(waiter.name):
                blocked.add(waiter.name)
                held.append(entry)
                continue
            self._take(waiter.name, waiter.count, waiter.requests)
            waiter.ready.set()
        for entry in held:
            heapq.heappush(self._waiting, entry)


class RemoteLimiter:
    """The limiter as one remote sees it. What a lane may come to bring is reserved before the lane is taken."""

    def __init__(self, limiter: Limiter, name: str) -> None:
        self._limiter = limiter
        self._name = name
        self._reserved: dict[Lane, float] = {}

    async def lane(self, take: Callable[[], Awaitable[Lane]], most: float) -> Lane:
        """Wait until so many bytes may be asked for, and then for a lane to ask for them in."""
        await self._limiter.admit(self._name, most)
        try:
            lane = await take()
        except BaseException:
            self._limiter.correct(self._name, -most, -1.0)
            raise
        self._reserved[lane] = most
        return lane

    def release(self, lane: Lane) -> None:
        """The lane is given back; what was reserved for it and not used is free again."""
        if (reserved := self._reserved.pop(lane, None)) is not None:
            self._limiter.correct(self._name, -reserved, -1.0)

    async def asks(self, request: object, worker: int) -> None:
        """A process is about to be asked: in a lane by what was reserved for it, else once that may be."""
        match request:
            case fetching.Read(length=length, slot=slot) | fetching.Tail(length=length, slot=slot):
                self._spend(Lane(worker, slot), length, 1)
            case fetching.ReadMany(objects=objects, slot=slot):
                self._spend(Lane(worker, slot), sum(each.size for each in objects), len(objects))
            case _:
                await self._limiter.admit(self._name, 0.0)

    def _spend(self, lane: Lane, count: float, requests: int) -> None:
        reserved = self._reserved.pop(lane, None)  # there is none for another try
        known = (0.0, 0.0) if reserved is None else (reserved, 1.0)
        self._limiter.correct(self._name, count - known[0], requests - known[1])

    @property
    def limits_bytes(self) -> bool:
        """See :meth:`Limiter.limits_bytes`."""
        return self._limiter.limits_bytes(self._name)

    async def sent(self, count: float) -> None:
        """See :meth:`Limiter.sent`."""
        await self._limiter.sent(self._name, count)

    def spent(self, count: float) -> None:
        """So many bytes of an upload left, and nobody waits for that."""
        self._limiter.correct(self._name, count)

    def quiet(self) -> RemoteError | None:
        """See :meth:`Limiter.quiet`."""
        return self._limiter.quiet(self._name)


def _schedule(table: RemoteLimits, zone: ZoneInfo | None) -> Schedule:
    base = Rule(table.bytes_per_s or math.inf, table.requests_per_s or math.inf)
    return Schedule(base, parse_entries(table.times), zone)
