"""What runs, in which order, and what becomes of it."""

import random
import threading
from collections import defaultdict
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import msgspec
import pytest

from smp_proto.control import Result, Transfer
from smp_proto.errors import (
    IntegrityError,
    NotFoundError,
    RemoteError,
    ResourceError,
    SmpError,
    StateError,
)
from smpd.jobs import holding, persisting
from smpd.jobs.failures import RETRY_AFTER_MAX_S
from smpd.jobs.holding import LOOK_AGAIN_S
from smpd.jobs.scheduler import Scheduler

DONE = Result(vault_id="v")
BUSY = RemoteError("remote_busy", "slow down")


class Bench:
    """A scheduler on a real journal; each job does what its script says."""

    def __init__(self, store, **more) -> None:
        self.store = store
        self.now = 100.0
        self.events: list[tuple[str, str]] = []
        self.progress: list[tuple[int, str]] = []
        self.finals: list[tuple[str, str]] = []
        self.faults: list[tuple[str, Exception]] = []
        self.started: list[str] = []
        self.scripts: dict[str, list] = defaultdict(list)
        self.gates: dict[str, anyio.Event] = {}
        self.changed = anyio.Event()
        self.running = 0
        self.peak = 0
        options = {"running_max": 2, "attempts": 4, "backoff_base_s": 2.0, "backoff_max_s": 60.0} | more
        self.scheduler = Scheduler(
            store.journal,
            self.run_job,
            on_change=self.on_change,
            on_final=self.on_final,
            on_fault=lambda job, error: self.faults.append((job, error)),
            clock=lambda: self.now,
            rng=random.Random(1),
            **options,
        )

    async def run_job(self, job, progress):
        self.started.append(job.id)
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            step = self.scripts[job.id].pop(0) if self.scripts[job.id] else DONE
            if callable(step):
                return await step(job, progress)
            if isinstance(step, Exception):
                raise step
            return step
        finally:
            self.running -= 1

    def on_change(self, job, progress) -> None:
        if progress is not None:
            job = progress.of(job)
            self.progress.append((job.done_bytes, job.phase))
            return
        # Durable before announced: another connection would see it already.
        assert self.store.journal.get(job.id).state == job.state
        self.events.append((job.id, job.state))
        self.changed.set()
        self.changed = anyio.Event()

    async def on_final(self, job) -> None:
        self.finals.append((job.id, job.state))

    def add(self, name: str = "a:b", *steps, **more) -> str:
        job = self.store.add(name, **more)
        self.scripts[job.id] = list(steps)
        self.scheduler.submitted(job)
        return job.id

    def state(self, job_id: str) -> str:
        return self.store.journal.get(job_id).state

    async def until(self, job_id: str, state: str, times: int = 1) -> None:
        with anyio.fail_after(10):
            while self.events.count((job_id, state)) < times:
                await self.changed.wait()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.scheduler.poke()

    @asynccontextmanager
    async def on(self):
        async with anyio.create_task_group() as group:
            group.start_soon(self.scheduler.run)
            yield self
            group.cancel_scope.cancel()


def blocking(gate: anyio.Event, begun: anyio.Event | None = None, then=DONE):
    """A step that waits for a gate."""

    async def step(job, progress):
        if begun is not None:
            begun.set()
        await gate.wait()
        if isinstance(then, Exception):
            raise then
        return then

    return step


async def test_a_job_runs_to_done(store) -> None:
    """Running, progress, done: each durable before it is announced; the result and figures are kept."""

    async def step(job, progress):
        progress.update(total_bytes=10, phase="fetch")
        progress.advance(4)
        progress.transfer.fetched_bytes += 3
        return DONE

    async with Bench(store).on() as bench:
        job = bench.add("a:b", step)
        await bench.until(job, "done")
    kept = store.journal.get(job)
    assert bench.events == [(job, "running"), (job, "done")]
    assert bench.progress == [(0, "fetch"), (4, "fetch")]
    assert bench.finals == [(job, "done")]
    assert (kept.result, kept.transfer, kept.done_bytes, kept.attempt) == (DONE, Transfer(fetched_bytes=3), 4, 1)
    assert not bench.faults


async def test_priority_then_order_and_no_more_than_allowed(store) -> None:
    """Jobs start by priority, then in the order they came, never more than running_max at once."""
    bench = Bench(store, running_max=1)
    names = ["low", "normal", "high", "low", "normal", "critical"]
    jobs = [bench.add(f"a:{i}", priority=name) for i, name in enumerate(names)]
    async with bench.on():
        for job in jobs:
            await bench.until(job, "done")
    assert bench.started == [jobs[i] for i in (5, 2, 1, 4, 0, 3)]
    assert bench.peak == 1


