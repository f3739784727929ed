"""The stages of a job: nothing is lost, nothing is counted twice, and they survive what the job survives."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from smpd.jobs.job import Job, Progress
from smpd.jobs.timeline import STAGES_MAX, added

NAMES = st.sampled_from(["queued", "prepare", "fetch", "waiting"])
LENGTHS = st.lists(st.tuples(NAMES, st.floats(0, 100)), max_size=300)


@given(LENGTHS)
def test_stages_add_up(lengths):
    """However many there were, their sum is the time that passed, they are in order, and they are few."""
    stages, now = (), 0.0
    for name, took in lengths:
        stages = added(stages, name, now, now + took)
        now += took
        assert len(stages) <= STAGES_MAX
    assert abs(sum(each.ms for each in stages) - now * 1000) <= 1
    assert all(each.ms > 0 for each in stages)
    ats = [each.at_ms for each in stages[-24:]]
    assert ats == sorted(ats)
    by_name = {name: sum(took for each, took in lengths if each == name) for name, _ in lengths}
    for name, took in by_name.items():
        assert abs(sum(each.ms for each in stages if each.name == name) - took * 1000) <= len(lengths)


@given(st.lists(st.tuples(NAMES, st.floats(-1e6, 1e9), st.floats(-1e6, 1e9)), max_size=100))
def test_clocks_that_jump_overlap_nothing(spans):
    """Whatever the wall clock does, no stage begins before the one before it was over."""
    stages = ()
    for name, begin, end in spans:
        stages = added(stages, name, begin, end)
    recent = stages[-24:]
    assert all(one.end_ms <= two.at_ms for one, two in pairwise(recent))


def begun(store) -> tuple[Job, Progress]:
    """The job runs, and the test's clock is the monotonic one, too."""
    job = store.journal.move(store.add().id, "start")
    progress = Progress(job, lambda: None, lambda: store.wall)
    store.journal.track(job.id, progress)
    return job, progress


def told(store, job: Job) -> list[tuple[str, float, float]]:
    return [(each.name, each.at, each.seconds) for each in store.journal.view(store.journal.get(job.id)).stages]


def test_an_attempt_that_is_retried_and_done(store):
    """States and what the runner was at, one after the other, while it runs and afterwards, and after a restart."""
    store.add()
    store.wall += 1
    job, progress = begun(store)
    store.wall += 2
    progress.update(phase="fetch")
    store.wall += 3
    expected = [("queued", 0, 1), ("prepare", 1, 2), ("fetch", 3, 3)]
    assert told(store, job) == expected
    store.journal.move(job.id, "retry", delay=4.0)
    store.wall += 4
    store.journal.move(job.id, "due")
    store.wall += 0.5
    job, progress = begun(store)
    store.wall += 1
    progress.stage("store")
    store.wall += 1
    store.journal.move(job.id, "succeed")
    store.wall += 100
    store.reopen()
    expected += [("waiting", 6, 4), ("queued", 10, 0.5), ("prepare", 10.5, 1), ("store", 11.5, 1)]
    assert told(store, job) == expected


def test_what_a_crash_cuts_off(store):
    """Of an attempt that nobody finished it is known how long it may have been; of one that was stopped, what it did."""
    job, progress = begun(store)
    store.wall += 2
    store.reopen()
    store.journal.recover()
    assert told(store, job) == [("interrupted", 0, 2)]
    job, progress = begun(store)
    store.wall += 1
    progress.update(phase="fetch")
    store.wall += 1
    store.journal.keep_progress(job.id)
    store.wall += 5
    store.reopen()
    store.journal.recover()
    assert told(store, job) == [("interrupted", 0, 2), ("prepare", 2, 1), ("fetch", 3, 1), ("interrupted", 4, 5)]


def test_nothing_is_left_out_between_the_clocks(store):
    """What an attempt took beyond what its runner's clock saw is of its last stage."""
    job = store.journal.move(store.add().id, "start")
    store.wall += 1  # before anybody looked at the other clock
    progress = Progress(job, lambda: None, lambda: store.wall)
    store.journal.track(job.id, progress)
    store.wall += 2
    progress.stage("fetch")
    store.wall += 3
    store.journal.move(job.id, "succeed")
    assert told(store, job) == [("prepare", 0, 2), ("fetch", 2, 4)]


def test_stages_begin_with_the_job(store):
    """A job that never moved has none, and so it is with one that an older smpd kept."""
    job = store.add()
    assert told(store, job) == []
    store.wall += 1
    store.journal.move(job.id, "pause")
    assert told(store, job) == [("queued", 0, 1)]


def test_a_stage_that_begins_while_a_thread_looks_is_no_fault(store):
    """A job is read in threads while its runner goes on in the event loop: what is shown is of before or after."""
    job = store.journal.move(store.add().id, "start")
    times = iter(range(10))

    def clock() -> float:
        now = next(times)
        if now == 2:
            progress.stage("seal")
        return job.created + now

    progress = Progress(job, lambda: None, clock)
    assert [each.name for each in progress.of(job).stages if each.name != "queued"] == ["prepare"]
    assert [each.name for each in progress.of(job).stages if each.name != "queued"] == ["prepare", "seal"]
