"""What failed jobs hold goes to those that wait for room, and nothing else does."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from msgspec.structs import replace
from whole import whole

from smp_proto.control import GetSpec
from smp_proto.errors import ErrorBody, NotFoundError
from smpd.host.space import Room
from smpd.jobs.database import Database
from smpd.jobs.holding import Short
from smpd.jobs.job import Progress
from smpd.jobs.journal import Journal
from smpd.jobs.seal import StateSeal
from smpd.transfer.yielding import Yielding

PART = 64 << 10
FAULT = ErrorBody("processor_failed", "it broke")


class FakeDisk:
    """One of which so much is free as the parts that were taken make it, plus ``free``."""

    def __init__(self, folder: Path, free: int) -> None:
        self._folder = folder
        self._all = free + self._held()
        self.looks = 0

    def look(self) -> Room:
        self.looks += 1
        return Room(self._all - self._held(), 0, 0, 0)

    def _held(self) -> int:
        return sum(os.stat(path).st_blocks * 512 for path in self._folder.iterdir())


class Place:
    """A spool and a journal."""

    def __init__(self, folder: Path, db: Database, seal: StateSeal) -> None:
        self.folder = folder
        self.db = db
        self.journal = Journal(db, seal)
        self.made = 0

    def job(self, state: str, *files: str) -> str:
        """A job in a state, with files in the spool, the later the job the younger."""
        self.made += 1
        job = self.journal.add(GetSpec(f"lake:{self.made}"), owner="1:x", key=str(self.made))[0]
        if state != "queued":
            self.journal.start(job.id, lambda _: None)
            self.journal.pin(job.id, f"etag:{PART}:{self.made}", PART)
            self.journal.mark_ranges(job.id, {0: bytes(32)})
            moves: dict[str, Any] = {"failed": "fail", "paused": "pause", "quarantined": "quarantine"}
            if state in moves:
                self.journal.move(job.id, moves[state], error=None if state == "paused" else FAULT)
        for name in files:
            path = self.folder / f"{job.id}{name}"
            path.write_bytes(os.urandom(PART))
            os.utime(path, (self.made, self.made))
        return job.id

    def yielding(self, free: int = 0) -> tuple[Yielding, FakeDisk]:
        disk = FakeDisk(self.folder, free)
        box: Any = SimpleNamespace(spool_dir=str(self.folder), journal=self.journal, space=disk)
        return Yielding(box, lambda job: str(self.folder / f"{job}.part")), disk

    @property
    def left(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def place(tmp_path: Path, db: Database, seal: StateSeal) -> Iterator[Place]:
    (tmp_path / "spool").mkdir()
    return Place(tmp_path / "spool", db, seal)


async def test_the_oldest_go_until_there_is_enough(place: Place) -> None:
    """In the order in which they were written; the job is not what it was pinned to, and begins with nothing marked."""
    jobs = [place.job("failed", ".part") for _ in range(4)]
    yielding, disk = place.yielding(free=PART)
    await yielding.make_room(3 * PART)
    assert place.left == {f"{job}.part" for job in jobs[2:]}
    assert disk.look().usable == 3 * PART
    for job in jobs:
        source = place.journal.source(job)
        assert source is not None
        assert source.pin.startswith("etag:")
    assert [bool(place.journal.ranges(job)) for job in jobs] == [False, False, True, True]
    await yielding.make_room(3 * PART)
    assert len(place.left) == 2


async def test_only_what_can_be_fetched_again_and_nobody_works_on(place: Place) -> None:
    """Jobs that run, wait for a person, or are refused keep theirs, and so does who has results or a folder of objects."""
    for state in ("queued", "running", "paused", "quarantined"):
        place.job(state, ".part")
    for files in ((".out",), (".part", ".out"), (".part", ".3.part"), (".3.part",)):
        place.job("failed", *files)
    (place.folder / "unknown.part").write_bytes(b"of a job that is not there")
    damaged = place.job("failed", ".part")
    with place.db.transaction() as connection:
        connection.execute("UPDATE jobs SET spec=x'00' WHERE id=?", (damaged,))
    before = place.left
    gone = place.job("failed", ".part")
    yielding, _ = place.yielding()
    await yielding.make_room(1 << 40)
    assert place.left == before
    assert not place.journal.ranges(gone)


async def test_who_cannot_say_for_how_much_is_given_something(place: Place) -> None:
    """A write that failed for want of room tells no size."""
    jobs = [place.job("failed", ".part") for _ in range(2)]
    yielding, _ = place.yielding(free=PART)
    await yielding.make_room(0)
    assert len(place.left) == 2
    await yielding.make_room(0, some=True)
    assert place.left == {f"{jobs[1]}.part"}


async def test_a_job_that_is_resumed_meanwhile(place: Place) -> None:
    """Its attempt looks at what it has once the taking is over; resumed before, nothing is taken from it."""
    first, second = (place.job("failed", ".part") for _ in range(2))
    yielding, disk = place.yielding()
    taken = anyio.Event()

    class Slow:
        def look(self) -> Room:
            if disk.looks == 1:  # before the second
                place.journal.move(second, "resume")
            return disk.look()

    yielding._box.space = Slow()  # type: ignore[assignment]  # it is a fake already

    async def attempt() -> None:
        await yielding.settled(first)
        assert f"{first}.part" not in place.left
        assert not place.journal.ranges(first)
        taken.set()

    begin = yielding._take

    def take(job_id: str) -> int:
        if job_id == first:
            anyio.from_thread.run_sync(group.start_soon, attempt)
            anyio.from_thread.run(anyio.lowlevel.checkpoint)
            assert not taken.is_set()
        return begin(job_id)

    yielding._take = take  # type: ignore[method-assign]
    async with anyio.create_task_group() as group:
        await yielding.make_room(1 << 40)
    assert taken.is_set()
    assert place.left == {f"{second}.part"}
    assert place.journal.ranges(second)


async def test_a_job_that_is_cancelled_meanwhile(place: Place) -> None:
    """Its file is gone when its turn has come; the next one's is taken."""
    jobs = [place.job("failed", ".part") for _ in range(2)]
    yielding, _ = place.yielding()
    give_up = place.journal.give_up_ranges

    def cancelled(job_id: str) -> bool:
        found = give_up(job_id)
        if job_id == jobs[0]:
            (place.folder / f"{job_id}.part").unlink()
        return found

    place.journal.give_up_ranges = cancelled  # type: ignore[method-assign]
    await yielding.make_room(1 << 40)
    assert place.left == set()


