"""The ends of jobs that the audit log does not tell of yet.

An end is noted in the transaction that makes it true, and struck out with a later one, once its record is synced: that
costs no commit of its own. After a crash the ends that are still noted are recorded, some perhaps for the second time,
and none is lost. All calls block, and are safe from any thread.
"""

import sqlite3
import threading
from typing import NamedTuple

from smp_proto.control import FINAL_STATES
from smpd.jobs.database import Database
from smpd.jobs.job import Job

_TEXT_MAX = 256  # characters, as of an audit record


class Ending(NamedTuple):
    """One end of a job; a job that is resumed has several."""

    number: int
    job: str
    owner: str
    state: str
    outcome: str


class Endings:
    """Those not yet recorded; what the database holds of them when it is opened is known from then on.

    Args:
        db: an open database.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()
        rows = db.rows("SELECT number, job, owner, state, outcome FROM endings ORDER BY number")
        self._pending = {row[0]: Ending(*row) for row in rows if _whole(*row)}
        self._recorded = {row[0] for row in rows} - self._pending.keys()  # no record could be made of them
        self._damaged = len(self._recorded)

    @property
    def damaged(self) -> int:
        """How many were found that say nothing any more: their jobs' ends are not in the audit log."""
        return self._damaged

    def add(self, connection: sqlite3.Connection, job: Job) -> Ending:
        """Write down a job's end in the transaction that moves it, and strike out what was recorded since the last.

        Once that is committed, :meth:`noted` is to be called.
        """
        values = (job.id, job.owner, job.state, job.error.code if job.error else "ok")
        found = connection.execute("INSERT INTO endings (job, owner, state, outcome) VALUES (?, ?, ?, ?)", values)
        with self._lock:
            # If this transaction fails they stay written down, and are recorded twice after the next start.
            recorded, self._recorded = self._recorded, set()
        connection.executemany("DELETE FROM endings WHERE number=?", [(number,) for number in recorded])
        return Ending(found.lastrowid or 0, *values)

    def noted(self, ending: Ending) -> None:
        """It is on the disk."""
        with self._lock:
            self._pending[ending.number] = ending

    def pending(self, job_id: str = "") -> list[Ending]:
        """Those of a job, or of all when it is empty, whose record is not known to be written; oldest first."""
        with self._lock:
            return sorted(ending for ending in self._pending.values() if job_id in ("", ending.job))

    def recorded(self, ending: Ending) -> None:
        """Its record is synced."""
        with self._lock:
            if self._pending.pop(ending.number, None):
                self._recorded.add(ending.number)

    def flush(self) -> None:
        """Strike out what was recorded."""
        with self._lock:
            recorded, self._recorded = self._recorded, set()
        if recorded:
            with self._db.transaction() as connection:
                connection.executemany("DELETE FROM endings WHERE number=?", [(number,) for number in recorded])


def _whole(_: int, *texts: object) -> bool:
    """Whether a row is one that was written here: a damaged cell may have become another text, or none."""
    return all(isinstance(text, str) and 0 < len(text) <= _TEXT_MAX for text in texts) and texts[2] in FINAL_STATES
