"""Where each job publishes its result, and how far that went: what makes a delivery happen once.

A row is written before anything of a result can be at a remote, so that an attempt after a crash knows that it has to
look there first, and what to clear away. It goes in the same transaction that makes the job ``done``.
All calls block.
"""

import sqlite3

import msgspec

from smp_proto.errors import IntegrityError
from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal


class Delivery(msgspec.Struct, frozen=True):
    """One result on its way.

    Args:
        before: pin of what was there when the job began, empty for nothing: what may be replaced.
        sent: whether some attempt began to upload.
        part: what the last upload called its file until it was whole.
        upload: id of the last multipart upload, once the server gave it.
    """

    before: str = ""
    sent: bool = False
    part: str = ""
    upload: str = ""


class Deliveries:
    """The deliveries of all jobs that are not done.

    Args:
        db: an open database.
        seal: seals the rows.
    """

    def __init__(self, db: Database, seal: StateSeal) -> None:
        self._db = db
        self._seal = seal

    def get(self, job_id: str) -> Delivery | None:
        """How far a job's delivery is; None before it was planned. A damaged row is one of which nothing is known.

        That one counts as sent, and nothing may be replaced: what is at the target is then looked at.
        """
        rows = self._db.rows("SELECT body FROM deliveries WHERE job=?", (job_id,))
        if not rows:
            return None
        try:
            return msgspec.msgpack.decode(self._seal.open(rows[0][0], _context(job_id)), type=Delivery)
        except IntegrityError:
            return Delivery(sent=True)

    def keep(self, job_id: str, delivery: Delivery) -> None:
        """Note how far it is; durable on return."""
        with self._db.transaction() as connection:
            self.keep_in(connection, job_id, delivery)

    def keep_in(self, connection: sqlite3.Connection, job_id: str, delivery: Delivery) -> None:
        """The same, in a transaction of the caller's."""
        body = self._seal.seal(msgspec.msgpack.encode(delivery), _context(job_id))
        left = bool(delivery.part or delivery.upload)
        connection.execute("INSERT OR REPLACE INTO deliveries (job, left, body) VALUES (?, ?, ?)", (job_id, left, body))

    def forget(self, job_id: str) -> None:
        """Forget it: the next attempt plans anew."""
        with self._db.transaction() as connection:
            connection.execute("DELETE FROM deliveries WHERE job=?", (job_id,))

    def abandoned(self) -> list[str]:
        """The jobs that ended without a result, or wait for a person, of whose upload something may be left."""
        states = "'cancelled', 'failed', 'quarantined'"
        sql = f"SELECT id FROM deliveries JOIN jobs ON id=job WHERE left AND state IN ({states}) ORDER BY number"  # noqa: S608
        return [str(row[0]) for row in self._db.rows(sql)]


def _context(job_id: str) -> str:
    return f"job {job_id} delivery"