async def test_critical_has_a_slot_of_its_own(store) -> None:
    """With all slots taken a critical job starts, a high one waits; a second critical one waits too."""
    gate = anyio.Event()
    async with Bench(store, running_max=1).on() as bench:
        low = bench.add("a:low", blocking(gate), priority="low")
        await bench.until(low, "running")
        high = bench.add("a:high", priority="high")
        critical = bench.add("a:critical", blocking(gate), priority="critical")
        await bench.until(critical, "running")
        second = bench.add("a:second", priority="critical")
        bench.scheduler.poke()
        await anyio.wait_all_tasks_blocked()
        assert (bench.state(high), bench.state(second)) == ("queued", "queued")
        gate.set()
        for job in (low, high, critical, second):
            await bench.until(job, "done")
    assert bench.peak == 2


async def test_backoff_doubles_with_full_jitter_and_ends(store) -> None:
    """Each wait is within base · 2^n, at most max; the last attempt fails with the error it had."""
    delays = []
    async with Bench(store, attempts=8).on() as bench:
        job = bench.add("a:b", *[BUSY] * 8)
        for attempt in range(1, 8):
            await bench.until(job, "waiting", attempt)
            waiting = store.journal.get(job)
            delays.append(waiting.delay)
            assert (waiting.attempt, waiting.error.code) == (attempt, "remote_busy")
            assert waiting.due == bench.now + waiting.delay
            if waiting.delay > 0.01:
                bench.advance(waiting.delay - 0.005)
                await anyio.wait_all_tasks_blocked()
                assert bench.started == [job] * attempt
            bench.advance(0.01)
        await bench.until(job, "failed")
    assert all(0 <= delay <= min(60, 2 * 2**n) for n, delay in enumerate(delays))
    assert len(set(delays)) == 7
    assert bench.finals == [(job, "failed")]
    assert store.journal.get(job).attempt == 8


@pytest.mark.parametrize(
    ("asked", "low", "high"),
    [
        (30, 30, 30),
        (0.5, 0.5, 2),
        (1e9, RETRY_AFTER_MAX_S, RETRY_AFTER_MAX_S),
        (-5, 0, 2),
        ("soon", 0, 2),
        (float("nan"), 0, 2),
        (None, 0, 2),
    ],
)
async def test_retry_after_is_honoured_within_reason(store, asked, low, high) -> None:
    """What the server asks is the least wait, with a bound; nonsense is passed over."""
    async with Bench(store).on() as bench:
        job = bench.add("a:b", RemoteError("remote_busy", "x", details={"retry_after": asked}))
        await bench.until(job, "waiting")
        assert low <= store.journal.get(job).delay <= high
        bench.advance(high)
        await bench.until(job, "done")


@pytest.mark.parametrize("years", [-10, 10])
async def test_clock_jumps_change_nothing(store, years) -> None:
    """The wall clock jumps while jobs wait and run, and between runs: order and waits are as without (R8)."""
    jump = years * 365.25 * 86400
    bench = Bench(store, running_max=1)
    async with bench.on():
        first = bench.add("a:1", RemoteError("remote_busy", "x", details={"retry_after": 50}))
        await bench.until(first, "waiting")
        store.wall += jump
        bench.advance(49)
        await anyio.wait_all_tasks_blocked()
        assert bench.state(first) == "waiting"
        bench.advance(1)
        await bench.until(first, "done")
    jobs = []
    for i in range(4):
        store.wall -= jump * (-1) ** i
        jobs.append(bench.add(f"b:{i}"))
    again = Bench(store, running_max=1)
    async with again.on():
        for job in jobs:
            await again.until(job, "done")
    assert again.started == jobs


