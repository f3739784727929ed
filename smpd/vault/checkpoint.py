"""The newest checkpoint of the audit log, kept apart from the log, so that a log without it is noticed.

Whoever may write the log's files while the daemon is stopped can leave checkpoints out, and would have what else they
wrote signed anew. So each checkpoint is sealed here before it goes into the log's own file. What it covers is on the
disk by then: after a crash in between the log holds it all the same.

It has a row of the table of what was accepted (:mod:`smpd.vault.versions`), which is never forgotten. All calls block.
"""

import msgspec

from smp_proto.errors import IntegrityError
from smpd.audit.remembered import Reached, Remembered
from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal

_ROW = -1  # what was accepted is numbered from 1
_CONTEXT = "audit checkpoint"


class LastCheckpoint:
    """The newest checkpoint.

    Args:
        db: where it is.
        seal: seals it.
    """

    def __init__(self, db: Database, seal: StateSeal) -> None:
        self._db = db
        self._seal = seal

    def read(self) -> Remembered | None:
        """The newest checkpoint; None where nothing is known of one.

        Raises:
            IntegrityError: ``corrupt``; it was changed on the disk.
        """
        rows = self._db.rows("SELECT body FROM versions WHERE number=?", (_ROW,))
        if not rows:
            return None
        try:
            return msgspec.msgpack.decode(self._seal.open(rows[0][0], _CONTEXT), type=Remembered)
        except msgspec.MsgspecError as error:
            raise IntegrityError("corrupt", "what was last signed of the audit log cannot be read") from error

    def keep(self, note: bytes, reached: Reached | None = None) -> None:
        """Put a checkpoint, and how far the log was, in the place of the one before; durable on return.

        Raises:
            ResourceError: ``disk_full``, ``disk_failed``; the one before is still there.
        """
        self._write(Remembered(note, reached=reached))

    def give_up(self) -> None:
        """Note that the log of this checkpoint is about to be set aside. Raises as :meth:`keep`."""
        try:
            remembered = self.read()
        except IntegrityError:
            return  # it says nothing any more
        if remembered is not None:
            self._write(Remembered(remembered.note, given_up=True))

    def _write(self, remembered: Remembered) -> None:
        body = self._seal.seal(msgspec.msgpack.encode(remembered), _CONTEXT)
        place = self._seal.digest(_CONTEXT)
        with self._db.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO versions VALUES (?, ?, ?)", (_ROW, place, body))
