"""Two people at once at what a job refused: one removes it, the other has it tried again."""

from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from whole import whole

from smp_proto import control as c
from smp_proto.errors import ErrorBody, SmpError
from smpd.jobs.job import Job
from smpd.vault.quarantine import item_id
from smpd.verbs import quarantine

PLACE = "pacs:scan.smp"


@pytest.mark.parametrize("again", ["retry", "resume"])
async def test_what_is_being_removed_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    """Both looked when the job rested; who comes second finds what the first made of it."""
    async with whole(tmp_path) as box, box.client(0) as one, box.client(0) as other, anyio.create_task_group() as group:
        daemon, outcomes = box.daemon, list[str]()
        journal, store, take_out = daemon.box.journal, daemon.box.quarantine, quarantine.take_out

        def refused() -> Job:
            job, _ = journal.add(c.GetSpec(PLACE), owner="root(0)", key="k")
            journal.move(job.id, "start")
            item = c.QuarantineItem(item_id(job.id, PLACE), job.id, PLACE, "corrupt", "a tag does not match")
            store.add(item)
            return journal.move(job.id, "quarantine", error=ErrorBody("corrupt", "a tag does not match"))

        async def try_again(job: Job) -> None:
            asked = c.QuarantineRetry(item_id(job.id, PLACE)) if again == "retry" else c.JobControl(job.id, "resume")
            try:
                outcomes.append((await other.call(asked, c.JobView, timeout=60.0)).state)
            except SmpError as error:
                outcomes.append(error.code)

        async def taking_out(*args, **options) -> None:
            group.start_soon(try_again, job)
            while not outcomes and not daemon.resting.statistics().tasks_waiting:
                await anyio.lowlevel.checkpoint()
            await take_out(*args, **options)

        monkeypatch.setattr(quarantine, "take_out", taking_out)
        job = await anyio.to_thread.run_sync(refused)
        view = await one.call(c.QuarantineRemove(item_id(job.id, PLACE)), c.JobView, timeout=60.0)
        assert view.state == "cancelled"
        while not outcomes:
            await anyio.lowlevel.checkpoint()
        assert outcomes == ["no_such_object" if again == "retry" else "wrong_state"]
