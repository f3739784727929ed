"""Watching: snapshot, resuming, coalescing, laggards and the end."""

import gc

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from whole import whole

from smp_proto import control as c
from smp_proto.aio import decode
from smp_proto.errors import DaemonError, NotFoundError
from smpd.control.actor import Actor
from smpd.control.permissions import EVERYTHING
from smpd.control.watch import Events

ACTOR = Actor(0, 0, 0, "viewer", "test", EVERYTHING)
SECONDS = 10


def job(name: str, state: str = "running", done: int = 0) -> c.JobView:
    return c.JobView(name, "get", state, "normal", "r:p", "", "", "me", 0.0, 0.0, done_bytes=done)


class Sink:
    """Stands for an exchange; each message goes through `take` before the next is sent."""

    def __init__(self) -> None:
        self.events: list[c.Event] = []
        self.got = anyio.Event()
        self.gate = anyio.Event()
        self.gate.set()

    async def send(self, event: c.Event) -> None:
        await anyio.lowlevel.checkpoint()
        await self.gate.wait()
        self.events.append(event)
        self.got.set()
        self.got = anyio.Event()

    async def until(self, count: int) -> None:
        with anyio.fail_after(SECONDS):
            while len(self.events) < count:
                await self.got.wait()

    def seen(self) -> list[tuple[str, str, int]]:
        views = [(event.kind, decode(event.body, c.JobView)) for event in self.events]
        return [(kind, view.state, view.done_bytes) for kind, view in views]


class Jobs:
    """The table behind the snapshot."""

    def __init__(self, *views: c.JobView) -> None:
        self.views = {view.id: view for view in views}

    async def __call__(self, _actor: Actor, ids: list[str]) -> list[c.JobView]:
        for name in ids:
            if name not in self.views:
                raise NotFoundError("no_such_job", f"no job {name}")
        return [view for view in self.views.values() if not ids or view.id in ids]

    def move(self, events: Events, view: c.JobView) -> int:
        self.views[view.id] = view
        return events.publish("job", view, job_id=view.id)


async def test_snapshot_then_events_then_end():
    """A watch of one job sends it as it is, then its moves, and ends when it is final; other jobs are left out."""
    jobs, sink = Jobs(job("a", "queued"), job("b", "queued")), Sink()
    events = Events(jobs)

    async with anyio.create_task_group() as group:
        group.start_soon(events.watch, ACTOR, c.Watch(jobs=["a"]), sink)
        await sink.until(1)
        jobs.move(events, job("b", "running"))
        jobs.move(events, job("a", "running"))
        jobs.move(events, job("a", "done"))
    assert sink.seen() == [("snapshot", "queued", 0), ("job", "running", 0), ("job", "done", 0)]


async def test_a_watch_does_not_keep_its_snapshot():
    """Of a thousand jobs that is a megabyte for each watch, as long as it lasts."""

    async def fresh(_actor: Actor, _ids: list[str]) -> list[c.JobView]:
        return [job(f"kept-{number}") for number in range(3)]

    sink = Sink()
    async with anyio.create_task_group() as group:
        group.start_soon(Events(fresh).watch, ACTOR, c.Watch(), sink)
        await sink.until(3)
        await anyio.wait_all_tasks_blocked()
        held = [each for each in gc.get_objects() if isinstance(each, c.JobView) and each.id.startswith("kept-")]
        assert held == []
        group.cancel_scope.cancel()


async def test_a_job_already_final_ends_the_watch_at_once():
    """Jobs that are final in the snapshot need no event to end the watch."""
    sink = Sink()
    with anyio.fail_after(SECONDS):
        await Events(Jobs(job("a", "failed"))).watch(ACTOR, c.Watch(jobs=["a"]), sink)
    assert sink.seen() == [("snapshot", "failed", 0)]


async def test_unknown_job():
    """A watch of a job that does not exist is refused."""
    with pytest.raises(NotFoundError):
        await Events(Jobs()).watch(ACTOR, c.Watch(jobs=["x"]), Sink())