@pytest.mark.parametrize(("slept", "left"), [(10, 20), (40, 0), (-90, 30), (1e9, 0)])
async def test_waiting_jobs_keep_their_remaining_wait_over_a_restart(store, slept, left) -> None:
    """After a restart what remains of the wait remains; after a reboot never more than the whole of it."""
    bench = Bench(store)
    async with bench.on():
        job = bench.add("a:b", RemoteError("remote_busy", "x", details={"retry_after": 30}))
        await bench.until(job, "waiting")
    store.reopen()
    again = Bench(store)
    again.now += slept
    async with again.on():
        await anyio.wait_all_tasks_blocked()
        if left:
            assert again.state(job) == "waiting"
            again.advance(left - 0.5)
            await anyio.wait_all_tasks_blocked()
            assert again.started == []
            again.advance(0.5)
        await again.until(job, "done")


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (IntegrityError("corrupt", "bad tag"), "quarantined", "corrupt"),
        (IntegrityError("source_changed", "x", retryable=True), "quarantined", "source_changed"),
        (NotFoundError("no_such_object", "x"), "failed", "no_such_object"),
        (RemoteError("remote_failed", "x", retryable=False), "failed", "remote_failed"),
        (RemoteError("remote_failed", "x"), "waiting", "remote_failed"),
        (ValueError("PATIENT^NAME"), "failed", "internal"),
        (ExceptionGroup("", [BUSY, ExceptionGroup("", [IntegrityError("corrupt", "x")])]), "quarantined", "corrupt"),
        (ExceptionGroup("", [BUSY, NotFoundError("no_such_object", "x")]), "failed", "no_such_object"),
        (
            ExceptionGroup("", [NotFoundError("no_such_object", "x"), IntegrityError("corrupt", "x")]),
            "quarantined",
            "corrupt",
        ),
        (ExceptionGroup("", [KeyError("PATIENT^NAME"), BUSY]), "waiting", "remote_busy"),
        (RecursionError(), "failed", "internal"),
    ],
)
async def test_errors_are_classified(store, error, state, code) -> None:
    """Bad data is quarantined, passing trouble waits, the rest fails; a fault of ours is logged, not shown."""
    async with Bench(store).on() as bench:
        job = bench.add("a:b", error)
        await bench.until(job, state)
        after = bench.add("a:next")
        await bench.until(after, "done")
    kept = store.journal.get(job).error
    assert kept.code == code
    assert "PATIENT" not in str(kept)
    unexpected = not isinstance(error, SmpError) and ("PATIENT" in repr(error) or code == "internal")
    assert bool(bench.faults) == unexpected


async def test_disk_full_waits_as_long_as_it_takes(store) -> None:
    """A full disk is not the job's fault: more tries than it has, then it goes on (R7)."""
    async with Bench(store, attempts=1).on() as bench:
        job = bench.add("a:b", *[ResourceError("disk_full", "x")] * 6)
        for n in range(1, 7):
            await bench.until(job, "waiting", n)
            assert store.journal.get(job).attempt == 0
            bench.advance(60)
        await bench.until(job, "done")


async def test_a_job_without_room_does_not_start(store) -> None:
    """It waits with the reason, polls for room without another move or attempt, and starts when there is room (R7)."""
    full = ResourceError("disk_full", "x", details={"needed_bytes": 5})
    asked: list[int] = []
    free = False

    def room_for(job) -> SmpError | None:
        asked.append(job.error.details["needed_bytes"] if job.error else 0)
        return None if free else full

    async with Bench(store, room=room_for).on() as bench:
        job = bench.add("a:b")
        await bench.until(job, "waiting")
        assert (kept := store.journal.get(job)).error == full.body()
        assert kept.attempt == 0
        with anyio.fail_after(10):
            while len(asked) < 4:
                bench.advance(LOOK_AGAIN_S)
                await anyio.lowlevel.checkpoint()
        free = True
        while bench.state(job) != "done":
            bench.advance(LOOK_AGAIN_S)
            await anyio.lowlevel.checkpoint()
        await bench.until(job, "done")
    assert bench.events == [(job, state) for state in ("waiting", "queued", "running", "done")]
    assert asked[0] == 0
    assert set(asked[1:]) == {5}
    assert store.journal.get(job).attempt == 1
    assert bench.started == [job]


async def test_very_many_that_wait_for_room_are_not_looked_at_all_the_time(store, monkeypatch) -> None:
    """A disk may be full for days; all go on once there is room."""
    monkeypatch.setattr(holding, "LOOKS_PER_S", 2.0)
    asked = 0
    free = False

    def room_for(job) -> SmpError | None:
        nonlocal asked
        asked += 1
        return None if free else ResourceError("disk_full", "no room")

    bench = Bench(store, room=room_for)
    jobs = [bench.add(f"a:{number}") for number in range(40)]

    async def second() -> None:
        bench.advance(LOOK_AGAIN_S)
        while any(due <= bench.now for due in bench.scheduler._waiting.values()):
            await anyio.lowlevel.checkpoint()

    async with bench.on():
        with anyio.fail_after(60):
            for job in jobs:
                await bench.until(job, "waiting")
            asked = 0
            for _ in range(30):
                await second()
            assert asked < 300, "2 a second, and each once at first; every second would be 1,200"
            free = True
            for _ in range(41):
                await second()
            for job in jobs:
                await bench.until(job, "done")


