"""What an attempt leaves for the next one, where the vault could not take the results."""

import os
import sqlite3
import threading
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from whole import Whole, whole

from smp_proto.control import AnyJobSpec, GetSpec, PutSpec, Result, RunSpec
from smp_proto.errors import AuditError
from smpd.jobs.job import Job, Progress
from smpd.jobs.journal import Journal
from smpd.transfer import adopting
from smpd.transfer.adopting import Brought
from smpd.transfer.box import Meter
from smpd.transfer.device import finish_results
from smpd.transfer.runner import result_of
from smpd.transfer.sealing import sealed_file


async def computed(box: Whole) -> tuple[Job, Result]:
    """A job in its first attempt, with results that are sealed and neither synced nor noted."""
    inside, leavings = box.daemon.box, box.daemon.runner.leavings

    def begin() -> Job:
        inside.journal.add(RunSpec("pacs:scan.smp", "stats"), owner="1000:ann", key="k", job_id="0123456789abcdef")
        job = inside.journal.start("0123456789abcdef", lambda _: None)
        assert isinstance(job, Job)
        return job

    job = await anyio.to_thread.run_sync(begin)
    assert job.first
    path = leavings.out(job.id)
    async with sealed_file(inside.space, path, inside.identities, [inside.identity.public]) as writer:

        def write() -> Result:
            writer.syncs = False
            writer.begin("mean.txt", "text/plain", {})
            writer.write(b"17")
            writer.end()
            result = result_of(finish_results(writer))
            leavings.sealed_source(job.id, result, writer.signed_by)
            return result

        return job, await anyio.to_thread.run_sync(write)


async def keep(box: Whole, job: Job, result: Result) -> Job:
    """Have them kept; the job as it ended."""
    runner = box.daemon.runner
    progress = Progress(job, lambda: None)
    box.daemon.box.journal.track(job.id, progress)
    brought = Brought(runner.leavings.out(job.id), result)
    return await adopting.keep(box.daemon.box, runner.leavings, job, Meter(progress), brought)


async def test_results_are_in_the_vault_when_their_job_is_done(tmp_path: Path, monkeypatch) -> None:
    """In one transaction: a crash before it costs the results, one after it nothing; no moment has one of the two."""
    async with whole(tmp_path) as box:
        job, result = await computed(box)
        journal, vault = box.daemon.box.journal, box.daemon.box.vault
        seen = []

        def succeed_in(connection: sqlite3.Connection, **facts: Any) -> Any:
            committed = Journal.succeed_in(journal, connection, **facts)
            seen.append((journal.get(job.id).state, vault.adopted(job.id)))
            return committed

        monkeypatch.setattr(journal, "succeed_in", succeed_in)
        kept = await keep(box, job, result)
        assert seen == [("running", frozenset())]
        assert kept.state == "done"
        assert kept.result is not None
        stored = await anyio.to_thread.run_sync(journal.get, job.id)
        assert (stored.state, stored.result) == ("done", kept.result)
        assert stored.transfer.seconds > 0
        assert await anyio.to_thread.run_sync(vault.adopted, job.id) == {kept.result.vault_id}


@pytest.mark.parametrize("moved", [False, True])
async def test_results_that_cannot_be_kept_yet_are_not_computed_again(tmp_path: Path, monkeypatch, moved: bool) -> None:
    """They are noted when the record of their keeping, or the row, cannot be written, and kept by the next attempt.

    Without the row their file has its name in the vault already.
    """
    async with whole(tmp_path) as box:
        job, result = await computed(box)
        inside, leavings = box.daemon.box, box.daemon.runner.leavings

        def broken(*_: object, **__: object) -> None:
            raise AuditError("audit_broken", "it cannot be written")

        with monkeypatch.context() as patch:
            if moved:
                patch.setattr(inside.journal, "succeed_in", broken)
            else:
                patch.setattr(box.daemon.audit, "append", broken)
            with pytest.raises(AuditError):
                await keep(box, job, result)
        assert Path(leavings.out(job.id)).exists() != moved
        left = await anyio.to_thread.run_sync(leavings.of, job.id)
        found = await leavings.sealed(job.id, left)
        assert found is not None
        assert found.object_id == result.object_id
        kept = (await keep(box, job, found)).result
        assert kept is not None
        items = await anyio.to_thread.run_sync(inside.vault.list)
        assert [(each.id, each.object_id) for each in items] == [(kept.vault_id, result.object_id)]


@pytest.mark.parametrize("single", [False, True])
async def test_what_a_job_left_goes_and_nothing_else(tmp_path: Path, monkeypatch, single: bool) -> None:
    """Of a job over a prefix the files of each object as well; for any other job the spool is not listed."""
    async with whole(tmp_path) as box:
        leavings, spool = box.daemon.runner.leavings, Path(box.daemon.box.spool_dir)
        own = ["a.part", "a.out"] if single else ["a.part", "a.out", "a.0123.part"]
        others = ["ab.part", "b.out", "b.a.part"]
        for name in own + others:
            (spool / name).touch()
        if single:
            monkeypatch.setattr(os, "listdir", None)
        await anyio.to_thread.run_sync(partial(leavings.discard, "a", single=single))
        monkeypatch.undo()
        assert sorted(each.name for each in spool.iterdir()) == sorted(others)


@pytest.mark.parametrize(
    ("spec", "single"),
    [
        (GetSpec("r:scan.smp"), True),
        (GetSpec("r:all/"), False),
        (GetSpec("r:"), False),
        (RunSpec("r:scan.smp", "stats"), True),
        (RunSpec("r:all/", "stats", target="r:out/"), False),
        (PutSpec("r:out/", []), True),
    ],
)
async def test_a_job_over_a_prefix_may_have_left_many_files(
    tmp_path: Path, monkeypatch, spec: AnyJobSpec, single: bool
) -> None:
    """Whatever it was told by; at its end its files are looked for accordingly."""
    async with whole(tmp_path) as box:
        inside, found = box.daemon.box, []
        monkeypatch.setattr(box.daemon.runner.leavings, "discard", lambda _job, single: found.append(single))

        def cancelled() -> Job:
            job, _ = inside.journal.add(spec, owner="1000:ann", key="k")
            return inside.journal.move(job.id, "cancel")

        await box.daemon.ends.ended(await anyio.to_thread.run_sync(cancelled))
        assert found == [single]


async def test_the_ends_of_several_jobs_are_recorded_together(tmp_path: Path, monkeypatch) -> None:
    """Each waits for a sync of the audit log, and they can share one; those of one job come one after the other."""
    async with whole(tmp_path) as box:
        inside, together = box.daemon.box, threading.Barrier(2)
        write = inside.audit.write

        def meet(event: str, **fields: Any) -> Any:
            together.wait(10)
            return write(event, **fields)

        def cancelled(key: str) -> Job:
            job, _ = inside.journal.add(GetSpec("r:scan.smp"), owner="1000:ann", key=key)
            return inside.journal.move(job.id, "cancel")

        jobs = [await anyio.to_thread.run_sync(cancelled, key) for key in "ab"]
        monkeypatch.setattr(inside.audit, "write", meet)
        async with anyio.create_task_group() as group:
            for job in (*jobs, *jobs):  # told twice, recorded once: a third would wait in vain
                group.start_soon(box.daemon.ends.ended, job)
        assert inside.journal.endings.pending() == []
