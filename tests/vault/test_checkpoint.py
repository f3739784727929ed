"""The newest checkpoint of the audit log in the database."""

import pytest

from smp_proto.errors import IntegrityError
from smp_proto.sealed.envelope import Signed
from smpd.audit.remembered import Remembered
from smpd.jobs.database import Database
from smpd.jobs.salvage import salvage
from smpd.jobs.seal import StateSeal
from smpd.vault.checkpoint import LastCheckpoint
from smpd.vault.versions import Versions


def signed(n: int) -> Signed:
    digest = bytes(32)
    return Signed("hybrid", bytes([n]) * 16, bytes(40), 1 << 20, 0, 1, 0, digest, digest, bytes(16), n)


def test_it_is_replaced_and_given_up(db: Database, seal: StateSeal) -> None:
    """One is kept, sealed; giving up what is not there is nothing."""
    last = LastCheckpoint(db, seal)
    last.give_up()
    assert last.read() is None
    for note in (b"one", b"two"):
        last.keep(note)
    assert LastCheckpoint(db, seal).read() == Remembered(b"two")
    last.give_up()
    assert last.read() == Remembered(b"two", given_up=True)
    last.keep(b"three")
    assert last.read() == Remembered(b"three")
    assert [b"three" in body for (body,) in db.rows("SELECT body FROM versions")] == [False]


def test_it_is_no_object_that_was_accepted(db: Database, seal: StateSeal) -> None:
    """It takes no place of theirs, is not forgotten with them, and is not looked at as one."""
    last, versions = LastCheckpoint(db, seal), Versions(db, seal, 1)
    last.keep(b"note")
    for n in range(3):
        versions.remember([(f"a:{n}", signed(n))])
    assert last.read() == Remembered(b"note")
    assert db.rows("SELECT number FROM versions ORDER BY number") == [(-1,), (3,)]
    assert versions.look(0, 10) == (0, 3)


def test_one_that_was_changed(db: Database, seal: StateSeal) -> None:
    """It says so, and can be given up and replaced."""
    last = LastCheckpoint(db, seal)
    last.keep(b"note")
    with db.transaction() as connection:
        connection.execute("UPDATE versions SET body=?", (bytes(80),))
    with pytest.raises(IntegrityError):
        last.read()
    last.give_up()
    last.keep(b"note")
    assert last.read() == Remembered(b"note")


def test_a_damaged_database_keeps_it(tmp_path, seal: StateSeal) -> None:
    """It is salvaged with the rest."""
    path = str(tmp_path / "damaged.db")
    db = Database(path)
    LastCheckpoint(db, seal).keep(b"note")
    db.close()
    salvage(path)
    db = Database(path)
    assert LastCheckpoint(db, seal).read() == Remembered(b"note")
    db.close()