async def test_a_job_without_room_can_be_cancelled(store) -> None:
    """As any that waits."""
    async with Bench(store, room=lambda job: ResourceError("disk_full", "x")).on() as bench:
        job = bench.add("a:b")
        await bench.until(job, "waiting")
        assert (await bench.scheduler.cancel(job)).state == "cancelled"
    assert bench.started == []


async def test_who_waits_for_room_is_known_without_looking(store) -> None:
    """Their number and what they need, as of now, also after a restart; not those that wait for something else."""
    free = False

    def room_for(job) -> SmpError | None:
        needed = {} if job.spec.source == "a:unknown" else {"needed_bytes": 5}
        return None if free or job.spec.source == "a:busy" else ResourceError("disk_full", "x", details=needed)

    jobs = []
    async with Bench(store, room=room_for).on() as bench:
        for name in ("a:one", "a:two", "a:unknown", "a:busy"):
            jobs.append(bench.add(name, BUSY))
            await bench.until(jobs[-1], "waiting")
        assert bench.scheduler.short == (3, 10)
        await bench.scheduler.cancel(jobs[0])
        assert bench.scheduler.short == (2, 5)
    store.reopen()
    told: list[str] = []
    bench = Bench(store, room=room_for, on_short=lambda job: told.append(job.id))
    bench.now = 0.0
    async with bench.on():
        with anyio.fail_after(10):
            while bench.scheduler.short != (2, 5):
                await anyio.lowlevel.checkpoint()
        assert sorted(told) == sorted(jobs[1:3])
        free = True
        bench.advance(100)
        for job in jobs[1:]:
            await bench.until(job, "done")
        assert bench.scheduler.short == (0, 0)


async def test_a_journal_that_cannot_write_is_waited_for(store, monkeypatch) -> None:
    """A result that cannot be recorded yet is recorded once there is space, announced once."""
    monkeypatch.setattr(persisting, "DISK_RETRY_S", 0.001)
    move, start, left = store.journal.move, store.journal.start, {"start": 2, "succeed": 3, "due": 1, "retry": 1}

    def fail(name):
        if left.get(name, 0):
            left[name] -= 1
            raise ResourceError("disk_full", "journal")

    def flaky_move(job_id, name, **facts):
        fail(name)
        return move(job_id, name, **facts)

    def flaky_start(job_id, room):
        fail("start")
        return start(job_id, room)

    monkeypatch.setattr(store.journal, "move", flaky_move)
    monkeypatch.setattr(store.journal, "start", flaky_start)
    async with Bench(store).on() as bench:
        job = bench.add("a:b", BUSY)
        with anyio.fail_after(10):
            while not bench.scheduler.full:
                await anyio.lowlevel.checkpoint()
        await bench.until(job, "waiting")
        bench.advance(60)
        with anyio.fail_after(10):
            while left["due"]:
                await anyio.lowlevel.checkpoint()
        bench.advance(1)
        await bench.until(job, "done")
    assert [state for _, state in bench.events] == ["running", "waiting", "queued", "running", "done"]
    assert bench.started == [job, job]
    assert len(bench.faults) == 4, "once for each move, however long it takes"
    assert not bench.scheduler.full


async def test_a_wait_that_the_disk_does_not_end_is_told_of_once(store, monkeypatch) -> None:
    """A thousand jobs that wait while the disk is full for days would be a thousand lines a second."""
    move, full = store.journal.move, True
    asked = 0

    def written(job_id, name, **facts):
        nonlocal asked
        if name == "due" and full:
            asked += 1
            raise ResourceError("disk_full", "journal")
        return move(job_id, name, **facts)

    monkeypatch.setattr(store.journal, "move", written)
    async with Bench(store).on() as bench:
        jobs = [bench.add(f"a:{number}", BUSY) for number in range(3)]
        for job in jobs:
            await bench.until(job, "waiting")
        with anyio.fail_after(10):
            while asked < 30:
                bench.advance(60)
                await anyio.lowlevel.checkpoint()
        assert sorted(job for job, _ in bench.faults) == sorted(jobs)
        full = False
        for job in jobs:
            while bench.state(job) != "done":
                bench.advance(60)
                await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize(("act", "state"), [("pause", "paused"), ("cancel", "cancelled")])
