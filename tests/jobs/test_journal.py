"""The job table on disk."""

import contextlib
import random
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from smp_proto.control import GetSpec, JobView, PutSpec, Result, RunSpec, Transfer
from smp_proto.errors import ErrorBody, IntegrityError, NotFoundError, ResourceError, SmpError, StateError
from smpd.jobs.job import Progress, Source, new_job_id

SECRET = "pacs:MUELLER^HANS/1961-03-04/ct-thorax.smp"


def test_add_is_durable_and_idempotent(store) -> None:
    """The same owner and key give the same job, also after reopening; another owner's key is another job."""
    job, created = store.journal.add(GetSpec("a:b"), owner="1:x", key="k", priority="high")
    assert created
    store.reopen()
    assert (job, False) == store.journal.add(GetSpec("a:b"), owner="1:x", key="k")
    assert job == store.journal.get(job.id)
    assert store.journal.add(GetSpec("a:b"), owner="2:y", key="k")[1]
    with pytest.raises(StateError) as caught:
        store.journal.add(GetSpec("a:c"), owner="1:x", key="k")
    assert caught.value.code == "exists"
    assert job.id in caught.value.message
    assert sum(store.journal.counts().values()) == 2


def test_a_job_is_never_there_without_its_source(store, monkeypatch) -> None:
    """A job that is pinned from the first and its pin are kept together, or neither is."""
    source = Source("", 0, b"what was sealed")
    job, _ = store.journal.add(GetSpec("a:b"), owner="1:x", key="k", source=source)
    store.reopen()
    assert source == store.journal.source(job.id)

    def fail(*_: object) -> None:
        raise OSError(5, "cut off")

    monkeypatch.setattr(store.journal, "_pin", fail)
    with pytest.raises(OSError, match="cut off"):
        store.journal.add(GetSpec("a:c"), owner="1:x", key="l", source=source)
    assert [job.id] == [each.id for each in store.journal.list()]


def test_a_job_is_started_where_there_is_room(store) -> None:
    """Else it stays as it was. Only a job added here that never ran is known to have nothing of an earlier attempt."""
    job = store.add()
    short = ResourceError("disk_full", "there is no room")
    assert store.journal.start(job.id, lambda found: short) is short
    assert store.journal.get(job.id) == job
    seen = []
    started = store.journal.start(job.id, seen.append)
    assert (started.state, started.attempt, started.first) == ("running", 1, True)
    assert seen == [job]
    with pytest.raises(StateError):
        store.journal.start(job.id, lambda found: None)
    store.journal.move(job.id, "retry")
    store.journal.move(job.id, "due")
    assert not store.journal.start(job.id, lambda found: None).first
    sealed = store.add("a:c", source=Source("", 0, b"what was sealed"))
    paused, other = store.add("a:d"), store.add("a:e")
    store.journal.move(paused.id, "pause")
    store.journal.move(paused.id, "resume")
    for each in (sealed, paused):
        assert not store.journal.start(each.id, lambda found: None).first
    store.reopen()
    assert not store.journal.start(other.id, lambda found: None).first


def test_an_end_is_pending_until_it_is_recorded(store, monkeypatch) -> None:
    """Also after a restart; one whose transaction failed is not."""
    jobs = [store.add(name) for name in ("a:b", "a:c", "a:d")]
    for job in jobs[:2]:
        store.journal.move(job.id, "start")
        store.journal.move(job.id, "succeed", result=Result())
    with monkeypatch.context() as patch:
        patch.setattr(store.db, "_leave", lambda group, leave=store.db._leave: (leave_undone(group), leave(group)))
        with pytest.raises(ResourceError):
            store.journal.move(jobs[2].id, "cancel")
    pending = store.journal.endings.pending
    assert [(each.job, each.state, each.outcome) for each in pending()] == [(job.id, "done", "ok") for job in jobs[:2]]
    assert pending(jobs[1].id) == pending()[1:]
    assert pending(jobs[2].id) == []
    store.journal.endings.recorded(pending()[0])
    assert [each.job for each in pending()] == [jobs[1].id]
    store.reopen()  # the first one was not struck out yet: it may be recorded twice
    assert [each.job for each in store.journal.endings.pending()] == [jobs[0].id, jobs[1].id]
    store.journal.endings.recorded(store.journal.endings.pending()[0])
    store.journal.move(jobs[2].id, "cancel")  # strikes it out, too
    store.reopen()
    assert [each.job for each in store.journal.endings.pending()] == [jobs[1].id, jobs[2].id]


