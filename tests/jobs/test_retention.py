"""Which jobs that are over are forgotten, and which are not."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from smp_proto.control import PutSpec
from smp_proto.errors import NotFoundError, ResourceError
from smpd.jobs import retention
from smpd.jobs.deliveries import Delivery
from smpd.jobs.job import Job
from smpd.jobs.retention import Retention


def _job(store: Any, name: str, *moves: str, recorded: bool = True) -> Job:
    """A job that was moved so; its end, if it has one, is recorded."""
    job = store.add(f"a:{name}", key=name)
    for move in moves:
        job = store.journal.move(job.id, move)
    if recorded:
        _record(store)
    return job


def _record(store: Any) -> None:
    for ending in store.journal.endings.pending():
        store.journal.endings.recorded(ending)
    store.journal.endings.flush()


def _done(store: Any, name: str, **more: Any) -> Job:
    return _job(store, name, "start", "succeed", **more)


def _names(store: Any) -> list[str]:
    return sorted(job.spec.source.removeprefix("a:") for job in store.journal.list())


def _sync_names(store: Any, job: Job, state: str) -> None:
    """An object of a sync is in this state with this job."""
    with store.db.transaction() as connection:
        connection.execute("INSERT OR IGNORE INTO syncs (number, name, created, body) VALUES (1, 's', 0, x'')")
        connection.execute("DELETE FROM sync_objects")
        values = (job.id.encode(), b"", state, job.id)
        sql = (
            "INSERT INTO sync_objects (sync, token, version, state, live, found, job, body) VALUES (1,?,?,?,0,0,?,x'')"
        )
        connection.execute(sql, values)


def test_the_newest_are_kept(store, monkeypatch) -> None:
    """Of done and cancelled ones as many as are kept, by order of submission, over pieces; others do not count."""
    monkeypatch.setattr(retention, "PIECE", 2)
    jobs = [_done(store, f"d{n}") if n % 2 else _job(store, f"d{n}", "cancel") for n in range(9)]
    keeper = Retention(store.db, store.journal, 3)
    assert keeper.sweep() == 6
    assert _names(store) == ["d6", "d7", "d8"]
    assert keeper.sweep() == 0
    with pytest.raises(NotFoundError):
        store.journal.get(jobs[0].id)
    store.reopen()
    assert _names(store) == ["d6", "d7", "d8"]


def test_what_is_not_over_is_kept(store) -> None:
    """However old: what failed or is quarantined, too, which a person has still to look at."""
    moves = {
        "queued": (),
        "waiting": ("hold",),
        "running": ("start",),
        "paused": ("pause",),
        "failed": ("start", "fail"),
        "quarantined": ("start", "quarantine"),
    }
    for name, each in moves.items():
        _job(store, name, *each)
    for n in range(3):
        _done(store, f"z{n}")
    assert Retention(store.db, store.journal, 1).sweep() == 2
    assert _names(store) == sorted([*moves, "z2"])


def test_a_record_that_is_owed_keeps_its_job(store) -> None:
    """A job whose end the audit log does not tell of is not forgotten; once it does, it is."""
    _done(store, "owed", recorded=False)
    _done(store, "new", recorded=False)
    keeper = Retention(store.db, store.journal, 1)
    assert keeper.sweep() == 0
    _record(store)
    assert keeper.sweep() == 1
    assert _names(store) == ["new"]


def test_an_upload_to_be_cleared_keeps_its_job(store) -> None:
    """Where a cancelled job's upload may have left something at a remote, the job says where."""
    job, _ = store.journal.add(PutSpec("b:c", ["key"]), owner="1:x", key="put")
    store.journal.deliveries.keep(job.id, Delivery(sent=True, part="p"))
    store.journal.move(job.id, "cancel")
    _done(store, "new")
    keeper = Retention(store.db, store.journal, 1)
    assert keeper.sweep() == 0
    assert store.journal.deliveries.abandoned() == [job.id]
    store.journal.deliveries.forget(job.id)
    assert keeper.sweep() == 1