async def test_resume_sends_exactly_what_came_after():
    """With `since` the state changes after it come in order, without a snapshot."""
    jobs, sink = Jobs(), Sink()
    events = Events(jobs)
    numbers = [jobs.move(events, job("a", "running", i)) for i in range(200)]
    async with anyio.create_task_group() as group:
        group.start_soon(events.watch, ACTOR, c.Watch(since=numbers[49]), sink)
        await sink.until(150)
        group.cancel_scope.cancel()
    assert numbers[50:] == [event.seq for event in sink.events]


@pytest.mark.parametrize(("ago_s", "first"), [(100.0, 4), (1e-9, 7), (7.5, 5), (1e9, 4)])
async def test_what_happened_in_the_last_seconds(monkeypatch, ago_s, first):
    """Without a number it begins with what is kept of the last so many seconds, without a snapshot; then it goes on."""
    now = 1000.0
    monkeypatch.setattr("smpd.control.watch.time.monotonic", lambda: now)
    jobs, sink = Jobs(job("a")), Sink()
    events = Events(jobs, history=4)
    for done in range(8):
        now = 1000.0 + 2 * done + done  # three seconds between two of them
        jobs.move(events, job("a", "running", done))
    async with anyio.create_task_group() as group:
        group.start_soon(events.watch, ACTOR, c.Watch(ago_s=ago_s), sink)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        jobs.move(events, job("a", "running", 8))
        await sink.until(9 - first)
        group.cancel_scope.cancel()
    assert [done for _, _, done in sink.seen()] == list(range(first, 9))
    assert all(event.at for event in sink.events)


async def test_resume_of_a_job_that_ended_meanwhile():
    """A resumed watch of a named job that is final by now ends, having shown it final, even if no event told so."""
    jobs, sink = Jobs(job("a", "running")), Sink()
    events = Events(jobs)
    since = jobs.move(events, job("a", "running"))
    jobs.views["a"] = job("a", "done")  # stored, not announced yet
    with anyio.fail_after(SECONDS):
        await events.watch(ACTOR, c.Watch(since=since, jobs=["a"]), sink)
    assert sink.seen()[-1] == ("snapshot", "done", 0)


async def test_progress_coalesces_per_job_and_changes_are_kept():
    """While a watcher is busy a thousand reports of progress become one for each job; no state change is lost."""
    jobs, sink = Jobs(job("a", "queued")), Sink()
    events = Events(jobs, progress_s=0.001)
    async with anyio.create_task_group() as group:
        group.start_soon(events.watch, ACTOR, c.Watch(), sink)
        await sink.until(1)
        sink.gate = anyio.Event()
        jobs.move(events, job("a", "running"))
        await anyio.wait_all_tasks_blocked()  # the watcher now holds the first event
        for i in range(1000):
            for name in ("a", "b"):
                events.publish("job", job(name, "running", i), job_id=name, progress=True)
        jobs.move(events, job("c", "queued"))
        sink.gate.set()
        await sink.until(5)
        group.cancel_scope.cancel()
    assert sink.seen() == [
        ("snapshot", "queued", 0),
        ("job", "running", 0),
        ("job", "running", 999),
        ("job", "running", 999),
        ("job", "queued", 0),
    ]


async def test_a_change_makes_earlier_progress_moot():
    """Progress from before a job's move is not reported after it."""
    jobs, sink = Jobs(), Sink()
    events = Events(jobs)
    since = events.publish("note", None)
    events.publish("job", job("a", "running", 5), job_id="a", progress=True)
    jobs.move(events, job("a", "done", 9))
    with anyio.fail_after(SECONDS):
        await events.watch(ACTOR, c.Watch(since=since, jobs=["a"]), sink)
    assert sink.seen()[0] == ("job", "done", 9)