async def test_a_running_job_is_stopped_before_it_moves(store, act, state) -> None:
    """Its runner has ended, cleaning up included, before the state says so; others are not touched."""
    begun, cleaned, never = anyio.Event(), [], anyio.Event()

    async def step(job, progress):
        begun.set()
        try:
            await never.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
                cleaned.append(store.journal.get(job.id).state)

    gate = anyio.Event()
    async with Bench(store).on() as bench:
        other = bench.add("a:other", blocking(gate))
        job = bench.add("a:b", step)
        await begun.wait()
        await bench.until(other, "running")
        moved = await getattr(bench.scheduler, act)(job)
        assert (moved.state, cleaned) == (state, ["running"])
        assert bench.state(other) == "running"
        gate.set()
        await bench.until(other, "done")
        if act == "pause":
            assert (await bench.scheduler.resume(job)).state == "queued"
            await bench.until(job, "done")
        else:
            assert bench.finals[0] == (job, "cancelled")


@pytest.mark.parametrize("act", ["pause", "cancel"])
@pytest.mark.parametrize("where", ["queued", "waiting", "paused", "failed", "quarantined", "done"])
async def test_acting_on_a_job_that_does_not_run(store, act, where) -> None:
    """A queued or waiting job stops waiting its turn; where the table says no, the asker hears so."""
    gate = anyio.Event()
    async with Bench(store, running_max=1).on() as bench:
        ends = {
            "waiting": BUSY,
            "failed": NotFoundError("no_such_object", "x"),
            "quarantined": IntegrityError("corrupt", "x"),
        }
        step = [ends[where]] if where in ends else []
        job = bench.add("a:b", *step, key="it") if where != "queued" else ""
        if where == "paused":
            await bench.scheduler.pause(job)
        if where in ("waiting", "failed", "quarantined", "done"):
            await bench.until(job, where)
        if where == "queued":
            blocker = bench.add("a:blocker", blocking(gate))
            await bench.until(blocker, "running")
            job = bench.add("a:b")
        target = {"pause": "paused", "cancel": "cancelled"}[act]
        if where == "done" or (act == "pause" and where in ("paused", "failed", "quarantined")):
            with pytest.raises(StateError):
                await getattr(bench.scheduler, act)(job)
            return
        assert (await getattr(bench.scheduler, act)(job)).state == target
        started = len(bench.started)
        gate.set()
        bench.advance(1000)
        after = bench.add("a:after")
        await bench.until(after, "done")
        assert bench.state(job) == target
        assert bench.started[started:] == [after]
        assert bench.finals.count((job, "cancelled")) == (act == "cancel")


@pytest.mark.parametrize("written", [False, True])
async def test_a_job_that_finishes_while_it_is_stopped_is_done(store, written) -> None:
    """A runner that delivered in spite of the cancel is done, and the asker hears so; also where it wrote that down."""
    begun = anyio.Event()

    async def step(job, progress):
        begun.set()
        with anyio.CancelScope(shield=True):
            await anyio.wait_all_tasks_blocked()
        return store.journal.move(job.id, "succeed", result=DONE) if written else DONE

    async with Bench(store).on() as bench:
        job = bench.add("a:b", step)
        await begun.wait()
        with pytest.raises(StateError, match="is done"):
            await bench.scheduler.cancel(job)
    assert bench.state(job) == "done"
    assert bench.events == [(job, "running"), (job, "done")]
    assert bench.finals == [(job, "done")]
    assert not bench.faults


async def test_trouble_while_stopping_does_not_hide_the_stop(store) -> None:
    """What breaks because it was cancelled is no failure; bad data found meanwhile is still quarantined."""
    for error, state in ((RemoteError("remote_failed", "x", retryable=False), "cancelled"), (None, "quarantined")):
        begun = anyio.Event()

        async def step(job, progress, error=error, begun=begun):
            begun.set()
            try:
                await anyio.sleep_forever()
            finally:
                raise error or IntegrityError("corrupt", "x")

        async with Bench(store).on() as bench:
            job = bench.add(f"a:{state}", step)
            await begun.wait()
            if error:
                assert (await bench.scheduler.cancel(job)).state == state
            else:
                with pytest.raises(StateError, match="while it was stopped"):
                    await bench.scheduler.cancel(job)
            assert bench.state(job) == state
            if state == "quarantined":
                assert (await bench.scheduler.cancel(job)).state == "cancelled"
                assert bench.finals == [(job, "quarantined"), (job, "cancelled")]