def leave_undone(group: object) -> None:
    """The disk says no to a commit."""
    group.error = sqlite3.OperationalError("disk I/O error")
    group.error.sqlite_errorcode = sqlite3.SQLITE_IOERR


def _moved(store, job_id: str, transfer: Transfer) -> None:
    """A running job moved so much."""
    progress = Progress(store.journal.get(job_id), lambda: None)
    progress.transfer = transfer
    store.journal.track(job_id, progress)


@pytest.mark.parametrize(
    "spec",
    [
        GetSpec("a:b"),
        RunSpec("a:b", "image.resize", {"size": [1, 2], "nested": {"x": None}}, "c:d", ["key"]),
        PutSpec("a:b", ["k1", "k2"]),
    ],
)
def test_specs_come_back_and_show(store, spec) -> None:
    """Each kind of spec is stored whole; the view shows where from, where to and by what."""
    job, _ = store.journal.add(spec, owner="1:x", key="k")
    store.reopen()
    job = store.journal.get(job.id)
    assert spec == job.spec
    view = store.journal.view(job)
    assert isinstance(view, JobView)
    expected = (spec.__struct_config__.tag, "queued", getattr(spec, "source", ""), getattr(spec, "target", ""))
    assert expected == (view.kind, view.state, view.source, view.target)
    assert getattr(spec, "processor", "") == view.processor
    assert (store.wall, store.wall, 0.0) == (view.created, view.updated, view.retry_at)


def test_move_keeps_the_story(store) -> None:
    """Attempts are counted, errors belong to their state, transfers add up, and resume gives all attempts back."""
    job = store.add()
    assert store.journal.move(job.id, "start").attempt == 1
    error = ErrorBody("remote_busy", "slow down", details={"retry_after": 3})
    store.wall += 5
    _moved(store, job.id, Transfer(10, 0, 1.5, "cpu"))
    waiting = store.journal.move(job.id, "retry", error=error, delay=4, due=1234.5)
    assert ("waiting", error, 4.0, 1234.5) == (waiting.state, waiting.error, waiting.delay, waiting.due)
    assert store.wall + 4 == store.journal.view(waiting).retry_at
    store.journal.move(job.id, "due")
    assert store.journal.get(job.id).error is None
    assert store.journal.move(job.id, "start").attempt == 2
    _moved(store, job.id, Transfer(5, 7, 1.0))
    assert store.journal.get(job.id).transfer == Transfer(15, 7, 2.5, "cpu")
    store.journal.move(job.id, "fail", error=error)
    resumed = store.journal.move(job.id, "resume")
    assert (0, None, Transfer(15, 7, 2.5, "cpu")) == (resumed.attempt, resumed.error, resumed.transfer)
    store.journal.move(job.id, "start")
    _moved(store, job.id, Transfer(1, 0, 0.5, "cuda:0"))
    done = store.journal.move(job.id, "succeed", result=Result(vault_id="v"))
    store.reopen()
    assert done == store.journal.get(job.id)
    assert (Result(vault_id="v"), Transfer(16, 7, 3.0, "cuda:0")) == (done.result, done.transfer)


def test_wrong_moves_and_unknown_jobs_change_nothing(store) -> None:
    """What the table does not allow is refused and leaves the record as it was."""
    job = store.add()
    with pytest.raises(StateError, match=job.id):
        store.journal.move(job.id, "resume")
    assert job == store.journal.get(job.id)
    for act in (
        lambda: store.journal.get("nope"),
        lambda: store.journal.move("nope", "start"),
        lambda: store.journal.mark_ranges("nope", {0: b"x"}),
        lambda: store.journal.keep_result("nope", Source("etag:1", 1)),
        lambda: store.journal.keep_progress("nope"),
        lambda: store.journal.pin("nope", "etag:1", 1),
    ):
        with pytest.raises(NotFoundError) as caught:
            act()
        assert caught.value.code == "no_such_job"


def test_list_filters_and_orders_by_submission(store) -> None:
    """Newest first by submission, whatever the clock did in between; counts name every state."""
    ids = []
    for i in range(5):
        store.wall += random.Random(i).choice([-3e8, 3e8])
        ids.append(store.add(f"a:{i}").id)
    store.journal.move(ids[1], "pause")
    assert ids[::-1] == [job.id for job in store.journal.list()]
    assert [ids[4], ids[3]] == [job.id for job in store.journal.list(limit=2)]
    assert [ids[1]] == [job.id for job in store.journal.list(["paused"])]
    counts = store.journal.counts()
    assert (len(counts), counts["queued"], counts["paused"], counts["done"]) == (8, 4, 1, 0)