async def test_it_is_done_when_somebody_comes_to_wait(place: Place) -> None:
    """Not before, and again when a job fails while somebody waits; a fault of the disk does not end it."""
    jobs = [place.job("failed", ".part") for _ in range(2)]
    yielding, _ = place.yielding()
    short = Short(0, 0)
    done = anyio.Event()
    make_room = yielding.make_room

    async def made(needed: int, *, some: bool = False) -> None:
        nonlocal done
        await make_room(needed, some=some)
        done.set()

    yielding.make_room = made  # type: ignore[method-assign]

    def moved(job_id: str) -> None:
        yielding.moved(place.journal.get(job_id))

    def waits(job_id: str, **details: int) -> None:
        error = ErrorBody("disk_full", "", details=dict(details))
        yielding.waits(replace(place.journal.get(job_id), state="waiting", error=error))

    async with anyio.create_task_group() as group:
        group.start_soon(yielding.run, lambda: short)
        moved(jobs[0])
        await anyio.wait_all_tasks_blocked()
        assert len(place.left) == 2
        short = Short(1, PART)
        waits(jobs[0], needed_bytes=PART)
        await done.wait()
        assert place.left == {f"{jobs[1]}.part"}
        done, short = anyio.Event(), Short(2, 2 * PART)
        os.rename(place.folder, f"{place.folder}.away")
        moved(jobs[1])
        await anyio.wait_all_tasks_blocked()
        os.rename(f"{place.folder}.away", place.folder)
        moved(jobs[1])
        await done.wait()
        assert place.left == set()
        group.cancel_scope.cancel()


async def test_an_attempt_waits_for_what_is_being_taken(tmp_path: Path) -> None:
    """Else it would find ranges marked that are gone a moment later."""
    async with whole(tmp_path) as box:
        runner, journal = box.daemon.runner, box.daemon.box.journal
        job = await anyio.to_thread.run_sync(lambda: journal.add(GetSpec("nowhere:a"), owner="1:x", key="k")[0])
        taking = runner.yielding._taking[job.id] = anyio.Event()
        ended = anyio.Event()

        async def attempt() -> None:
            with pytest.raises(NotFoundError, match="nowhere"):
                await runner(job, Progress(job, lambda: None))
            ended.set()

        async with anyio.create_task_group() as group:
            group.start_soon(attempt)
            await anyio.wait_all_tasks_blocked()
            assert not ended.is_set()
            taking.set()
        assert ended.is_set()
