"""What follows the end of a job: its record in the audit log, and the tidying of what it leaves behind."""

from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import anyio

from smpd.jobs.endings import Ending
from smpd.jobs.job import Job
from smpd.jobs.states import ENDED
from smpd.transfer.box import Box
from smpd.transfer.runner import Runner
from smpd.vault.remotes import is_prefix


class Ends:
    """Records the ends that the journal knows of, each once, or a second time where a crash leaves it open.

    Args:
        box: what there is.
        runner: tidies.
    """

    def __init__(self, box: Box, runner: Runner) -> None:
        self._box = box
        self._runner = runner
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()  # by job: several share a sync

    async def ended(self, job: Job) -> None:
        """A job has just ended.

        Raises:
            AuditError: it could not be recorded; :meth:`catch_up` does it once the log can be written.
        """
        await self._record(job.id, again=False, single=_is_single(job))
        if job.state != "done":
            self._runner.courier.poke()

    async def catch_up(self, *, again: bool) -> None:
        """Record what is still to be recorded. ``again`` marks the records that may be there for the second time.

        Raises:
            AuditError: it cannot be written.
        """
        for job_id in dict.fromkeys(ending.job for ending in self._box.journal.endings.pending()):
            await self._record(job_id, again=again)

    async def _record(self, job_id: str, *, again: bool, single: bool = False) -> None:
        async with self._locks.setdefault(job_id, anyio.Lock(fast_acquire=True)):
            with anyio.CancelScope(shield=True):  # one that is written is struck out, too
                await anyio.to_thread.run_sync(self._write, job_id, again, single)

    def _write(self, job_id: str, again: bool, single: bool) -> None:
        fields: dict[str, Any] = {"again": True} if again else {}
        for ending in self._box.journal.endings.pending(job_id):
            facts = {"actor": ending.owner, "job": ending.job, "outcome": ending.outcome, **fields}
            self._box.audit.write(f"job.{ending.state}", act=partial(self._tidy, ending, single), **facts)

    def _tidy(self, ending: Ending, single: bool) -> None:
        self._box.journal.endings.recorded(ending)
        if ending.state in ENDED:
            self._runner.leavings.discard(ending.job, single=single)


def _is_single(job: Job) -> bool:
    """Whether a job is not over a prefix."""
    source = getattr(job.spec, "source", None)
    return source is None or not is_prefix(source.partition(":")[2])