def test_ids_are_short_and_sorted_by_time() -> None:
    """16 characters of a sorted alphabet, for any clock."""
    ids = [new_job_id(now) for now in (0, 1.5, 1_800_000_000, 2**32 - 1)]
    assert sorted(ids) == ids
    for job_id in [*ids, new_job_id(-5e9), new_job_id(1e12)]:
        assert re.fullmatch("[0-9a-v]{16}", job_id)


def test_progress_shows_live_and_is_kept_at_the_next_move(store) -> None:
    """A running job shows its progress at once; the move that ends it writes it down."""
    job = store.add()
    job = store.journal.move(job.id, "start")
    calls = []
    progress = Progress(job, lambda: calls.append(1))
    store.journal.track(job.id, progress)
    progress.update(total_bytes=100, phase="fetch")
    progress.advance(30)
    shown = store.journal.view(store.journal.get(job.id))
    assert (shown.total_bytes, shown.done_bytes, shown.phase, len(calls)) == (100, 30, "fetch", 2)
    store.journal.move(job.id, "pause")
    progress.advance(50)
    store.reopen()
    kept = store.journal.get(job.id)
    assert (kept.total_bytes, kept.done_bytes, kept.phase) == (100, 30, "fetch")


def test_recover_queues_what_was_running(store) -> None:
    """Only running jobs move, their attempt does not count, and what was marked stays."""
    jobs = [store.add(f"a:{i}") for i in range(3)]
    for job in jobs[:2]:
        store.journal.move(job.id, "start")
    store.journal.move(jobs[1].id, "pause")
    store.journal.mark_ranges(jobs[0].id, {3: b"leaf"})
    store.reopen()
    assert (jobs[0].id,) == store.journal.recover()
    assert [store.journal.get(job.id).state for job in jobs] == ["queued", "paused", "queued"]
    assert store.journal.get(jobs[0].id).attempt == 0
    assert store.journal.ranges(jobs[0].id) == {3: b"leaf"}
    assert store.journal.recover() == ()


def test_sources_and_ranges(store) -> None:
    """Pins and ranges are replaced, cleared, and forgotten when the job ends."""
    job = store.add()
    assert store.journal.source(job.id) is None
    store.journal.keep_result(job.id, Source("etag:1", 10))
    store.journal.keep_result(job.id, Source("etag:2", 20, b"envelope" * 100))
    store.journal.mark_ranges(job.id, {1: b"old", 0: b"zero"})
    store.journal.mark_ranges(job.id, {1: b"new"})
    store.reopen()
    assert Source("etag:2", 20, b"envelope" * 100) == store.journal.source(job.id)
    assert store.journal.ranges(job.id) == {0: b"zero", 1: b"new"}
    store.journal.clear_ranges(job.id)
    assert (store.journal.source(job.id), store.journal.ranges(job.id)) == (None, {})
    store.journal.keep_result(job.id, Source("etag:3", 1))
    store.journal.mark_ranges(job.id, {1: b"new"})
    assert store.journal.pin(job.id, "etag:4", 1) == "etag:3"
    assert store.journal.ranges(job.id) == {1: b"new"}
    store.journal.move(job.id, "cancel")
    assert (store.journal.source(job.id), store.journal.ranges(job.id)) == (None, {})


def test_errors_with_odd_details_are_kept(store) -> None:
    """Details that no message can say are named by type, not lost with the job."""
    job = store.add()
    store.journal.move(job.id, "start")
    store.journal.move(job.id, "fail", error=ErrorBody("internal", "x", details={"what": object(), "n": 1}))
    assert store.journal.get(job.id).error.details == {"what": "<object>", "n": 1}


def test_no_name_is_in_the_files(store) -> None:
    """Neither database nor log nor shared memory holds an object's name, an error's text or the key in the clear."""
    words = [part.encode() for part in re.split(r"[:/]", SECRET)[1:]] + [b"MUELLER", b"idempotent-key"]
    for spec in (GetSpec(SECRET), RunSpec(SECRET, "digest", {"note": SECRET}, SECRET), PutSpec(SECRET, [])):
        job, _ = store.journal.add(spec, owner="1:x", key=f"idempotent-key {spec.__struct_config__.tag}")
        store.journal.keep_result(job.id, Source(SECRET, 1, SECRET.encode()))
        store.journal.mark_ranges(job.id, {0: SECRET.encode()})
        store.journal.move(job.id, "start")
        error = ErrorBody("corrupt", SECRET, SECRET, details={"x": SECRET})
        store.journal.move(job.id, "quarantine", error=error, result=Result(target=SECRET))

    def contents() -> bytes:
        return b"".join(path.read_bytes() for path in store.path.parent.iterdir())

    assert store.journal.get(job.id).id.encode() in contents()
    assert not [word for word in words if word in contents()]
    store.reopen()
    assert not [word for word in words if word in contents()]


