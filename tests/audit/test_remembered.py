"""The newest checkpoint is kept in the database, too: a log without what it covers is not gone on with."""

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from kept_logs import Place

from smp_proto.audit.note import VerifierKey, iter_notes
from smp_proto.errors import AuditError, ResourceError
from smpd.audit import renewal
from smpd.audit.kept import KeptLog
from smpd.audit.remembered import Reached
from smpd.jobs.database import Database
from smpd.vault.checkpoint import LastCheckpoint

pytestmark = pytest.mark.usefixtures("any_length")


@pytest.fixture
def place(tmp_path: Path, open_log, key: VerifierKey, db: Database, last: LastCheckpoint) -> Place:
    return Place(tmp_path / "audit", open_log, key, db, last)


def shorter(place: Place) -> None:
    """Back to the first checkpoint, as the log was once."""
    first = next(iter_notes(place.notes.read_bytes().splitlines(keepends=True)))
    place.notes.write_bytes(first)
    place.log.write_bytes(b"".join(place.log.read_bytes().splitlines(keepends=True)[:5]))


FORGERIES: dict[str, Callable[[Place], object]] = {
    "as long": lambda place: place.anew(10),
    "longer": lambda place: place.anew(99),
    "shorter": lambda place: place.anew(1),
    "empty": lambda place: place.anew(0),
    "gone": lambda place: (place.log.unlink(), place.notes.unlink()),
    "cut back": shorter,
}


@pytest.mark.parametrize("how", FORGERIES)
def test_a_log_that_was_written_anew(place: Place, how: str) -> None:
    """It is broken, whoever left the checkpoints out, and nothing of it is signed; an admin can begin a new one."""
    place.write()
    place.write()
    FORGERIES[how](place)
    was = place.notes.read_bytes() if place.notes.exists() else b""
    assert "the last checkpoint, as the database has it" in place.broken()
    assert place.notes.read_bytes() == was
    with place.opened() as log:
        with pytest.raises(AuditError) as caught:
            log.append("a.b", actor="anna")
        assert "smpd.db" in caught.value.hint
        aside = log.renew(actor="root(0)", reason="somebody was here")
        assert (aside.size, aside.name) == (10, "set-aside-1")
        log.append("a.b", actor="anna")
    assert not place.broken()
    assert place.events() == ["audit.begin", "a.b"]


@pytest.mark.parametrize("left", [0, 1])
def test_checkpoints_that_were_taken_away(place: Place, left: int) -> None:
    """The records are those that were signed, but who follows the log from its first key on needs every checkpoint."""
    for _ in range(3):
        place.write()
    notes = list(iter_notes(place.notes.read_bytes().splitlines(keepends=True)))
    place.notes.write_bytes(b"".join(notes[:left]))
    assert "bytes of checkpoints that were signed" in place.broken()
    place.notes.write_bytes(b"".join(notes))
    assert not place.broken()


