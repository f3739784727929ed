"""The end of a job whose results stay here: the vault takes them, and with that the job is done."""

import contextlib
from functools import partial
from typing import Any, NamedTuple, cast

import anyio

from smp_proto.control import Result
from smp_proto.errors import SmpError
from smpd.jobs.job import Job
from smpd.transfer.box import Box, Meter
from smpd.transfer.leavings import Leavings
from smpd.transfer.sealing import sealed_by
from smpd.vault.objects import Adoption


class Brought(NamedTuple):
    """What is to be the vault's: a sealed file in the spool, whole and verified.

    Args:
        path: of the file.
        sender: the key id of who sealed it; empty where it was sealed here, perhaps with an earlier key.
    """

    path: str
    result: Result
    sender: bytes = b""


async def keep(box: Box, leavings: Leavings, job: Job, meter: Meter, brought: Brought) -> Job:
    """Have the vault take what a job brought; returns the job as it ended.

    Raises:
        SmpError: it cannot be kept now; the next attempt need not compute it again.
    """
    meter.stage("store")
    result = brought.result
    sender = brought.sender or leavings.signed_by(job.id)
    if not sender:
        sender = await anyio.to_thread.run_sync(sealed_by, brought.path) or box.identity.public.key_id
    item = Adoption(
        job.id,
        brought.path,
        bytes.fromhex(result.object_id),
        sender,
        result.sealed_bytes,
        result.entries,
        result.plain_bytes,
    )
    result.vault_id = item.id

    def adopt() -> Any:
        meter.stop()
        return box.vault.adopt(job.id, [item], partial(box.journal.succeed_in, job_id=job.id, result=result))()

    try:
        fields = {"actor": job.owner, "job": job.id, "subject": result.object_id}
        return cast("Job", await box.audit("object.store", act=adopt, **fields))
    except BaseException:
        with anyio.CancelScope(shield=True), contextlib.suppress(SmpError):
            await anyio.to_thread.run_sync(leavings.note, job.id)
        raise