@pytest.mark.parametrize(
    "change",
    [
        "state='done'",
        "state='gone'",
        "state=CAST(x'ff80' AS TEXT)",
        "owner='0:root'",
        "priority='critical'",
        "attempt=0",
        "created=1",
        "done_bytes=5",
        "phase='x'",
        "token=x'00'",
        "spec=x''",
        "ending=x'00'",
        "spec=ending",
        "id='0000000000000000'",
        "spec=(SELECT spec FROM jobs WHERE number=2)",
    ],
)
def test_a_changed_column_is_seen_and_isolated(store, change: str) -> None:
    """Any column changed behind our back makes that job, and only that job, damaged; the rest goes on."""
    bad, good = store.add("a:bad"), store.add("a:good")
    for job in (bad, good):
        store.journal.move(job.id, "start")
    with store.db.transaction() as connection:
        connection.execute(f"UPDATE jobs SET {change} WHERE number=1")
    store.reopen()
    (damaged,) = store.journal.damaged()
    with pytest.raises(IntegrityError) as caught:
        store.journal.get(damaged)
    assert caught.value.code == "corrupt"
    assert (good.id,) == store.journal.recover()
    assert [good.id] == [job.id for job in store.journal.list()]


def test_a_start_opens_only_what_it_asks_for(store, monkeypatch) -> None:
    """To recover what ran, and to see whether a spool file is needed, no other job's record is opened."""
    ended, running, damaged = store.add("a:1"), store.add("a:2"), store.add("a:3")
    for job in (ended, running, damaged):
        store.journal.move(job.id, "start")
    store.journal.move(ended.id, "cancel")
    with store.db.transaction() as connection:
        connection.execute("UPDATE jobs SET ending=x'00' WHERE id=?", (damaged.id,))
    store.reopen()
    opened, open_row = [], store.journal._opened
    monkeypatch.setattr(store.journal, "_opened", lambda row: opened.append(row[0]) or open_row(row))
    assert store.journal.recover() == (running.id,)
    assert opened == [running.id, damaged.id]
    assert [store.journal.needs_spool(job.id) for job in (ended, running, damaged)] == [False, True, True]
    assert not store.journal.needs_spool("never")


def test_a_damaged_range_or_source_is_fetched_again(store) -> None:
    """A flipped bit in what serves only resuming costs that range, not the job."""
    job = store.add()
    store.journal.keep_result(job.id, Source("etag:1", 1))
    store.journal.mark_ranges(job.id, {0: b"a" * 32, 1: b"b" * 32})
    with store.db.transaction() as connection:
        connection.execute("UPDATE ranges SET leaves=substr(leaves, 2) WHERE range=0")
        connection.execute("UPDATE sources SET body=x'00'")
    assert store.journal.ranges(job.id) == {1: b"b" * 32}
    assert store.journal.source(job.id) is None
    assert store.journal.pin(job.id, "etag:2", 1) == "etag:2"
    assert store.journal.ranges(job.id) == {}


@pytest.mark.parametrize("seed", range(4))
def test_a_corrupt_byte_never_passes_silently(tmp_path: Path, seed: int, open_store) -> None:
    """One flipped byte anywhere: refused at open, or the job named as damaged, or every record is as it was."""
    rng = random.Random(seed)
    store = open_store(tmp_path / "smp.db")
    jobs = {job.id: job for job in (store.add(f"a:{i}") for i in range(60))}
    store.db.close()
    whole = store.path.read_bytes()
    codes = set()
    for _ in range(60):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        store.path.write_bytes(data)
        with contextlib.suppress(FileNotFoundError):
            (tmp_path / "smp.db-wal").unlink()
        try:
            store.open()
        except SmpError as error:
            codes.add(error.code)
            continue
        found = {job.id: job for job in store.journal.list()}
        assert found == {job_id: jobs[job_id] for job_id in found}
        assert len(found) + len(store.journal.damaged()) == len(jobs)
        assert store.add("a:more", key=str(rng.random())).id
        store.db.close()
    assert codes <= {"disk_failed", "unsupported", "internal"}  # internal: the format number in the header