@pytest.mark.parametrize(("act", "ends"), [("resume", "done"), ("cancel", "cancelled")])
async def test_acting_on_a_job_whose_end_is_just_told(store, act, ends) -> None:
    """Who hears of an end acts at once, while the job still has its slot for what is tidied then."""
    tidying, go_on = anyio.Event(), anyio.Event()

    async def tidy(job) -> None:
        if job.state == "quarantined":
            tidying.set()
            await go_on.wait()

    async with Bench(store).on() as bench, anyio.create_task_group() as group:
        bench.scheduler._on_final = tidy
        job = bench.add("a:b", IntegrityError("corrupt", "a flipped bit"), DONE)
        await tidying.wait()
        group.start_soon(getattr(bench.scheduler, act), job)
        await anyio.wait_all_tasks_blocked()
        go_on.set()
        await bench.until(job, ends)
    assert bench.state(job) == ends


async def test_a_job_that_ends_while_it_is_looked_at_can_be_resumed(store, monkeypatch) -> None:
    """It ran when resume looked, and had ended when it moved it: it runs again."""
    tidying, go_on, looked = anyio.Event(), anyio.Event(), []
    get = store.journal.get

    async def tidy(job) -> None:
        if job.state == "quarantined":
            tidying.set()
            await go_on.wait()

    def running_yet(job_id):
        looked.append(job_id)
        return msgspec.structs.replace(get(job_id), state="running") if len(looked) == 1 else get(job_id)

    async with Bench(store).on() as bench:
        bench.scheduler._on_final = tidy
        job = bench.add("a:b", IntegrityError("corrupt", "a flipped bit"), DONE)
        await tidying.wait()
        monkeypatch.setattr(store.journal, "get", running_yet)
        await bench.scheduler.resume(job)
        go_on.set()
        await bench.until(job, "done")
    assert looked


async def test_pause_and_cancel_at_once(store) -> None:
    """In whatever order they come, cancel has its way; a pauser hears that it is paused or that it is cancelled."""
    begun = anyio.Event()
    heard = []
    async with Bench(store).on() as bench:
        job = bench.add("a:b", blocking(anyio.Event(), begun))
        await begun.wait()

        async def ask(act) -> None:
            try:
                heard.append((await act(job)).state)
            except StateError as error:
                heard.append(error.message)

        async with anyio.create_task_group() as group:
            for act in (bench.scheduler.pause, bench.scheduler.cancel, bench.scheduler.pause):
                group.start_soon(ask, act)
    assert bench.state(job) == "cancelled"
    again = f"job {job} is paused: it cannot pause"
    assert heard.count("cancelled") == 1
    assert set(heard) <= {"cancelled", "paused", f"job {job} is cancelled: it cannot pause", again}


async def test_an_asker_that_leaves_does_not_undo_the_stop(store) -> None:
    """The stop goes through when the connection that asked for it is gone."""
    begun, release = anyio.Event(), anyio.Event()

    async def step(job, progress):
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await release.wait()

    async with Bench(store).on() as bench:
        job = bench.add("a:b", step)
        await begun.wait()
        async with anyio.create_task_group() as group:
            group.start_soon(bench.scheduler.cancel, job)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert bench.state(job) == "running"
        release.set()
        await bench.until(job, "cancelled")


async def test_draining_lets_jobs_end_and_starts_none(store) -> None:
    """What runs may end, what is queued stays so; who does not end in time is counted, and stays running."""
    gate, stuck = anyio.Event(), anyio.Event()
    async with Bench(store, running_max=2).on() as bench:
        ends, stays, queued = bench.add("a:1", blocking(gate)), bench.add("a:2", blocking(stuck)), bench.add("a:3")
        await bench.until(ends, "running")
        await bench.until(stays, "running")
        async with anyio.create_task_group() as group:
            group.start_soon(bench.scheduler.drain, 1000.0)
            await anyio.wait_all_tasks_blocked()
            gate.set()
            await bench.until(ends, "done")
            group.cancel_scope.cancel()
        assert await bench.scheduler.drain(0.0) == 1
        await anyio.wait_all_tasks_blocked()
        assert (bench.state(stays), bench.state(queued)) == ("running", "queued")
        stuck.set()
        await bench.until(stays, "done")
        assert await bench.scheduler.drain(1000.0) == 0
    assert sorted(bench.started) == sorted([ends, stays])


