"""The ends of jobs that the audit log does not tell of yet.

An end is noted in the transaction that makes it true, and struck out with a later one, once its record is synced: that
costs no commit of its own. After a crash the ends that are still noted are recorded, some perhaps for the second time,
and none is lost. All calls block, and are safe from any thread.
"""

import sqlite3
import threading
from typing import NamedTuple

from smpd.jobs.database import Database
from smpd.jobs.job import Job


class Ending(NamedTuple):
    """One end of a job; a job that is resumed has several."""

    number: int
    job: str
    owner: str
    state: str
    outcome: str


class Endings:
    """Those not yet recorded.

    Args:
        db: an open database.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._recorded: set[int] = set()

    def add(self, connection: sqlite3.Connection, job: Job) -> None:
        """Note a job's end, in the transaction that moves it, and strike out what was recorded since the last one."""
        values = (job.id, job.owner, job.state, job.error.code if job.error else "ok")
        connection.execute("INSERT INTO endings (job, owner, state, outcome) VALUES (?, ?, ?, ?)", values)
        with self._lock:
            # If this transaction fails they stay noted, and are recorded twice after the next start.
            recorded, self._recorded = self._recorded, set()
        connection.executemany("DELETE FROM endings WHERE number=?", [(number,) for number in recorded])

    def pending(self, job_id: str = "") -> list[Ending]:
        """Those of a job, or of all when it is empty, whose record is not known to be written; oldest first."""
        sql = "SELECT number, job, owner, state, outcome FROM endings WHERE ?1='' OR job=?1 ORDER BY number"
        found = [Ending(*row) for row in self._db.rows(sql, (job_id,))]
        with self._lock:
            return [ending for ending in found if ending.number not in self._recorded]

    def recorded(self, ending: Ending) -> None:
        """Its record is synced."""
        with self._lock:
            self._recorded.add(ending.number)

    def flush(self) -> None:
        """Strike out what was recorded."""
        with self._lock:
            recorded, self._recorded = self._recorded, set()
        if recorded:
            with self._db.transaction() as connection:
                connection.executemany("DELETE FROM endings WHERE number=?", [(number,) for number in recorded])