@pytest.mark.parametrize(
    ("state", "kept"), [("working", True), ("delivered", True), ("done", False), ("failed", False), ("gone", False)]
)
def test_a_sync_that_is_not_through_with_its_job_keeps_it(store, state: str, kept: bool) -> None:
    """It has not taken in yet how the job ended."""
    job = _done(store, "synced")
    _sync_names(store, job, state)
    _done(store, "new")
    assert Retention(store.db, store.journal, 1).sweep() == (not kept)
    assert _names(store) == (["new", "synced"] if kept else ["new"])


def test_what_is_owed_does_not_cost_a_newer_job_its_place(store) -> None:
    """An old job that must stay is beyond the count; the newest stay all the same."""
    _sync_names(store, _done(store, "a"), "working")
    for name in "bcd":
        _done(store, name)
    assert Retention(store.db, store.journal, 2).sweep() == 1
    assert _names(store) == ["a", "c", "d"]


def test_damage_is_kept_and_holds_up_nothing(store, monkeypatch) -> None:
    """A job whose record does not open may be in another state than its row says: it stays, and those after it go."""
    monkeypatch.setattr(retention, "PIECE", 1)
    job = _done(store, "damaged")
    _done(store, "old")
    _done(store, "new")
    with store.db.transaction() as connection:
        connection.execute("UPDATE jobs SET attempt=attempt+1 WHERE id=?", (job.id,))
    assert Retention(store.db, store.journal, 1).sweep() == 1
    assert store.journal.damaged() == (job.id,)
    assert _names(store) == ["new"]


def test_a_key_goes_with_its_job(store) -> None:
    """The same request again is another job then."""
    old = _done(store, "a")
    _done(store, "b")
    assert store.add("a:a", key="a").id == old.id
    Retention(store.db, store.journal, 1).sweep()
    assert store.add("a:a", key="a").id != old.id


def test_no_row_of_a_forgotten_job_is_left(store) -> None:
    """Nothing refers to it: the database is as if it had never been there, but for the count."""
    _done(store, "a")
    _done(store, "b")
    Retention(store.db, store.journal, 1).sweep()
    for table in ("sources", "ranges", "quarantine", "deliveries", "endings"):
        assert store.db.rows(f"SELECT count(*) FROM {table}") == [(0,)]
    assert store.db.rows("PRAGMA foreign_key_check") == []


async def _until(test: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not test():
            await anyio.sleep(0.005)


@pytest.mark.anyio
async def test_it_looks_at_the_start_and_after_a_piece(store, monkeypatch) -> None:
    """Between two looks a piece of jobs may end; what another state is reached with does not count."""
    monkeypatch.setattr(retention, "PIECE", 3)
    old = [_done(store, f"a{n}") for n in range(3)]
    keeper = Retention(store.db, store.journal, 1)
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run)
        await _until(lambda: _names(store) == ["a2"])
        for n in range(2):
            keeper.moved(_done(store, f"b{n}"))
            keeper.moved(_job(store, f"c{n}", "start", "fail"))
        await anyio.wait_all_tasks_blocked()
        assert len(_names(store)) == 5
        keeper.moved(old[0])
        await _until(lambda: _names(store) == ["b1", "c0", "c1"])
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_failing_disk_does_not_end_it(store, monkeypatch) -> None:
    """What cannot be deleted now is deleted later."""
    monkeypatch.setattr(retention, "_AGAIN_S", 0.01)
    _done(store, "a")
    _done(store, "b")
    keeper = Retention(store.db, store.journal, 1)
    sweep, failed = keeper.sweep, []

    def failing() -> int:
        if len(failed) < 2:
            failed.append(1)
            raise ResourceError("disk_full", "there is no room")
        return sweep()

    monkeypatch.setattr(keeper, "sweep", failing)
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run)
        await _until(lambda: _names(store) == ["b"])
        group.cancel_scope.cancel()
    assert len(failed) == 2
