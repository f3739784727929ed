"""What of the jobs and of the vault a caller may see: all that the verbs show goes through here.

What may not be seen is not there: it is answered as an id that does not exist is. All calls block.
"""

from collections.abc import Callable, Iterable, Sequence

from smp_proto.control import QUARANTINE_PAGE, VAULT_PAGE, JobState, QuarantineItem, VaultItem
from smp_proto.errors import IntegrityError, NotFoundError
from smpd.control.actor import Actor
from smpd.control.permissions import EVERYTHING, remotes_of
from smpd.jobs.job import Job
from smpd.jobs.journal import Journal
from smpd.jobs.records import unknown_job
from smpd.vault.objects import Vault, unknown_item
from smpd.vault.quarantine import Quarantine, not_quarantined


class JobsSeen:
    """The jobs that an actor may see."""

    def __init__(self, journal: Journal, actor: Actor) -> None:
        self._journal = journal
        self._actor = actor
        self._known: dict[str, bool] = {}

    @property
    def all(self) -> bool:
        """Whether nothing is hidden."""
        return self._actor.rights == EVERYTHING

    def shows(self, job: Job) -> bool:
        """Whether they may see this one."""
        remotes = remotes_of(getattr(job.spec, "source", ""), getattr(job.spec, "target", ""))
        return self._actor.sees(job.owner, remotes)

    def get(self, job_id: str) -> Job:
        """Return one.

        Raises:
            NotFoundError: ``no_such_job``, also when they may not see it.
        """
        try:
            job = self._journal.get(job_id)
        except IntegrityError:
            if self.all:
                raise
            raise unknown_job(job_id) from None
        if not self.shows(job):
            raise unknown_job(job_id)
        return job

    def list(self, states: Iterable[JobState] = (), limit: int = -1, begins: str = "") -> Sequence[Job]:
        """Return them, newest first; those whose id begins so."""
        if self.all:
            return self._journal.list(states, limit, begins=begins)
        others = self._actor.rights.others
        return self._journal.list(states, limit, self.shows, None if others else self._actor.uid, begins)

    def brought(self, item: VaultItem | QuarantineItem) -> bool:
        """Whether an item of the vault, or of the quarantine, came of a job that they may see."""
        if self.all:
            return True
        if item.job not in self._known:
            try:
                self._known[item.job] = self.shows(self._journal.get(item.job))
            except (NotFoundError, IntegrityError):  # whose it was cannot be told
                self._known[item.job] = False
        return self._known[item.job]


def item_seen(vault: Vault, seen: JobsSeen, item_id: str) -> VaultItem:
    """Return one item.

    Raises:
        NotFoundError: ``no_such_object``, also when they may not see it.
    """
    item = vault.get(item_id)
    if not seen.brought(item):
        raise unknown_item(item_id)
    return item


def items_seen(vault: Vault, wanted: Callable[[VaultItem], bool], job: str, before: str) -> Sequence[VaultItem]:
    """Return a page of items, newest first; a shorter one is the last."""
    found: list[VaultItem] = []
    while page := vault.list(job, before, VAULT_PAGE):
        found += filter(wanted, page)
        before = page[-1].id
        if len(page) < VAULT_PAGE or len(found) >= VAULT_PAGE:
            break
    return found[:VAULT_PAGE]


def refused_seen(quarantine: Quarantine, seen: JobsSeen, item_id: str) -> QuarantineItem:
    """Return one item of the quarantine.

    Raises:
        NotFoundError: ``no_such_object``, also when they may not see it.
    """
    item = quarantine.get(item_id)
    if not seen.brought(item):
        raise not_quarantined(item_id)
    return item


def all_refused_seen(quarantine: Quarantine, seen: JobsSeen, job: str, before: str) -> list[QuarantineItem]:
    """Return a page of the quarantine, newest first; a shorter one is the last."""
    found: list[QuarantineItem] = []
    while page := quarantine.list(job, before, QUARANTINE_PAGE):
        found += filter(seen.brought, page)
        before = page[-1].id
        if len(page) < QUARANTINE_PAGE or len(found) >= QUARANTINE_PAGE:
            break
    return found[:QUARANTINE_PAGE]