def test_a_last_checkpoint_that_was_changed_is_not_torn(place: Place) -> None:
    """At any byte it is told of. What a crash leaves of it, a part and perhaps zeros, is cut off."""
    place.write()
    place.write()
    whole = place.notes.read_bytes()
    *_, note = iter_notes(whole.splitlines(keepends=True))
    begin = len(whole) - len(note)
    for at in range(begin, len(whole)):
        place.notes.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert place.broken(), f"byte {at - begin} of the last checkpoint"
    rows = place.rows()
    for left in (b"", note[:1], note[: len(note) // 2], note[:-1], note[:9] + bytes(50)):
        place.put_back(rows)
        place.notes.write_bytes(whole[:begin] + left)
        assert not place.broken()


def test_what_comes_from_one_backup(place: Place, tmp_path: Path) -> None:
    """Log and database of one time, an older database alone, and neither of them: all that opens. An older log alone does not."""
    place.write()
    rows = place.rows()
    shutil.copytree(place.folder, tmp_path / "backup")
    place.write()
    place.put_back(rows)
    assert not place.broken()  # and what was signed since is kept again with the next checkpoint
    place.write(1)
    newer = place.rows()
    assert newer != rows
    shutil.rmtree(place.folder)
    shutil.copytree(tmp_path / "backup", place.folder)
    assert "ends after 5 records" in place.broken()
    place.put_back(rows)
    assert not place.broken()
    place.put_back([])
    shutil.rmtree(place.folder)
    place.write(3)
    assert place.events() == ["a.b"] * 3


def test_a_backup_of_a_log_that_is_written(place: Place) -> None:
    """Database, checkpoints and log, copied in this order, open whatever was written in between."""
    place.write()
    rows = place.rows()
    place.write()
    notes = place.notes.read_bytes()
    place.write()
    log = place.log.read_bytes()
    place.write()
    place.put_back(rows)
    place.notes.write_bytes(notes)
    place.log.write_bytes(log)
    assert not place.broken()


@pytest.mark.parametrize("how", ["none", "damaged"])
def test_where_nothing_is_known(place: Place, how: str) -> None:
    """After an upgrade, or where somebody took it away, the log is gone on with, and says so for good, once."""
    place.write()
    rows = [(number, at, body[:-1] + bytes([body[-1] ^ 1])) for number, at, body in place.rows()]
    place.put_back(rows if how == "damaged" else [])
    place.write(1)
    place.write(1)
    assert place.events() == [*["a.b"] * 5, "audit.adopted", "a.b", "a.b"]
    assert "record 5: the log was taken as it was found, since" in " ".join(place.findings())
    place.anew(9)
    assert place.broken()


def test_a_first_run_that_is_cut_off(place: Place) -> None:
    """A log that begins is known from its beginning on: no checkpoint of its own is needed to go on with it."""
    log = place.opened()
    log.append("a.b", actor="anna")
    log._log._files.close()  # killed
    place.write(1)
    assert place.events() == ["a.b", "a.b"]


@pytest.mark.parametrize("step", ["before the database", "after the database"])
def test_a_crash_at_a_checkpoint(place: Place, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """What a checkpoint covers is on the disk before either has it, so the log opens whichever of the two has."""
    place.write()
    keep = place.last.keep

    def crash(note: bytes, reached: Reached | None) -> None:
        if step == "after the database":
            keep(note, reached)
        raise KeyboardInterrupt

    log = place.opened()
    log.append("a.b", actor="anna")
    monkeypatch.setattr(place.last, "keep", crash)
    log._log._remember = crash
    with pytest.raises(KeyboardInterrupt):
        log.checkpoint()
    log._log._files.close()
    monkeypatch.undo()
    place.write(1)
    assert place.events() == ["a.b"] * 7
    assert not place.broken()


def test_a_database_that_cannot_be_written(place: Place) -> None:
    """No checkpoint without it; the log refuses, and goes on when it can be written again."""
    with place.opened() as log:
        log.append("a.b", actor="anna")
        full = ResourceError("disk_full", "the database is full")

        def refuse(note: bytes, reached: Reached | None) -> None:
            raise full

        log._log._remember, kept = refuse, log._log._remember
        with pytest.raises(AuditError) as caught:
            log.checkpoint()
        assert caught.value.code == "audit_unwritable"
        assert not log.checkpoints()
        log._log._remember = kept
        log.retry()
        assert log.checkpoint()
    assert place.events() == ["a.b", "audit.recovered"]


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_crash_while_it_is_set_aside(place: Place, monkeypatch: pytest.MonkeyPatch, moved: int) -> None:
    """Until all is moved it is broken still; then there is a new one, that names it."""
    place.write()
    place.anew(9)
    give = renewal.durable.give_name
    left = [moved]

    def crash(name: str, *arguments, **options) -> None:
        if "/" in str(arguments[0]):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        give(name, *arguments, **options)

    def interrupted(self: KeptLog) -> None:
        raise KeyboardInterrupt

    with place.opened() as log:
        monkeypatch.setattr(renewal.durable, "give_name", crash)
        if moved == 2:
            monkeypatch.setattr(KeptLog, "_open", interrupted)
        with pytest.raises(KeyboardInterrupt):
            log.renew(actor="root(0)", reason="")
    monkeypatch.undo()
    with place.opened() as log:
        # Of a log that is moved the empty checkpoints say nothing.
        assert bool(log.broken) == (moved == 0)
        if moved == 0:
            log.renew(actor="root(0)", reason="again")
        log.append("a.b", actor="anna")
        begun = msgspec.json.decode(log.read(0, 1)[0])
        assert begun["event"] == "audit.begin"
        assert begun["fields"]["covered"] == 5
    assert place.events() == ["audit.begin", "a.b"]


def test_a_new_log_that_the_database_could_not_note(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a full disk the new log is known from its beginning on, too: a crash before it is signed breaks nothing."""
    place.write()
    place.anew(9)
    keep, full = LastCheckpoint.keep, True

    def keep_if_room(self: LastCheckpoint, note: bytes, reached: Reached | None = None) -> None:
        if full:
            raise ResourceError("disk_full", "the database is full")
        keep(self, note, reached)

    log = place.opened()
    monkeypatch.setattr(LastCheckpoint, "keep", keep_if_room)
    with pytest.raises(AuditError, match="full"):
        log.renew(actor="root(0)", reason="somebody was here")
    with pytest.raises(AuditError, match="full"):
        log.retry()
    full = False
    log.retry()
    log.append("a.b", actor="anna")
    log._log._files.close()  # killed
    assert not place.broken()
    assert place.events() == ["audit.recovered", "audit.begin", "a.b"]