CHILD = """
import os, sys, random
sys.path[:0] = {paths!r}
from smp_proto.control import GetSpec
from smpd.jobs.database import Database
from smpd.jobs.journal import Journal
from smpd.jobs.seal import StateSeal
journal = Journal(Database(sys.argv[1]), StateSeal(bytearray(range(32))))
def say(*words):
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())
for job_id in journal.recover():
    say("move", job_id, "recover")
for i in range(1_000_000):
    job, _ = journal.add(GetSpec("a:b"), owner="1:x", key=os.urandom(8).hex())
    say("add", job.id)
    journal.move(job.id, "start")
    say("move", job.id, "start")
    for index in range(3):
        journal.mark_ranges(job.id, {{index: bytes([index]) * 256}})
        say("mark", job.id, index)
    if i % 3 == 0:
        journal.move(job.id, "pause")
        say("move", job.id, "pause")
"""


def test_kill_loses_nothing_acknowledged(tmp_path: Path, open_store: Callable) -> None:
    """What a child said was done, before it was killed without warning, is there after reopening; ten times over."""
    path = tmp_path / "smp.db"
    rng = random.Random(20)
    states: dict[str, str] = {}
    marks: dict[str, set[int]] = {}
    after = {"start": "running", "pause": "paused", "recover": "queued"}
    for _ in range(10):
        script = CHILD.format(paths=sys.path)
        child = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
        lines = [child.stdout.readline() for _ in range(rng.randrange(1, 60))]
        child.kill()
        lines += child.stdout.readlines()
        child.stdout.close()
        child.wait()
        for line in lines:
            what, job_id, *rest = line.split()
            if what == "add":
                states[job_id] = "queued"
            elif what == "move":
                states[job_id] = after[rest[0]]
            else:
                marks.setdefault(job_id, set()).add(int(rest[0]))
        store = open_store(path)
        unsaid = 0
        for job_id, state in states.items():
            job = store.journal.get(job_id)
            # The last act may be done and not yet said.
            unsaid += job.state != state
            states[job_id] = job.state
            ranges = store.journal.ranges(job_id)
            assert marks.get(job_id, set()) <= set(ranges)
            assert all(bytes([index]) * 256 == leaves for index, leaves in ranges.items())
        assert unsaid <= 1
        assert len(states) <= sum(store.journal.counts().values()) <= len(states) + 1
        for job in store.journal.list():
            states.setdefault(job.id, job.state)
        store.db.close()


def test_database_of_another_program_is_refused(tmp_path: Path, open_store: Callable) -> None:
    """A table of ours that is someone else's is an error, not a mix."""
    with sqlite3.connect(tmp_path / "smp.db") as connection:
        connection.execute("CREATE TABLE jobs (x)")
    connection.close()
    with pytest.raises(SmpError, match="its schema"):
        open_store(tmp_path / "smp.db")


def test_of_one_user_alone(store) -> None:
    """By the number at the end of the label; the records of others are not even opened."""
    owners = ["anna(7)", "bert(17)", "uid(7)", "a(7)(70)"]
    jobs = [store.journal.add(GetSpec("a:b"), owner=owner, key=owner)[0] for owner in owners]
    opened = []

    def look(job) -> bool:
        opened.append(job.owner)
        return True

    assert [job.id for job in store.journal.list(wanted=look, uid=7)] == [jobs[2].id, jobs[0].id]
    assert opened == ["uid(7)", "anna(7)"]
    assert len(store.journal.list(uid=7)) == 2
    assert len(store.journal.list()) == 4


def test_a_job_whose_id_is_not_found_again_does_not_keep_the_others_from_recovering(store) -> None:
    """A flipped bit may leave no UTF-8: the id that is read is then none that is there."""
    jobs = [store.add(f"a:{i}") for i in range(2)]
    for job in jobs:
        store.journal.move(job.id, "start")
    with store.db.transaction() as connection:
        connection.execute("UPDATE jobs SET id=CAST(x'80'||substr(id, 2) AS TEXT) WHERE id=?", (jobs[0].id,))
    store.reopen()
    assert store.journal.recover() == (jobs[1].id,)


@pytest.mark.parametrize("change", ["state='Done'", "state=x'00'", "owner=''", "job=x'07'", "outcome=x''"])
def test_an_end_that_says_nothing_any_more_is_left_out_and_counted(store, change: str) -> None:
    """No record could be made of it, and the ends after it are recorded."""
    jobs = [store.add(f"a:{i}") for i in range(2)]
    for job in jobs:
        store.journal.move(job.id, "cancel")
    with store.db.transaction() as connection:
        connection.execute(f"UPDATE endings SET {change} WHERE job=?", (jobs[0].id,))
    store.reopen()
    endings = store.journal.endings
    assert [ending.job for ending in endings.pending()] == [jobs[1].id]
    assert endings.damaged == 1
    endings.flush()
    store.reopen()
    assert store.journal.endings.damaged == 0
