"""One sync at work: a task that lists, and a task that makes jobs and takes in how they ended."""

import contextlib
import math
import random
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import structlog

from smp_proto.control import FINAL_STATES, SyncView
from smp_proto.errors import ErrorBody, IntegrityError, NotFoundError, SmpError, StateError
from smpd.jobs.holding import is_held
from smpd.jobs.job import Job, new_job_id
from smpd.sync.after import Afterwards
from smpd.sync.listener import Listener
from smpd.sync.rules import TRIES, Rules, retry_delay
from smpd.sync.standing import Standing
from smpd.sync.store import Seen, SyncStore, wanted
from smpd.sync.world import World

_log = structlog.get_logger("smpd.sync")
_POLL_BACKOFF_MAX_S = 600.0
_TROUBLE_S = 5.0  # after the database or the audit log failed
_HOUR_S = 3600.0
_REST = 9.0  # times as long as a listing took that was made because of a hint
_ENDED_KEPT = 100_000

T = TypeVar("T")


class Watcher:
    """Works for one sync until it is cancelled.

    Args:
        standing: the sync as it was kept.
        store: what it knows.
        world: the daemon.
        changed: called when there is something new to see.
        clock: the monotonic clock.
        rng: the source of jitter.
    """

    def __init__(
        self,
        standing: Standing,
        store: SyncStore,
        world: World,
        *,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.standing = standing
        self.rules = Rules(standing.spec)
        self.paused = standing.state == "paused"
        self.error: ErrorBody | None = None
        self.listing = False
        self.gone = anyio.Event()  # set once nothing works for it any more
        self._store = store
        self._world = world
        self._changed = changed
        self._clock = clock
        self._rng = rng or random.Random()
        self._afterwards = Afterwards(standing, self.rules, store, world)
        self._next_poll = 0.0
        self._asked = False
        self._polled = standing.polled
        self._live = standing.listings > 0
        self._place = standing.place
        self._flying: set[int] = set()  # rows whose job has not ended
        self._ended: deque[tuple[int, Job | Seen]] = deque()  # jobs, and objects whose result is delivered
        self._done_at: deque[float] = deque(maxlen=_ENDED_KEPT)
        self._turn = False  # whether the next job is to be of a live object
        self._poll = anyio.Event()
        self._turned = anyio.Event()  # set at the end of a listing
        self._work = anyio.Event()
        self._listener = Listener(standing, self.rules, store, world, self)

    # ── asked from outside ──

    def poll_now(self) -> None:
        """List at once, or once more after the listing that is under way."""
        self._asked = True
        self._poll.set()

    def look(self) -> None:
        """Look again at what there is to do."""
        self._poll.set()
        self._work.set()
        self._listener.look()

    def found(self, fresh: int) -> None:
        """The source told of objects, of which so many versions are new."""
        if fresh:
            self._work.set()
        self._changed()

    async def list_now(self) -> None:
        """List, and return after a while that keeps the time spent on listings small."""
        began, turned = self._clock(), self._turned
        self.poll_now()
        await turned.wait()
        await anyio.sleep(min(self.standing.spec.every_s, _REST * (self._clock() - began)))

    def ended(self, row: int, job: Job) -> None:
        """The job of an object ended, perhaps not for the first time: a person may resume one, too."""
        self._ended.append((row, job))
        self._work.set()

    def view(self) -> SyncView:
        """The sync as shown; blocking."""
        number, now, wall = self.standing.number, self._clock(), time.time()
        found, oldest = self._store.counts(number)
        while self._done_at and self._done_at[0] < now - _HOUR_S:
            self._done_at.popleft()
        waits = 0.0 if self.paused or self.listing else wall + max(0.0, self._next_poll - now)
        return SyncView(
            spec=self.standing.spec,
            state="paused" if self.paused else "active",
            owner=self.standing.owner,
            created=self.standing.created,
            seen=sum(found.values()),
            waiting=found.get("new", 0) + found.get("settling", 0),
            in_flight=found.get("working", 0) + found.get("delivered", 0),
            done=found.get("done", 0) + found.get("away", 0),
            failed=found.get("failed", 0) + found.get("damaged", 0),
            quarantined=found.get("quarantined", 0),
            gone=found.get("gone", 0),
            lag_s=max(0.0, wall - oldest) if oldest else 0.0,
            hour_done=len(self._done_at),
            listing=self.listing,
            next_poll=waits,
            last_poll=self._polled,
            error=self.error or self._listener.error,
            told=self._listener.told,
            hints=self._listener.hints,
            ignored=self._listener.ignored,
        )

    # ── the tasks ──

    async def run(self) -> None:
        """Take up what was left, then list and work until cancelled."""
        await self._recover()
        async with anyio.create_task_group() as group:
            group.start_soon(self._list_on)
            group.start_soon(self._work_on)
            group.start_soon(self._listener.run)

    async def _list_on(self) -> None:
        failures = 0
        while True:
            self._poll = anyio.Event()
            pause = 0.0 if self._asked else max(0.0, self._next_poll - self._clock())
            with anyio.move_on_after(math.inf if self.paused else pause):
                await self._poll.wait()
                continue
            self.listing, self._asked = True, False
            try:
                await self._list()
                self.error, failures = None, 0
            except SmpError as error:
                failures += 1
                self.error = error.body()
                _log.warning("listing failed", sync=self.standing.spec.name, code=error.code, failures=failures)
            finally:
                self.listing = False
                self._turned.set()
                self._turned = anyio.Event()
                self._changed()
            every = self.standing.spec.every_s
            wait = every if not failures else max(every, min(_POLL_BACKOFF_MAX_S, every * 2.0 ** min(failures, 16)))
            self._next_poll = self._clock() + wait

    async def _list(self) -> None:
        """One listing, from where it was left; each batch is in the database before the next is taken."""
        number, rules = self.standing.number, self.rules
        await self._world.require(self.standing.owner, self.standing.spec)
        pool = await self._world.remote(rules.remote)
        settle = pool.mode == "standard"
        async with contextlib.aclosing(pool.list(rules.prefix, after=self._place)) as batches:
            async for batch in batches:
                if self.paused:
                    self._asked = True  # it goes on as soon as the sync does
                    return
                objects, place = wanted(batch, rules.wants), batch[-1].path
                note = partial(self._store.note, settle=settle, live=self._live)
                if await _thread(note, number, objects, place):
                    self._work.set()
                self._place = place
        await _thread(self._store.listed, number)
        self._place, self._live, self._polled = "", True, time.time()
        self._work.set()
        while await _thread(self._store.forgetting.step, number):
            pass  # others get their turn

    async def _work_on(self) -> None:
        while True:
            self._work = anyio.Event()
            pause = math.inf
            try:
                again = await self._take_in_all()
                if not self.paused:
                    await self._start_what_fits()
                    pause = await _thread(self._store.next_due, self.standing.number) - self._clock()
                    if len(self._flying) >= self.standing.spec.max_in_flight:
                        pause = math.inf
                pause = min(pause, _TROUBLE_S) if again else pause
            except SmpError as error:  # the disk, or the audit log: what was to be done is done later
                self._trouble(error)
                pause = _TROUBLE_S
            with anyio.move_on_after(max(0.0, pause)):
                await self._work.wait()

    def _trouble(self, error: SmpError) -> None:
        _log.error("sync cannot go on", sync=self.standing.spec.name, code=error.code)

    async def _take_in_all(self) -> bool:
        """Take in the jobs that ended; whether some could not be, which keeps none of the others out."""
        later = list[tuple[int, Job | Seen]]()
        while self._ended:
            row, ended = self._ended.popleft()
            try:
                await self._take_in(row, ended)
            except SmpError as error:
                self._trouble(error)
                later.append((row, ended))
        self._ended.extend(later)
        return bool(later)

    async def _start_what_fits(self) -> None:
        while not self.paused and len(self._flying) < self.standing.spec.max_in_flight:
            # Back-fill and live objects take turns, so that neither waits for the end of the other.
            self._turn = not self._turn
            look = partial(self._store.next, live=self._turn)
            found = await _thread(look, self.standing.number, self._clock())
            if found is None:
                return
            await self._start(found)

    async def _start(self, found: Seen) -> None:
        """Give an object its job, or let the one it has try again.

        One whose result is delivered needs none, however long ago that was: at most it is to be deleted or moved yet.
        """
        with anyio.CancelScope(shield=True):
            try:
                if found.delivered:
                    await self._begin(found, found.after)
                    self._ended.append((found.number, found))
                    self._work.set()
                elif not found.job or not await self._resumed(found):
                    await self._submit(found)
            except SmpError as error:
                self._flying.discard(found.number)
                if error.retryable:
                    await _thread(self._store.again, found.number)
                    raise
                await self._failed(found.number, error.body())

    async def _resumed(self, found: Seen) -> bool:
        """Whether the object's job goes on."""
        await self._begin(found, found.job)
        try:
            await self._world.resume(found.job)
        except (NotFoundError, IntegrityError):  # it is not there, or its record is damaged, so that it never runs
            return False
        except StateError:
            job = await self._world.job(found.job)
            if job.state == "cancelled":
                return False
            if job.state in FINAL_STATES:
                self.ended(found.number, job)
        return True

    async def _submit(self, found: Seen) -> None:
        """Make a job. The row names it before there is one: see :meth:`_recover`.

        A version that came back after another had its result, or after it was deleted or moved, has a job of its own.
        """
        key = f"sync/{self.standing.number}/{found.version.hex()}/{found.tries}"
        key += f"/{found.after}" if found.after else ""
        job_id = new_job_id(time.time())
        await self._begin(found, job_id)
        sealed = (await self._world.remote(self.rules.remote)).mode != "standard"
        spec, priority = self.rules.job(found.path, found.pin, sealed=sealed), self.standing.spec.priority
        job = await self._world.submit(spec, owner=self.standing.owner, key=key, priority=priority, job_id=job_id)
        if job.id != job_id:  # this version had its job before
            await self._begin(found, job.id)
            await self._look_at(found.number, job.id)

    async def _begin(self, found: Seen, job_id: str) -> None:
        await _thread(self._store.begin, found.number, found.version, job_id)
        self._flying.add(found.number)

    async def _look_at(self, row: int, job_id: str) -> None:
        """See whether a job ended before anybody listened for that."""
        job = await self._world.job(job_id)
        if job.state in FINAL_STATES:
            self.ended(row, job)

    async def _recover(self) -> None:
        """Find the jobs again that the daemon stopped in the middle of."""
        for found in await _thread(self._store.in_state, self.standing.number, ["working", "delivered"]):
            self._flying.add(found.number)
            try:
                await self._look_at(found.number, found.job)
            except NotFoundError:
                # Of a working object: the daemon died between naming the job and keeping it.
                self._flying.discard(found.number)
                if found.state == "delivered" and not found.delivered:
                    await _thread(self._store.finish, found.number, "done")
                else:
                    await _thread(self._store.again, found.number)
            except IntegrityError as error:
                # Its record is damaged, which keeps no other out. What it delivered, if it did, is for a person to see.
                self._flying.discard(found.number)
                if found.state == "delivered":
                    await _thread(self._store.fail, found.number, "quarantined", error.body())
                else:
                    await self._failed(found.number, error.body())

    async def _take_in(self, row: int, ended: Job | Seen) -> None:
        """An object's turn ends, by its job or by what was to come after it."""
        if isinstance(ended, Seen):
            await self._finish(row, ended.after, ended.path, ended.pin)
        else:
            await self._take_in_job(row, ended)
        self._flying.discard(row)
        self._changed()

    async def _take_in_job(self, row: int, job: Job) -> None:
        code = job.error.code if job.error else ""
        if job.state == "done":
            spec: Any = job.spec
            await _thread(self._store.deliver, row, job.id)
            if await self._finish(row, job.id, str(spec.source).partition(":")[2], spec.pin):
                self._done_at.append(self._clock())
        elif code in ("no_such_object", "source_changed"):
            await self._left(row, job.error)
        elif code == "target_changed":  # somebody else's object is there: whether it is replaced is for a person to say
            await _thread(self._store.fail, row, "quarantined", job.error)
        elif job.state == "failed":
            await self._failed(row, job.error)
        else:
            error = job.error or ErrorBody("cancelled", "its job was cancelled")
            await _thread(self._store.fail, row, "quarantined", error)

    async def _finish(self, row: int, job: str, path: str, pin: str) -> bool:
        """An object's result is delivered: do what is to be done afterwards; whether that could be done."""
        error = await self._afterwards.do(row, job, path, pin)
        if error is not None:
            await self._failed(row, error)
            return False
        await _thread(self._store.finish, row, "done" if self.standing.spec.after == "keep" else "away")
        return True

    async def _left(self, row: int, error: ErrorBody | None) -> None:
        """It left, or was replaced: what is there now is another version, and the next listing names it.

        A server may go on naming what it does not have. Then it waits for a person.
        """
        if await _thread(self._store.tries, row) + 1 >= TRIES:
            await _thread(self._store.fail, row, "quarantined", error)
        else:
            await _thread(self._store.finish, row, "gone")

    async def _failed(self, row: int, error: ErrorBody | None) -> None:
        """It is tried again later, and left to a person in the end; but not for a remote that was not even asked."""
        tries, counted = await _thread(self._store.tries, row), error is None or not is_held(error)
        if counted and tries + 1 >= TRIES:
            await _thread(self._store.fail, row, "quarantined", error)
            return
        delay = retry_delay(tries + 1, self._rng)
        due = self._clock() + delay
        await _thread(partial(self._store.fail, due=due, delay=delay, counted=counted), row, "failed", error)


async def _thread(call: Callable[..., T], *arguments: object) -> T:
    return await anyio.to_thread.run_sync(call, *arguments)
