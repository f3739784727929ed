"""What the syncs need of the daemon."""

from typing import Any, Protocol

from smp_proto.control import AnyJobSpec, Priority, SyncSpec
from smpd.jobs.job import Job
from smpd.transfer.pool import RemotePool


class World(Protocol):
    """What a sync needs of the daemon."""

    async def require(self, owner: str, spec: SyncSpec, /) -> None:
        """See that an owner may still do what a sync does; raises ``forbidden``."""

    async def remote(self, name: str) -> RemotePool:
        """The pool of a remote; raises ``no_such_remote``."""

    async def submit(self, spec: AnyJobSpec, *, owner: str, key: str, priority: Priority, job_id: str) -> Job:
        """Record and keep a job; the same key again gives the job that is there."""

    async def job(self, job_id: str) -> Job:
        """A job as it is now; raises ``no_such_job``."""

    async def resume(self, job_id: str) -> Job:
        """Queue a job that failed once more; raises ``wrong_state``, ``no_such_job``."""

    async def audit(self, event: str, *, actor: str, job: str, subject: str, **fields: Any) -> Any:
        """Write a record before an act."""
