"""What an attempt leaves for the next one, where the vault could not take the results."""

from pathlib import Path

import anyio
import pytest
from whole import Whole, whole

from smp_proto.control import Result, RunSpec
from smp_proto.errors import AuditError
from smpd.jobs.job import Job, Progress
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


async def keep(box: Whole, job: Job, result: Result) -> Result:
    """Have them kept."""
    runner = box.daemon.runner
    return await runner._keep(job, Meter(Progress(job, lambda: None)), runner.leavings.out(job.id), result)


async def test_results_are_noted_with_their_place_in_the_vault(tmp_path: Path) -> None:
    """In one transaction: a crash before it costs the results, one after it nothing."""
    async with whole(tmp_path) as box:
        job, result = await computed(box)
        journal, vault = box.daemon.box.journal, box.daemon.box.vault
        assert await anyio.to_thread.run_sync(journal.result, job.id) is None
        kept = await keep(box, job, result)
        noted = await anyio.to_thread.run_sync(journal.result, job.id)
        assert noted is not None
        assert noted.object_id == kept.object_id == result.object_id
        assert await anyio.to_thread.run_sync(vault.adopted, job.id) == {kept.vault_id}


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
                patch.setattr(leavings, "note_in", broken)
            else:
                patch.setattr(box.daemon.audit, "append", broken)
            with pytest.raises(AuditError):
                await keep(box, job, result)
        assert Path(leavings.out(job.id)).exists() != moved
        left = await anyio.to_thread.run_sync(leavings.of, job.id)
        found = await leavings.sealed(job.id, left)
        assert found is not None
        assert found.object_id == result.object_id
        kept = await keep(box, job, found)
        items = await anyio.to_thread.run_sync(inside.vault.list)
        assert [(each.id, each.object_id) for each in items] == [(kept.vault_id, result.object_id)]
