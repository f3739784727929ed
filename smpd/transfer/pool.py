"""The fetch processes of one remote, and the lanes through which its bytes arrive.

Each process has a ring of its own and only its own remote's secret, so one hostile server that breaks its fetch
process reads neither the bytes nor the credentials of another remote.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from smp_proto.control import ObjectInfo, RemoteHealth, RemoteView
from smp_proto.errors import SmpError
from smp_proto.sealed.layout import Layout
from smpd.links import fetching
from smpd.metrics.counting import Metrics
from smpd.transfer.asking import ATTEMPTS, BUSY_MOST, persist, until_answered
from smpd.transfer.bounds import believed_of_fetch
from smpd.transfer.counting import RemoteCounts
from smpd.transfer.cutting import Cutting
from smpd.transfer.joining import Joining, only_receives
from smpd.transfer.lanes import Lane, Lanes
from smpd.transfer.limiting import Limiter, RemoteLimiter
from smpd.transfer.openers import Openers
from smpd.transfer.pacing import Pacing
from smpd.transfer.packing import LONG_S, Packing
from smpd.transfer.processes import Processes
from smpd.transfer.questions import Questions
from smpd.transfer.settings import FetchSettings
from smpd.transfer.sizing import Sizing
from smpd.vault.remotes import Remote

__all__ = ["FetchSettings", "RemotePool"]

_FIRST_LANES = 4  # of each process: while one range is opened the others arrive
T = TypeVar("T")


class RemotePool(Questions):
    """All that smpd does with one remote goes through here.

    Attributes:
        openers: limits the threads that hash and open.
    """

    def __init__(
        self,
        remote: RemoteView,
        load: Callable[[str], Remote],
        settings: FetchSettings,
        group: TaskGroup,
        openers: Openers,
        changed: Callable[[RemoteHealth], None],
        metrics: Metrics,
        limiter: Limiter,
    ) -> None:
        self.openers = openers
        self.mode = remote.mode
        self.kind = remote.config.__struct_config__.tag
        self.settings = settings
        lanes = [Lane(w, s) for w in range(settings.processes) for s in range(settings.slots)]
        self.pacing = Pacing(len(lanes), _FIRST_LANES * settings.processes)
        packing, least = None, settings.processes
        if only_receives(remote.config):
            least = -(-self.pacing.window // settings.slots)
            packing = Packing(settings.processes, least)
        self.sizing = Sizing(settings.slot_bytes)
        self._lanes = Lanes(lanes, self.pacing, packing)
        processes = Processes(remote.name, load, settings, self._lanes, group)
        limits, counts = RemoteLimiter(limiter, remote.name), RemoteCounts(metrics, remote.name)
        super().__init__(remote.name, processes, limits, counts, settings.breaker, changed, group)
        self._joining = None
        if packing is not None:
            self._joining = Joining(packing, processes, self._lanes, self.pacing, settings.slots, self._closing, group)
        # Not those of processes that joined: they may not take part any more when somebody who has room needs a lane.
        self._sure_lanes = least * settings.slots
        self._ahead = anyio.CapacityLimiter(1)
        self._long = False  # whether the newest range took long

    @property
    def lanes(self) -> int:
        """How many ranges can be under way at once."""
        return self.settings.processes * self.settings.slots

    @property
    def lanes_in_use(self) -> int:
        """How many lanes are handed out."""
        return self._lanes.in_use

    def cutting(self, layout: Layout) -> Cutting:
        """How an object of this remote is cut into ranges."""
        return Cutting(layout, self.settings.slot_bytes, lambda: self.sizing.range_bytes)

    async def take(self, *, small: bool = False, brief: bool = False) -> Lane:
        """Wait for a free lane; those who wait are served by the priority of their job, then in order.

        Args:
            small: it is for many small objects, which are more work to ask for than to receive.
            brief: it is for few bytes.
        """
        return await self._limits.lane(partial(self._lanes.take, spread=small, brief=brief), self.settings.slot_bytes)

    async def take_ahead(self, who: object) -> Lane:
        """Wait for a free lane, to fetch before there is room for the plaintext.

        Half of the lanes that always take part may be taken so, and three quarters where ranges take long; whoever has
        room always gets others.

        Args:
            who: is told to :meth:`caught_up` when there is room, or the lane is given back.
        """
        self._ahead.total_tokens = max(1, self._sure_lanes * (3 if self._long else 2) // 4)
        await self._ahead.acquire_on_behalf_of(who)
        try:
            return await self.take()
        except BaseException:
            self.caught_up(who)
            raise

    def caught_up(self, who: object) -> None:
        """There is room now for what comes into a lane of :meth:`take_ahead`."""
        self._ahead.release_on_behalf_of(who)

    def give(self, lane: Lane) -> None:
        """Return a lane."""
        self._limits.release(lane)
        self._lanes.give(lane)

    def park(self) -> None:
        """What came into a lane waits there, for nobody knows how long."""
        self._lanes.park()

    def unpark(self) -> None:
        """It does not wait any more."""
        self._lanes.unpark()

    @contextlib.asynccontextmanager
    async def lane(self, *, brief: bool = False) -> AsyncIterator[Lane]:
        """A lane for the length of a block."""
        lane = await self.take(brief=brief)
        try:
            yield lane
        finally:
            self.give(lane)

    async def read(self, lane: Lane, path: str, pin: str, offset: int, length: int) -> int:
        """Fetch ``[offset, offset + length)`` into the lane's slot; returns how many bytes were asked for in all.

        A fault that may pass (a reset, a dead fetch process) is tried again here, so that it costs one range and
        not the job.

        Raises:
            SmpError: what the remote said, after :data:`ATTEMPTS` tries.
        """
        request = fetching.Read(path, pin, offset, length, lane.slot)
        tries = await persist(lambda: self._bring(lane, request, type(None), lambda _: length))
        self.counts.retried(tries.made - 1)
        return tries.made * length

    async def _bring(self, lane: Lane, request: fetching.Request, kind: type[T], size: Callable[[T], int | None]) -> T:
        """Ask for bytes into a lane's slot, and learn from how many came, if any did, and how long they took."""
        async with self._ask(self.processes.of(lane), request) as (worker, exchange):
            began = time.monotonic()  # what is waited for before the remote may be asked says nothing of the line
            self.pacing.started(began, self._lanes.under_way)
            try:
                answer = await until_answered(worker, lambda: exchange.result(kind))
            except BaseException as error:
                self.pacing.failed()
                if isinstance(error, SmpError) and error.code == "remote_busy":
                    self.pacing.busy(time.monotonic())
                elif isinstance(error, TimeoutError) or (isinstance(error, SmpError) and error.retryable):
                    self.sizing.lost()
                raise
            now, brought = time.monotonic(), size(answer)
        if brought is None:
            self.pacing.failed()
            return answer
        took = now - began
        self.counts.took(took)
        self.pacing.done(now, took, brought)
        if not (isinstance(answer, fetching.ManyRead) and answer.errors):
            self.sizing.came(took, brought)
        self.counts.fetched(brought)
        self._long = took >= LONG_S
        if self._joining is not None:
            self._joining.came(now, took)
        self.gate.note(None)
        return answer

    async def fetch_bytes(self, path: str, pin: str, start: int, end: int) -> bytes:
        """Bytes ``[start, end)`` of an object in private memory; for envelopes, not for payloads.

        The window does not hold them back: everything else of the object waits for them.
        """
        data = bytearray(end - start)
        view = memoryview(data)
        step = self.settings.slot_bytes
        for offset in range(start, end, step):
            length = min(step, end - offset)
            async with self.lane(brief=True) as lane:
                await self.read(lane, path, pin, offset, length)
                part = view[offset - start : offset - start + length]
                await anyio.to_thread.run_sync(self.processes.ring(lane).read, lane.slot, 0, part)
        return bytes(data)

    async def tail(self, path: str, length: int) -> tuple[ObjectInfo, bytes]:
        """What an object is, and its last ``length`` bytes (all, where it has fewer) in private memory."""
        async with self.lane(brief=True) as lane:
            length = min(length, self.settings.slot_bytes)
            request = fetching.Tail(path, length, lane.slot)
            host = self.processes.of(lane)
            asking = partial(self._call, host, request, ObjectInfo, answered=self.sizing.answered)
            info = (await persist(asking)).answer
            length = max(0, min(length, info.size))
            self.counts.fetched(length)
            with self.processes.ring(lane).slot(lane.slot) as slot:
                return info, bytes(slot[:length])

    async def read_many(self, lane: Lane, objects: Sequence[fetching.Whole]) -> tuple[int, dict[int, SmpError]]:
        """Fetch whole objects into the lane's slot, each to its place.

        What may pass is tried again here, as by :meth:`read`. Returns how many bytes were asked for in all, and what
        went wrong, by index.
        """
        asked = tries = busy = 0
        failed: dict[int, SmpError] = {}
        wanted = list(range(len(objects)))
        while wanted and tries < ATTEMPTS and busy < BUSY_MOST:
            errors = await self._read_many_once(lane, [objects[number] for number in wanted])
            if any("held" in error.details for error in errors.values()):  # nothing was asked
                tried = {number: error for number, error in failed.items() if error.code != "remote_busy"}
                return asked, dict(zip(wanted, errors.values(), strict=True)) | tried
            for index, number in enumerate(wanted):
                failed.pop(number, None)
                if index in errors:
                    failed[number] = errors[index]
                if number not in failed or failed[number].code != "remote_busy":
                    asked += objects[number].size
            again = [number for number in wanted if number in failed and failed[number].retryable]
            self.counts.retried(len(again))
            tried_again = any(failed[number].code != "remote_busy" for number in again)
            tries += tried_again  # how long the others wait the gate knows
            busy = busy + 1 if len(again) == len(wanted) and not tried_again else 0
            wanted = again
        return asked, failed

    async def _read_many_once(self, lane: Lane, objects: Sequence[fetching.Whole]) -> dict[int, SmpError]:
        request = fetching.ReadMany(list(objects), lane.slot)

        def brought(answer: fetching.ManyRead) -> int | None:
            came = [each.size for index, each in enumerate(objects) if index not in answer.errors]
            return sum(came) if came else None

        try:
            answer = await self._bring(lane, request, fetching.ManyRead, brought)
        except SmpError as error:
            return dict.fromkeys(range(len(objects)), error)
        errors = {index: believed_of_fetch(SmpError.from_body(body)) for index, body in answer.errors.items()}
        for failure in errors.values():
            self._name(failure)
            self.gate.note(failure)
        if any(failure.code == "remote_busy" for failure in errors.values()):
            self.pacing.busy(time.monotonic())
        return errors
