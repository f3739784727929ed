"""What an attempt of a job leaves for the next one: its files in the spool, and what the journal knows of them."""

import os
from typing import NamedTuple

import anyio
import msgspec

from smp_proto.control import Result
from smp_proto.errors import IntegrityError
from smpd.jobs.job import Source
from smpd.transfer.box import Box
from smpd.transfer.sealing import check_sealed, end_digest, sync_file
from smpd.transfer.source import naming
from smpd.transfer.spool import remove


class Left(NamedTuple):
    """What earlier attempts left: what they sealed, whether they refused something, and whether they kept ranges."""

    source: Source | None
    refused: bool
    begun: bool


NOTHING_LEFT = Left(None, refused=False, begun=False)


class _Sealed(NamedTuple):
    """What was sealed for a job in this process: by which key, and what the journal is to know of it."""

    sender: bytes
    source: Source


class Leavings:
    """The leavings of all jobs.

    Args:
        box: whose spool and journal they are in.
    """

    def __init__(self, box: Box) -> None:
        self._box = box
        self._sealed_here: dict[str, _Sealed] = {}  # what an earlier process sealed is looked at again

    def part(self, job_id: str) -> str:
        """The spool file of what a job receives."""
        return os.path.join(self._box.spool_dir, f"{job_id}.part")

    def out(self, job_id: str) -> str:
        """The spool file of what a job sends or keeps: sealed results, or the bundle of a put."""
        return os.path.join(self._box.spool_dir, f"{job_id}.out")

    def of(self, job_id: str) -> Left:
        """What there is of a job; blocking."""
        refused = bool(self._box.quarantine.list(job_id, limit=1))
        return Left(self._box.journal.source(job_id), refused, os.path.exists(self.part(job_id)))

    def sealed_source(self, job_id: str, result: Result, sender: bytes = b"") -> Source:
        """What the journal is to know of what was sealed for a job in this process, by which key; blocking."""
        source = Source(end_digest(self.out(job_id)), 0, msgspec.msgpack.encode(result))
        self._sealed_here[job_id] = _Sealed(sender, source)
        return source

    def signed_by(self, job_id: str) -> bytes:
        """The key id of who sealed a job's results in this process; empty where that is not known."""
        found = self._sealed_here.get(job_id)
        return found.sender if found else b""

    def note(self, job_id: str) -> None:
        """Write down in the journal what was sealed for a job in this process, if something was; blocking."""
        if found := self._sealed_here.get(job_id):
            if os.path.exists(self.out(job_id)):  # else it is in the vault's folder, synced
                sync_file(self.out(job_id))
            self._box.journal.keep_result(job_id, found.source)

    async def sealed(self, job_id: str, left: Left) -> Result | None:
        """What an earlier attempt sealed and did not yet deliver.

        Raises:
            IntegrityError: the disk changed it.
        """
        if left.source is None or left.source.envelope is None:
            return None
        result = msgspec.msgpack.decode(left.source.envelope, type=Result)
        adopted = await anyio.to_thread.run_sync(
            self._box.vault.adopted, job_id
        )  # then its file is in the vault already
        if job_id not in self._sealed_here and not adopted:
            try:
                await anyio.to_thread.run_sync(check_sealed, self.out(job_id), result, left.source.pin)
            except IntegrityError as error:
                error.hint = "look at the disk; then submit it again"
                raise naming(error, f"job {job_id}") from error
        return result

    def discard(self, job_id: str, *, single: bool = False) -> None:
        """Remove the files that a job left; blocking.

        Args:
            single: it is not over a prefix, so what it left has known names, and the spool, in which thousands of jobs
                may have theirs, need not be listed.
        """
        self._sealed_here.pop(job_id, None)
        if single:
            remove(self.part(job_id))
            remove(self.out(job_id))
            return
        for name in os.listdir(self._box.spool_dir):
            if name.startswith(f"{job_id}."):
                remove(os.path.join(self._box.spool_dir, name))

    async def clean(self, job_id: str) -> None:
        """Remove what a job left, and what the journal knows of it: the job starts over."""

        def clean() -> None:
            self.discard(job_id)
            self._box.journal.clear_ranges(job_id)

        await anyio.to_thread.run_sync(clean)