async def test_stopping_the_daemon_leaves_jobs_to_be_recovered(store) -> None:
    """Cancelled from outside, running jobs stay running in the journal; the next start runs them first, uncounted.

    What they moved until then is in their figures.
    """
    begun = anyio.Event()

    async def step(job, progress):
        progress.transfer.fetched_bytes += 5
        begun.set()
        await anyio.sleep_forever()

    async with Bench(store, running_max=1).on() as bench:
        running = bench.add("a:1", step)
        queued = bench.add("a:2")
        await begun.wait()
    assert (bench.state(running), bench.state(queued)) == ("running", "queued")
    store.reopen()
    async with Bench(store, running_max=1).on() as again:
        await again.until(running, "done")
        await again.until(queued, "done")
    assert again.started == [running, queued]
    kept = store.journal.get(running)
    assert (kept.attempt, kept.transfer.fetched_bytes) == (1, 5)


async def test_what_a_failed_attempt_moved_is_counted(store) -> None:
    """The figures of all attempts add up, however each ended."""

    def moving(then):
        async def step(job, progress):
            progress.transfer.fetched_bytes += 5
            if then is not DONE:
                raise then
            return then

        return step

    async with Bench(store).on() as bench:
        job = bench.add("a:b", moving(BUSY), moving(NotFoundError("no_such_object", "x")), moving(DONE))
        await bench.until(job, "waiting")
        bench.advance(60)
        await bench.until(job, "failed")
        assert store.journal.get(job).transfer.fetched_bytes == 10
        await bench.scheduler.resume(job)
        await bench.until(job, "done")
    assert store.journal.get(job).transfer.fetched_bytes == 15


async def test_a_damaged_job_does_not_stop_the_others(store) -> None:
    """A record that does not open is reported and left; the rest runs."""
    bench = Bench(store)
    bad = bench.add("a:bad")
    with store.db.transaction() as connection:
        connection.execute("UPDATE jobs SET spec=x'00' WHERE id=?", (bad,))
    async with bench.on():
        good = bench.add("a:good")
        await bench.until(good, "done")
    assert bad in {job for job, _ in bench.faults}
    assert store.journal.damaged() == (bad,)


async def test_a_count_that_no_database_holds_is_cut(store) -> None:
    """What a server or a worker says of sizes may be any number: the job ends, and is read again as it was written."""
    bench = Bench(store)

    async def lied_to(_job, progress):
        progress.update(total_bytes=1 << 80, done_bytes=-5, phase="fetch")
        progress.advance(1 << 70)
        return DONE

    async with bench.on():
        job = bench.add("a:b", lied_to)
        await bench.until(job, "done")
    assert not bench.faults
    found = store.journal.get(job)
    assert (found.total_bytes, found.done_bytes) == ((1 << 63) - 1, (1 << 63) - 1)


async def test_a_fault_in_a_move_does_not_stop_the_others(store, monkeypatch) -> None:
    """Whatever the journal raises for one job, that job stays as it is and the daemon goes on."""
    bench = Bench(store)
    bad = bench.add("a:bad")
    move = store.journal.move

    def broken(job_id, name, **facts):
        if job_id == bad and name == "succeed":
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        return move(job_id, name, **facts)

    monkeypatch.setattr(store.journal, "move", broken)
    async with bench.on():
        good = bench.add("a:good")
        await bench.until(good, "done")
        later = bench.add("a:later")
        await bench.until(later, "done")
    assert [(job, type(error)) for job, error in bench.faults] == [(bad, OverflowError)]
    assert bench.state(bad) == "running"


async def test_faulty_listeners_do_not_stop_anything(store) -> None:
    """An exception in on_change or on_final is logged; the job is done all the same."""
    bench = Bench(store)

    async def broken_final(job) -> None:
        raise RuntimeError("final")

    def broken_change(job, progress) -> None:
        Bench.on_change(bench, job, progress)
        raise RuntimeError("change")

    bench.scheduler._on_final, bench.scheduler._on_change = broken_final, broken_change
    async with bench.on():
        for name in ("a:1", "a:2"):
            await bench.until(bench.add(name), "done")
    assert {str(error) for _, error in bench.faults} == {"final", "change"}


async def test_submitting_twice_runs_once(store) -> None:
    """A job told of again, in any state, has one slot at most."""
    async with Bench(store).on() as bench:
        job = bench.add("a:b")
        kept = store.journal.get(job)
        for _ in range(3):
            bench.scheduler.submitted(kept)
        await bench.until(job, "done")
        bench.scheduler.submitted(kept)
        await bench.until(bench.add("a:2"), "done")
    assert bench.started.count(job) == 1
    assert not bench.faults


