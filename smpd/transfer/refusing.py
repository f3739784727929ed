"""Refusing an object, and whether one may be taken where it is.

What is refused goes into quarantine with the reason; what is not refused any more goes from there. Both are recorded
first.
"""

import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Literal

import anyio

from smp_proto.control import ObjectInfo, PutSpec, QuarantineChange, QuarantineItem
from smp_proto.errors import IntegrityError
from smp_proto.sealed.entries import misplaced
from smp_proto.sealed.envelope import CheckedEnvelope, Signed
from smpd.jobs.job import Job
from smpd.transfer.box import Box
from smpd.transfer.evidence import Evidence
from smpd.transfer.spool import remove
from smpd.vault.quarantine import item_id

Check = Callable[[CheckedEnvelope], None]


class Refusals:
    """Puts into quarantine what a job refuses, and takes out what it does not refuse any more."""

    def __init__(self, box: Box, job: Job) -> None:
        self._box = box
        self._job = job
        self.items: set[str] = set()

    async def add(self, location: str, error: IntegrityError, evidence: Evidence) -> None:
        """Record, then keep; the error tells of the item from then on.

        Raises:
            AuditError, ResourceError: neither was done; the job tries again, and will refuse it again.
        """
        if error.code == "source_changed":
            kept, whole, left_out = 0, False, "it changed while it was fetched"
        else:
            kept, whole, left_out = await anyio.to_thread.run_sync(evidence.finish)
        info = evidence.info or ObjectInfo(location.partition(":")[2], 0)
        segment = error.details.get("segment", -1)
        name = item_id(self._job.id, location)
        error.details = {**error.details, "item": name}
        error.hint = error.hint.replace("retry ID", f"retry {name}")
        item = QuarantineItem(
            id=name,
            job=self._job.id,
            location=location,
            code=error.code,
            message=error.message,
            hint=error.hint,
            size=info.size,
            pin=info.pin,
            sender=evidence.sender.hex(),
            object_id=evidence.object_id.hex(),
            segment=segment if isinstance(segment, int) else -1,
            kept_bytes=kept,
            whole=whole,
            left_out=left_out,
        )

        def keep() -> QuarantineItem:
            added = self._box.quarantine.add(item, os.path.basename(evidence.path))
            for name in added.unneeded:
                remove(os.path.join(self._box.spool_dir, name))
            return added.item

        act = {"actor": self._job.owner, "job": self._job.id, "subject": location}
        item = await self._box.audit("quarantine.add", act=keep, reason=error.code, kept=kept, **act)
        self.items.add(item.id)
        self._box.metrics.count("smp_objects_refused_total", item.code)
        if item.segment >= 0 and item.code == "corrupt":
            self._box.metrics.count("smp_tags_failed_total", location.partition(":")[0])
        publish(self._box, self._job, item, "add")

    async def settle(self) -> None:
        """Take out what earlier attempts refused and this one did not."""
        left = await anyio.to_thread.run_sync(self._box.quarantine.list, self._job.id)
        gone = [item for item in left if item.id not in self.items]
        if gone:
            await take_out(self._box, self._job, self._job.owner, gone, "verified", spool=False)

    async def complete(self, error: IntegrityError) -> None:
        """See that a job that is going to be quarantined has an item that says why."""
        if "item" in error.details:
            return
        spec = self._job.spec
        await self.add(spec.target if isinstance(spec, PutSpec) else spec.source, error, Evidence())


class Acceptance:
    """Whether an object may be taken where it is: not older than what was accepted there, unless a person says so."""

    def __init__(self, box: Box, job: Job) -> None:
        self._box = box
        self._job = job
        self._older: set[str] = set()
        self._same: set[str] = set()  # locations that hold what was accepted there before

    def at(self, location: str) -> Check:
        """The check of an object at a location; blocking.

        Raises (when called):
            IntegrityError: ``older_version``; ``misplaced``, which nobody can overrule but its sender.
        """
        return self.among([location])(location)

    def among(self, locations: Collection[str]) -> Callable[[str], Check]:
        """As :meth:`at`, for some locations: what was accepted at all of them is read at once."""
        stored = self._box.versions.stored(locations)
        return lambda location: partial(self._check, location, stored)

    def _check(self, location: str, stored: Mapping[str, bytes], envelope: CheckedEnvelope) -> None:
        if misplaced(envelope.entries, location.partition(":")[2]):
            raise IntegrityError(
                "misplaced",
                "its sender sealed this object for another place",
                hint="somebody moved or copied it; ask the sender to seal it for this place",
            )
        try:
            if self._box.versions.check(location, envelope.signed, stored):
                self._same.add(location)
        except IntegrityError:
            asked = getattr(self._job.spec, "accept_older", False)
            if not asked and not self._box.quarantine.accepts(self._job.id, location, envelope.signed.object_id):
                raise
            self._older.add(location)

    def is_new(self, location: str) -> bool:
        """Whether what was checked there is to be remembered, once it was verified whole."""
        return location not in self._same

    def remember(self, accepted: Collection[tuple[str, Signed]]) -> None:
        """Note what was verified whole; blocking."""
        new = [(location, signed) for location, signed in accepted if self.is_new(location)]
        self._same.difference_update(location for location, _ in accepted)
        if new:
            self._box.versions.remember(new, self._older)


async def take_out(
    box: Box, job: Job, actor: str, items: Collection[QuarantineItem], why: str, *, spool: bool = True
) -> None:
    """Record that items of a job leave the quarantine; then delete their ciphertext, which frees space, and their rows.

    Args:
        actor: who wants it.
        why: in a word, for the record.
        spool: whether a file goes that is also the spool of the whole job.
    """

    def act() -> None:
        for item in items:
            file = box.quarantine.file(item.id)
            if file and (spool or file != f"{job.id}.part"):
                remove(os.path.join(box.spool_dir, file))
        box.quarantine.remove([item.id for item in items])

    subjects = [item.location for item in items]
    await box.audit("quarantine.remove", actor=actor, job=job.id, subjects=subjects, act=act, outcome=why)
    for item in items:
        publish(box, job, item, "remove")


def publish(box: Box, job: Job, item: QuarantineItem, change: Literal["add", "remove"]) -> None:
    """Tell who watches."""
    box.publish(QuarantineChange(item.id, job.id, item.code, change), job)