async def test_a_laggard_is_told():
    """A watcher that the history has left behind ends with `lagged` and where to resume."""
    jobs, sink = Jobs(job("a")), Sink()
    events = Events(jobs, history=8)
    caught: list[DaemonError] = []

    async def follow() -> None:
        try:
            await events.watch(ACTOR, c.Watch(), sink)
        except DaemonError as error:
            caught.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(follow)
        await sink.until(1)
        sink.gate = anyio.Event()
        jobs.move(events, job("a", "running"))
        await anyio.wait_all_tasks_blocked()
        for i in range(9):
            jobs.move(events, job("a", "running", i))
        sink.gate.set()
    assert [(e.code, e.details, e.retryable) for e in caught] == [("lagged", {"since": 0}, True)]


async def test_numbers_of_an_earlier_run_are_too_old_and_later_ones_unknown():
    """Resuming over a restart of the daemon is `lagged`, never a silent gap; so is a number from the future."""
    first = Events(Jobs(), start=1000)
    number = first.publish("job", job("a"))
    second = Events(Jobs(), start=2000)
    second.publish("job", job("a"))
    for since in (number, 5000, 1):
        with pytest.raises(DaemonError) as caught:
            await second.watch(ACTOR, c.Watch(since=since), Sink())
        assert caught.value.code == "lagged"
    assert Events(Jobs()).seq > 1_700_000_000_000_000


async def test_half_a_snapshot_is_nothing_to_resume_from():
    """Only the last event of a snapshot carries a number."""
    sink = Sink()
    events = Events(Jobs(job("a", "done"), job("b", "done")), start=10)
    await events.watch(ACTOR, c.Watch(jobs=["a", "b"]), sink)
    assert [event.seq for event in sink.events] == [0, 10]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60), st.integers(0, 60), st.integers(1, 70))
async def test_any_history_any_position(published, behind, history):
    """From any position either all later state changes come, each once and in order, or `lagged`."""
    events = Events(Jobs(), history=history, start=100)
    for name, progress in published:
        events.publish("job", job(name, "running"), job_id=name, progress=progress)
    position = max(100, events.seq - behind)
    changes = [100 + i for i, (_, progress) in enumerate(published, 1) if not progress]
    sink = Sink()
    try:
        end = await events._send_after(position, ACTOR, frozenset(), set(), sink)
    except DaemonError:
        assert position < changes[-history - 1]
        return
    got = [event.seq for event in sink.events]
    assert end == events.seq
    assert got == sorted(set(got))
    assert set(got) >= {seq for seq in changes if seq > position}


async def test_nothing_is_kept_of_a_sync_that_was_removed(tmp_path):
    """A name for each night would be kept for ever, and looked through at every event."""
    (tmp_path / "r").mkdir()
    async with whole(tmp_path) as box, box.client(0) as caller:
        events, sink = box.daemon.events, Sink()
        await anyio.to_thread.run_sync(box.daemon.remotes.add, "r", c.LocalConfig(str(tmp_path / "r")))
        before = events.seq
        await caller.call(c.SyncAdd(c.SyncSpec(name="night", source="r:")), c.SyncView)
        with anyio.fail_after(SECONDS):
            while events.seq == before:  # its first listing
                await events.next()
        await caller.call(c.SyncControl("night", "remove"), c.SyncView)
        await events._send_after(before, ACTOR, frozenset(), set(), sink)
        assert sink.events == []


async def test_over_the_socket(serving):
    """The hub as the handler of a real server: events arrive, CANCEL ends the watch, END has no value."""
    jobs = Jobs(job("a", "queued"))
    events = Events(jobs)
    async with serving({c.Watch: events.watch}) as daemon, daemon.client() as client:
        async with client.open(c.Watch()) as exchange:
            assert (await exchange.receive(c.Event))[0].kind == "snapshot"
        async with client.open(c.Watch(jobs=["a"])) as exchange:
            assert (await exchange.receive(c.Event))[0].kind == "snapshot"
            jobs.move(events, job("a", "done"))
            assert [event.kind async for event in exchange.messages(c.Event)] == [("job")]
            assert await exchange.result(type(None)) is None
