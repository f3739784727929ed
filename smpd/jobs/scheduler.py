"""What runs, when, and what becomes of it.

Jobs start by priority, then by order of submission, at most ``running_max`` at once. A change is durable before it is
announced. No clock but the monotonic one is asked. A job's fault ends that attempt, never the scheduler; stopping the
daemon leaves its running jobs ``running`` in the journal, and the next start recovers them.
"""

import heapq
import math
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from operator import itemgetter
from typing import Any, TypeVar

import anyio
import anyio.abc

from smp_proto.control import FINAL_STATES, Priority, Result
from smp_proto.errors import IntegrityError, SmpError, StateError
from smpd.jobs.failures import Pace, backoff_s, cause
from smpd.jobs.holding import PATIENT_CODES, Holding, Short, is_held
from smpd.jobs.job import Job, Progress
from smpd.jobs.journal import Journal
from smpd.jobs.persisting import Persisting
from smpd.jobs.queue import Queue
from smpd.jobs.states import MOVES, Move

T = TypeVar("T")

_ASKED_AGAIN = ("disk_full", "audit_broken", "program_replaced")  # nobody is queued again while it is as it was
_TOGETHER = 32  # jobs whose wait is over
FINAL_MAX_S = 60.0

# Returns once everything is delivered: the result, or the job as it ended where that was written down with its results.
Runner = Callable[[Job, Progress], Awaitable[Result | Job]]

# Says why a job had better not begin: no room on this box, or a remote that is down; or nothing. Blocking.
Room = Callable[[Job], SmpError | None]


class _Run:
    """A job that has a slot."""

    def __init__(self, priority: Priority) -> None:
        self.priority = priority
        self.scope = anyio.CancelScope()
        self.finished = anyio.Event()
        self.asked: Move | None = None  # what to do once it has stopped
        self.moved: Job | None = None  # what somebody made of it between its end and the end of this


