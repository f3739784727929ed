"""How many jobs that are over are kept, so that the database of a daemon that runs for years does not grow for ever.

By count and not by age, since a clock may jump. Only ``done`` and ``cancelled`` jobs go, in the order of their
submission: what failed or is quarantined waits for a person. A job stays for as long as something is owed for it: the
record of its end, the clearing of what its upload left, or what a sync does after it. One whose record is damaged
stays, too. A job's idempotency key goes with it; what it brought into the vault does not.
"""

import anyio
import structlog

from smp_proto.errors import IntegrityError, NotFoundError, SmpError
from smpd.jobs.database import Database
from smpd.jobs.job import Job
from smpd.jobs.journal import Journal
from smpd.jobs.states import ENDED

_log = structlog.get_logger("smpd")
PIECE = 500  # jobs deleted in one transaction, and jobs that end between two looks
_AGAIN_S = 60.0
_STATES = ", ".join(f"'{state}'" for state in sorted(ENDED))
_NEWEST_TOO_MANY = f"SELECT number FROM jobs WHERE state IN ({_STATES}) ORDER BY number DESC LIMIT 1 OFFSET ?"  # noqa: S608
_OLDEST = f"SELECT number, id FROM jobs WHERE state IN ({_STATES}) AND number>? AND number<=? ORDER BY number LIMIT ?"  # noqa: S608
_DELETE = f"""DELETE FROM jobs WHERE id=? AND state IN ({_STATES})
    AND NOT EXISTS (SELECT 1 FROM endings WHERE job=jobs.id)
    AND NOT EXISTS (SELECT 1 FROM deliveries WHERE job=jobs.id)
    AND NOT EXISTS (SELECT 1 FROM sync_objects WHERE job=jobs.id AND state IN ('working', 'delivered', 'damaged'))"""  # noqa: S608


class Retention:
    """Deletes ended jobs beyond the newest.

    Args:
        db: the open database.
        journal: of the same.
        kept: how many stay, at least 1; another number holds from the next look on, see :meth:`look`.
    """

    def __init__(self, db: Database, journal: Journal, kept: int) -> None:
        self._db = db
        self._journal = journal
        self.kept = kept
        self._ended = 0
        self._enough = anyio.Event()

    def moved(self, job: Job) -> None:
        """A job changed; belongs to the event loop."""
        self._ended += job.state in ENDED
        if self._ended >= PIECE:
            self._enough.set()

    def look(self) -> None:
        """Look now; belongs to the event loop."""
        self._enough.set()

    async def run(self) -> None:
        """Delete what is too much, now and whenever :data:`PIECE` more have ended, until cancelled."""
        while True:
            self._ended, self._enough = 0, anyio.Event()
            pause_s = None
            try:
                if gone := await anyio.to_thread.run_sync(self.sweep):
                    _log.info("ended jobs forgotten", count=gone)
            except SmpError as error:
                _log.error("ended jobs cannot be forgotten", code=error.code)
                pause_s = _AGAIN_S
            with anyio.move_on_after(pause_s):
                await self._enough.wait()

    def sweep(self) -> int:
        """Delete what is too much; returns how many jobs went. Blocks.

        Raises:
            ResourceError: ``disk_full``, ``disk_failed``.
        """
        found = self._db.rows(_NEWEST_TOO_MANY, (self.kept,))
        gone = after = 0
        while found and (jobs := self._db.rows(_OLDEST, (after, found[0][0], PIECE))):
            after = jobs[-1][0]
            whole = [(job_id,) for _, job_id in jobs if self._opens(job_id)]
            with self._db.transaction() as connection:
                gone += connection.executemany(_DELETE, whole).rowcount if whole else 0
        return gone

    def _opens(self, job_id: str) -> bool:
        try:
            self._journal.get(job_id)
        except (IntegrityError, NotFoundError):
            return False
        return True