async def test_submitting_again_while_it_starts(store, monkeypatch) -> None:
    """A job told of again between getting its slot and starting gets no second slot."""
    gate, start = threading.Event(), store.journal.start

    def slow(job_id, room):
        assert gate.wait(10)
        return start(job_id, room)

    monkeypatch.setattr(store.journal, "start", slow)
    async with Bench(store).on() as bench:
        job = bench.add("a:b")
        with anyio.fail_after(10):
            while job not in bench.scheduler._running:
                await anyio.lowlevel.checkpoint()
        bench.scheduler.submitted(store.journal.get(job))
        await anyio.wait_all_tasks_blocked()
        gate.set()
        await bench.until(job, "done")
        await bench.until(bench.add("a:2"), "done")
    assert bench.started.count(job) == 1
    assert not bench.faults


def down(seconds: float = 5.0) -> RemoteError:
    return RemoteError("remote_unreachable", "remote a is down", details={"held": "a", "retry_after": seconds})


async def test_a_job_waits_for_a_remote_that_is_down(store) -> None:
    """It does not start, burns no attempt, is asked about when the remote is tried, and goes when it is back."""
    is_down = True
    async with Bench(store, attempts=1, room=lambda job: down() if is_down else None).on() as bench:
        job = bench.add("a:b")
        await bench.until(job, "waiting")
        for _ in range(5):
            bench.advance(5.0)
            await anyio.sleep(0.01)
        is_down = False
        bench.scheduler.release()
        await bench.until(job, "done")
    assert bench.events == [(job, state) for state in ("waiting", "queued", "running", "done")]
    assert store.journal.get(job).attempt == 1


async def test_others_go_on_while_a_remote_is_down(store) -> None:
    """A job that waits for its remote takes no slot."""
    async with Bench(store, running_max=1, room=lambda job: down() if job.spec.source == "a:b" else None).on() as bench:
        waiting = [bench.add("a:b") for _ in range(3)]
        other = bench.add("b:b")
        await bench.until(other, "done")
        for job in waiting:
            await bench.until(job, "waiting")


async def test_an_attempt_that_was_turned_away_does_not_count(store) -> None:
    """However often; one that failed by itself does."""
    async with Bench(store, attempts=2).on() as bench:
        job = bench.add("a:b", down(), down(), down(), BUSY, down(), DONE)
        for n in range(1, 6):
            await bench.until(job, "waiting", n)
            assert store.journal.get(job).attempt == (n > 3)
            bench.advance(60)
        await bench.until(job, "done")
        assert store.journal.get(job).attempt == 2


async def test_a_job_does_not_wait_for_ever(store) -> None:
    """After so long it fails, with what was wrong with the remote."""
    async with Bench(store, hold_max_s=30.0, room=lambda job: down()).on() as bench:
        job = bench.add("a:b", *[down()] * 9)
        await bench.until(job, "waiting")
        bench.advance(29.0)
        await anyio.sleep(0.01)
        assert bench.state(job) == "waiting"
        bench.advance(10.0)
        await bench.until(job, "failed")
        assert store.journal.get(job).error.code == "remote_unreachable"


async def test_each_outage_is_waited_for_by_itself(store) -> None:
    """How long a job waited for an earlier one does not count, once the remote was there again."""
    away = True
    async with Bench(store, hold_max_s=30.0, room=lambda job: down() if away else None).on() as bench:
        job = bench.add("a:b", down(), DONE)
        await bench.until(job, "waiting")
        away = False
        bench.advance(60.0)
        with anyio.fail_after(30):
            while not bench.started:  # and the remote goes down again
                await bench.changed.wait()
        await bench.until(job, "waiting", 2)
        bench.advance(29.0)
        await bench.until(job, "done")


async def test_a_crowd_that_may_go_on_does_not_hold_up_the_others(store) -> None:
    """A remote is back: its jobs are taken some at a time, and one of another remote begins in between."""
    away = True

    def room(job):
        return down(3600.0) if away and job.spec.source.startswith("a:") else None

    async with Bench(store, running_max=1, room=room).on() as bench:
        held = [bench.add(f"a:{number}") for number in range(100)]
        for job in held:
            await bench.until(job, "waiting")
        away = False
        urgent = bench.add("b:urgent", priority="critical")
        bench.scheduler.release()
        await bench.until(urgent, "done")
        for job in held:
            await bench.until(job, "done")
    order = [job for job, state in bench.events if state == "queued" or job == urgent]
    assert order.index(urgent) < 100
    assert sorted(bench.started) == sorted([*held, urgent])
