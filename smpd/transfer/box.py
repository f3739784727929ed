"""What a job is given of this machine, and how it counts what it moves."""

import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from smp_proto.control import QuarantineChange, Transfer
from smp_proto.sealed.envelope import Trust
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpd.host.space import Space
from smpd.jobs.job import Job, Progress
from smpd.jobs.journal import Journal
from smpd.metrics.counting import Metrics
from smpd.transfer.distributions import ComputePools
from smpd.transfer.pool import RemotePool
from smpd.vault.objects import Vault
from smpd.vault.quarantine import Quarantine
from smpd.vault.versions import Versions


class Senders(Protocol):
    """Who is believed, as it was when this was read."""

    def __call__(self, key_id: bytes, location: str) -> PublicIdentity:
        """Whose key that is, at a location.

        Raises:
            IntegrityError: ``untrusted_sender``.
        """

    def everyone(self) -> Collection[PublicIdentity]:
        """All who may be believed somewhere."""


def trust_at(senders: Senders, location: str) -> Trust:
    """Whom to believe about an object that came from there."""
    return lambda key_id: senders(key_id, location)


class Audit(Protocol):
    """Writes a record before the act it names; raises AuditError when it cannot, and then there is no act."""

    async def __call__(
        self,
        event: str,
        *,
        actor: str,
        job: str = "",
        subject: str = "",
        subjects: Sequence[str] = (),
        act: Callable[[], Any] | None = None,
        **fields: Any,
    ) -> Any:
        """Append and sync; with ``subjects``, one record for each.

        Then do ``act``, if given, in the same thread, and return what it does.
        """

    def write(self, event: str, **fields: Any) -> Any:
        """The same for who is in a thread already; blocking."""


@dataclass(slots=True)
class Meter:
    """Counts one attempt; the journal adds attempts up."""

    progress: Progress
    _began: float = field(init=False, default_factory=time.monotonic)

    @property
    def transfer(self) -> Transfer:
        """What this attempt moved."""
        return self.progress.transfer

    def fetched(self, count: int) -> None:
        """Bytes asked of the remote."""
        self.transfer.fetched_bytes += count

    def resumed(self, count: int) -> None:
        """Bytes that were in the spool already."""
        self.transfer.resumed_bytes += count

    def advanced(self, count: int) -> None:
        """Bytes of this phase that are done."""
        self.progress.advance(count)

    def reached(self, done: int) -> None:
        """So many bytes of this phase are done."""
        self.progress.update(done_bytes=done)

    def begin(self, phase: str, total: int) -> None:
        """A new phase."""
        self.progress.update(phase=phase, done_bytes=0, total_bytes=total)

    def stop(self) -> None:
        """The attempt ends, as far as its time is counted."""
        self.transfer.seconds = time.monotonic() - self._began

    def stage(self, name: str) -> None:
        """What the job is at from now on; see :class:`smp_proto.control.JobStage`."""
        self.progress.stage(name)

    def found(self, count: int) -> None:
        """So many more bytes belong to this phase."""
        self.progress.update(total_bytes=self.progress.total_bytes + count)


@dataclass(frozen=True, slots=True)
class Box:
    """All that a job needs of this machine.

    Attributes:
        identities: the one that signs and seals, then those before it, which only open; changes with the box's key.
        senders: reads who is believed now (blocking), and tells of a key id and a location whose key that is, or
            raises ``untrusted_sender``.
        publish: announces what a job put into quarantine, or what went from there; on the event loop.
    """

    identities: list[Identity]
    senders: Callable[[], Senders]
    journal: Journal
    vault: Vault
    quarantine: Quarantine
    versions: Versions
    audit: Audit
    publish: Callable[[QuarantineChange, Job], None]
    remote: Callable[[str], Awaitable[RemotePool]]
    compute: ComputePools
    spool_dir: str
    space: Space
    metrics: Metrics = field(default_factory=Metrics)

    def trust_at(self, location: str) -> Trust:
        """Whom to believe about an object that comes from there, by what the trust store says when asked; blocking."""
        return lambda key_id: self.senders()(key_id, location)

    @property
    def identity(self) -> Identity:
        """The identity that signs and seals now; ask again rather than keep it."""
        return self.identities[0]

    def own(self, key_id: bytes) -> PublicIdentity | None:
        """This box's public key of that id, its present one or one before."""
        return next((each.public for each in self.identities if each.public.key_id == key_id), None)