class Scheduler:
    """Runs the jobs of a journal.

    Args:
        journal: the durable table.
        runner: does one attempt of a job; it is cancelled to pause, cancel or stop it, and shields what must not be
            torn. Delivering must be idempotent by job: after a crash the same job is run again.
        running_max: jobs at once; a critical job gets one more slot when these are taken.
        attempts: tries of one job before a retryable error is final.
        backoff_base_s, backoff_max_s: full jitter below ``base · 2^(attempt - 1)``, at most ``max``.
        on_change: called after a change is durable; with a job's progress, and the job as it began, when it goes on.
        on_final: called once a final state is durable and announced. A crash in between loses the call, so what it
            tidies must also be tidied at start.
        on_fault: called with a job's id and what was unexpected, for the log.
        clock: the monotonic clock.
        rng: the source of jitter.
        room: asked before a job starts, and while it waits for room or for a remote.
        hold_max_s: how long a job waits for a remote before it fails.
        on_short: called with each job that waits for room, at the start too.
    """

    def __init__(
        self,
        journal: Journal,
        runner: Runner,
        *,
        running_max: int,
        attempts: int,
        backoff_base_s: float,
        backoff_max_s: float,
        on_change: Callable[[Job, Progress | None], None],
        on_final: Callable[[Job], Awaitable[None]],
        on_fault: Callable[[str, Exception], None],
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        room: Room = lambda job: None,
        hold_max_s: float = math.inf,
        on_short: Callable[[Job], None] = lambda job: None,
    ) -> None:
        self._journal = journal
        self._runner = runner
        self._pace = Pace(running_max, attempts, backoff_base_s, backoff_max_s)
        self._on_change = on_change
        self._on_final = on_final
        self._on_fault = on_fault
        self._clock = clock
        self._rng = rng or random.Random()
        self._room = room
        self._holding = Holding(hold_max_s, clock, on_short)
        self._queue = Queue()
        self._waiting: dict[str, float] = {}  # due, by the clock
        self._unmoved: set[str] = set()  # of those, whose wait is over, and the disk does not take it
        self._running: dict[str, _Run] = {}
        self._persisting = Persisting(on_fault)
        self._lock = anyio.Lock(fast_acquire=True)  # held while a job without a slot moves, or gets one
        self._wake = anyio.Event()
        self.draining = False  # whether nothing is started any more

    # ── asked from outside ─────────────────────────────────────────────────────────────────────────────

    def submitted(self, job: Job) -> None:
        """A job was added to the journal. Call on the event loop; not from a thread."""
        self._track(job)

    def configure(self, pace: Pace, hold_max_s: float) -> None:
        """Go on with other limits; what runs beyond them goes on."""
        self._pace = pace
        self._holding.limit_s = hold_max_s
        self.poke()

    def counts(self) -> tuple[int, int, int]:
        """How many jobs run, are queued, and wait; belongs to the event loop."""
        return len(self._running), len(self._queue), len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether the disk is too full for what became of a job that runs; belongs to the event loop."""
        return self._persisting.full

    @property
    def short(self) -> Short:
        """The jobs that wait for room; from any thread."""
        return self._holding.short

    async def drain(self, limit_s: float) -> int:
        """Start nothing any more, and let what runs end, for so long at most; returns how many jobs run still."""
        self.draining = True
        with anyio.move_on_after(limit_s):
            while self._running:
                await next(iter(self._running.values())).finished.wait()
        return len(self._running)

    def poke(self) -> None:
        """Look again at what can run."""
        self._wake.set()

    def release(self) -> None:
        """A remote is back: look at the jobs that wait for one. Call on the event loop."""
        for job_id in self._holding.held():
            if job_id in self._waiting:
                self._waiting[job_id] = self._clock()
        self.poke()

    async def pause(self, job_id: str) -> Job:
        """Pause a job; a running one is stopped first and keeps what it spooled.

        Raises:
            StateError: ``wrong_state``.
            NotFoundError: ``no_such_job``.
        """
        return await self._act(job_id, "pause")

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job that has not ended; a running one is stopped first, and what it spooled goes.

        Raises:
            StateError: ``wrong_state``, also when it was quarantined while it was being stopped.
            NotFoundError: ``no_such_job``.
        """
        return await self._act(job_id, "cancel")

    async def resume(self, job_id: str) -> Job:
        """Queue a paused, failed or quarantined job again, with all its attempts. Errors as :meth:`pause`."""
        return await self._act(job_id, "resume")

    async def _act(self, job_id: str, move: Move) -> Job:
        while True:
            async with self._lock:
                run = self._running.get(job_id)
                ended = run is not None and (await self._thread(self._journal.get, job_id)).state in FINAL_STATES
                if run is None or (move not in MOVES["running"] and not ended):
                    job = await self._thread(self._journal.move, job_id, move)
                    if (ending := self._running.get(job_id)) is not None:
                        ending.moved = job  # it ended in between, and has its slot for a moment yet
                    else:
                        self._track(job)
                    break
            if ended:  # whoever was told may act at once
                await run.finished.wait()
                continue
            run.asked = move
            run.scope.cancel()
            await run.finished.wait()
            job = await self._thread(self._journal.get, job_id)
            if job.state == MOVES["running"][move]:
                return job
            if job.state == "quarantined":  # news to whoever asked: they are to see it before it can go
                raise StateError(
                    "wrong_state",
                    f"job {job_id} is quarantined: its data was found to be bad while it was stopped",
                    hint=f"see why with: smpctl job show {job_id}; cancel it again to be rid of it",
                    details={"state": job.state, "possible": ["resume", "cancel"]},
                )
            # It ended otherwise, or someone asked otherwise: the next round makes the move, or says why not.
        await self._announce(job)
        return job

    # ── the loop ───────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Recover, then run jobs until cancelled.

        Raises:
            ResourceError: when the journal cannot be read at start.
        """
        try:
            async with anyio.create_task_group() as group:
                await self._load()
                while True:
                    self._wake = anyio.Event()  # before looking, so that nothing is missed in between
                    async with self._lock:
                        await self._take_due()
                        self._start_what_fits(group)
                    pause_s = min(self._waiting.values(), default=math.inf) - self._clock()
                    with anyio.move_on_after(max(0.0, pause_s)):
                        await self._wake.wait()
        finally:
            for run in self._running.values():
                run.finished.set()
            self._running.clear()

    async def _load(self) -> None:
        async with self._lock:
            recovered = await self._thread(self._journal.recover)
            for job in await self._thread(self._journal.list, ("queued", "waiting")):
                self._track(job)
                if job.id in recovered:
                    self._tell(job)

    async def _take_due(self) -> None:
        """Some of those that waited longest: together they share syncs, and in between others get the lock."""
        now = self._clock()
        due = heapq.nsmallest(_TOGETHER, (each for each in self._waiting.items() if each[1] <= now), key=itemgetter(1))
        if not due:
            return
        async with anyio.create_task_group() as group:
            for job_id, _ in due:
                group.start_soon(self._take_one, job_id, now)

    async def _take_one(self, job_id: str, now: float) -> None:
        try:
            job = await self._thread(self._due, job_id)
            if isinstance(job, SmpError):
                self._waiting[job_id] = self._holding.next_look(job, now, len(self._waiting), self._rng)
                return
        except SmpError as error:
            if job_id not in self._unmoved:
                self._on_fault(job_id, error)
            if error.retryable:
                self._unmoved.add(job_id)
                self._waiting[job_id] = self._holding.next_look(error, now, len(self._waiting), self._rng)
            else:
                self._unmoved.discard(job_id)
                del self._waiting[job_id]
                self._holding.forget(job_id)
        else:
            self._track(job)
            self._tell(job)

    def _due(self, job_id: str) -> Job | SmpError:
        """Queue a job again whose wait is over; or why it goes on waiting."""
        job = self._journal.get(job_id)
        error = job.error
        if error is not None and (error.code in _ASKED_AGAIN or is_held(error)):
            short = self._room(job)
            if short is None:
                if error.details.get("held"):  # else it was not a remote, and may go on
                    self._holding.forget(job_id)  # what comes later is another outage
            elif self._holding.waits(job_id, short):
                return short
        kept = error if error is not None and error.code == "disk_full" else None  # it still says how much is needed
        return self._journal.move(job_id, "due", error=kept)

    def _start_what_fits(self, group: anyio.abc.TaskGroup) -> None:
        while not self.draining and (first := self._queue.first) is not None:
            job_id, priority = first
            if len(self._running) >= self._pace.running_max + (priority == "critical"):
                return
            self._queue.discard(job_id)
            self._running[job_id] = _Run(priority)
            group.start_soon(self._attempt, job_id)

    def _track(self, job: Job) -> None:
        """Note where a job without a slot belongs."""
        if job.id in self._running:
            return  # read before it got its slot
        self._queue.discard(job.id)
        self._waiting.pop(job.id, None)
        self._unmoved.discard(job.id)
        self._holding.note(job)
        if job.state == "queued":
            self._queue.put(job)
        elif job.state == "waiting":
            # One boot's processes share the monotonic clock; after a reboot ``due`` says nothing, hence the bounds.
            now = self._clock()
            self._waiting[job.id] = now + min(max(job.due - now, 0.0), job.delay)
        self.poke()

    # ── one attempt ────────────────────────────────────────────────────────────────────────────────────

    async def _attempt(self, job_id: str) -> None:
        run = self._running[job_id]
        job: Job | None = None
        try:
            job = await self._attempt_in(run, job_id)
        except StateError:
            pass  # someone moved it before we knew of it
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._keep_progress(job_id)
            raise
        except Exception as error:  # noqa: BLE001 - a damaged record, or a fault of ours: it stays, the others go on
            self._on_fault(job_id, error)
        finally:
            del self._running[job_id]
            if (now := run.moved or job) is not None:
                self._track(now)
            run.finished.set()
            self.poke()

    async def _attempt_in(self, run: _Run, job_id: str) -> Job:
        outcome: Result | Job | None = None
        failure: Exception | None = None
        started: Job | None = None
        with run.scope:
            found = await self._persisting.persist(partial(self._start, job_id), job_id)
            if isinstance(found, SmpError) and run.asked is None and self._holding.waits(job_id, found):
                delay = self._holding.again_s(found)
                held = await self._settle(job_id, "hold", error=found.body(), delay=delay, due=self._clock() + delay)
                await self._announce(held)
                return held
            started = await self._settle(job_id, "start") if isinstance(found, SmpError) else found
            await self._announce(started)
            progress = self._progress(started)
            try:
                outcome = await self._runner(started, progress)
            except Exception as error:  # noqa: BLE001 - whatever a job does, it ends here
                failure = error
        if isinstance(outcome, Job):
            job = outcome
        elif outcome is not None:
            job = await self._settle(job_id, "succeed", result=outcome)
        elif failure is not None and started is not None:
            job = await self._failed(run, started, failure)
        else:  # stopped, perhaps before it started
            assert run.asked is not None
            job = await self._settle(job_id, run.asked)
        await self._announce(job)
        return job

    def _start(self, job_id: str) -> Job | SmpError:
        """In a thread: start a job, or say why it had better not start."""
        return self._journal.start(job_id, self._room)

    async def _failed(self, run: _Run, job: Job, failure: Exception) -> Job:
        """Make the move that an attempt's exception calls for."""
        error, expected = cause(job.id, failure)
        if not expected:
            self._on_fault(job.id, failure)
        if isinstance(error, IntegrityError):
            return await self._settle(job.id, "quarantine", error=error.body())
        if run.asked is not None:  # what broke, broke because it was stopped
            return await self._settle(job.id, run.asked)
        waits = self._holding.waits(job.id, error)
        if not is_held(error):
            self._holding.forget(job.id)
        may_pass = error.retryable and job.attempt < self._pace.attempts and not is_held(error)
        if may_pass or (waits and (error.retryable or error.code in PATIENT_CODES)):
            delay = backoff_s(job.attempt, error, self._pace, self._rng)
            facts = {"delay": delay, "due": self._clock() + delay, "counted": not waits}
            return await self._settle(job.id, "retry", error=error.body(), **facts)
        return await self._settle(job.id, "fail", error=error.body())

    def _progress(self, job: Job) -> Progress:
        def changed() -> None:
            self._tell(job, progress)

        progress = Progress(job, changed)
        self._journal.track(job.id, progress)
        return progress

    # ── the journal, and who is told ───────────────────────────────────────────────────────────────────

    async def _settle(self, job_id: str, move: Move, **facts: Any) -> Job:
        """Move a job that has a slot."""
        return await self._persisting.persist(partial(self._journal.move, job_id, move, **facts), job_id)

    async def _keep_progress(self, job_id: str) -> None:
        """Note what a job moved that the daemon stops at; it stays ``running`` and is recovered."""
        try:
            await self._thread(self._journal.keep_progress, job_id)
        except SmpError as error:
            self._on_fault(job_id, error)

    async def _announce(self, job: Job) -> None:
        self._tell(job)
        if job.state in FINAL_STATES:
            with anyio.move_on_after(FINAL_MAX_S, shield=True):
                try:
                    await self._on_final(job)
                except Exception as error:  # noqa: BLE001 - the job has ended well; its tidying has not
                    self._on_fault(job.id, error)

    def _tell(self, job: Job, progress: Progress | None = None) -> None:
        try:
            self._on_change(job, progress)
        except Exception as error:  # noqa: BLE001 - a listener's fault is not the job's
            self._on_fault(job.id, error)

    async def _thread(self, call: Callable[..., T], *args: object) -> T:
        return await anyio.to_thread.run_sync(call, *args)
