"""Room that failed jobs hold and others wait for.

What a failed job received stays in the spool, so that ``smpctl job resume`` goes on from there. It can be fetched
again, and perhaps nobody ever asks: a job that waits for room comes first. What a job sealed or was given is never
touched.
"""

import os
from collections.abc import Callable, Sequence

import anyio
import structlog

from smp_proto.errors import IntegrityError, NotFoundError, SmpError
from smpd.host.space import BLOCK_BYTES, disk_errors
from smpd.jobs.holding import Short
from smpd.jobs.job import Job
from smpd.transfer.box import Box
from smpd.transfer.spool import remove

_log = structlog.get_logger("smpd")
_PART = ".part"


class Yielding:
    """Has failed jobs give up what they received.

    Args:
        box: whose spool and journal it is.
        part: where what a job received is.
    """

    def __init__(self, box: Box, part: Callable[[str], str]) -> None:
        self._box = box
        self._part = part
        self._taking: dict[str, anyio.Event] = {}
        self._wanted = anyio.Event()
        self._unknown = False

    def waits(self, job: Job) -> None:
        """A job waits for room; belongs to the event loop."""
        self._unknown |= job.error is None or "needed_bytes" not in job.error.details
        self._wanted.set()

    def moved(self, job: Job) -> None:
        """A job changed; belongs to the event loop."""
        if job.state == "failed":
            self._wanted.set()

    async def settled(self, job_id: str) -> None:
        """Wait until nothing is being taken from a job, which is about to look at what it has."""
        if (taking := self._taking.get(job_id)) is not None:
            await taking.wait()

    async def run(self, short: Callable[[], Short]) -> None:
        """Make room whenever jobs come to wait for it, until cancelled.

        Args:
            short: who waits for how much.
        """
        while True:
            await self._wanted.wait()
            unknown, self._unknown, self._wanted = self._unknown, False, anyio.Event()
            if short().jobs:
                try:
                    await self.make_room(short().bytes, some=unknown)
                except SmpError as error:
                    _log.error("no room could be made", code=error.code)

    async def make_room(self, needed: int, *, some: bool = False) -> None:
        """Take what failed jobs received, the oldest first, until so many bytes are free.

        Args:
            some: of one in any case, since somebody came to wait who cannot say for how much.

        Raises:
            ResourceError: ``disk_failed``.
        """
        for job_id in await anyio.to_thread.run_sync(self._holders):
            room = await anyio.to_thread.run_sync(self._box.space.look)
            if room.usable >= needed and not some:
                return
            taking = self._taking[job_id] = anyio.Event()
            try:
                freed = await anyio.to_thread.run_sync(self._take, job_id)
            finally:
                del self._taking[job_id]
                taking.set()
            if freed:
                some = False
                _log.info("room made", job_id=job_id, bytes=freed)

    def _holders(self) -> Sequence[str]:
        """The jobs of which nothing is in the spool but what they received; the oldest comes first."""
        with disk_errors("the spool"):
            names = os.listdir(self._box.spool_dir)
        others = {name.partition(".")[0] for name in names if not self._is_part(name)}
        found = []
        for name in filter(self._is_part, names):
            job_id = name.removesuffix(_PART)
            try:
                status = os.stat(self._part(job_id))
            except FileNotFoundError:
                continue
            if job_id not in others and status.st_blocks:
                found.append((status.st_mtime, job_id))
        return [job_id for _, job_id in sorted(found)]

    def _take(self, job_id: str) -> int:
        """Take what a job received, if it failed; the bytes that are free now."""
        try:
            if not self._box.journal.give_up_ranges(job_id):
                return 0
        except (NotFoundError, IntegrityError):
            return 0  # nobody can say that it failed
        part = self._part(job_id)
        try:
            size = os.stat(part).st_blocks * BLOCK_BYTES
        except FileNotFoundError:
            return 0  # somebody cancelled the job
        remove(part)
        return size

    @staticmethod
    def _is_part(name: str) -> bool:
        return name.endswith(_PART) and name.count(".") == 1
