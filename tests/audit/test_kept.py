"""A broken log: it is shown, refuses acts, and is set aside by an admin; the next one names it."""

from pathlib import Path

import msgspec
import pytest

from smp_proto.audit.note import VerifierKey, iter_notes
from smp_proto.audit.verify import verify_log
from smp_proto.errors import AuditError, StateError
from smpd.audit import kept as module
from smpd.audit import marks, renewal
from smpd.audit.files import read_lines
from smpd.audit.kept import KeptLog
from smpd.audit.log import AuditLog
from smpd.vault.checkpoint import LastCheckpoint


@pytest.fixture
def kept(open_log, tmp_path: Path, key: VerifierKey, last: LastCheckpoint):
    """Opens the log as the daemon does."""

    def open_kept() -> KeptLog:
        return KeptLog(str(tmp_path / "audit"), lambda: [key], open_log, last)

    return open_kept


def write(kept) -> Path:
    with kept() as log:
        for number in range(30):
            log.append("a.b", actor="anna", number=number)
    return Path(log.directory)


def breakings(folder: Path) -> dict[str, object]:
    log, notes = folder / "audit.jsonl", folder / "checkpoints"
    return {
        "edited": lambda: log.write_bytes(log.read_bytes().replace(b'"number":7', b'"number":8', 1)),
        "cut": lambda: log.write_bytes(log.read_bytes()[:-200]),
        "no log": log.unlink,
        "checkpoint": lambda: notes.write_bytes(notes.read_bytes()[:-9] + b"AAAAAAA=\n"),
    }


@pytest.mark.parametrize("how", ["edited", "cut", "no log", "checkpoint"])
def test_a_broken_log(kept, key: VerifierKey, how: str):
    """It opens, is shown as it is, and refuses; the one begun after it verifies, and its first record says what it follows."""
    folder = write(kept)
    breakings(folder)[how]()
    broken = (folder / "audit.jsonl").read_bytes() if how != "no log" else b""
    with kept() as log:
        assert log.broken
        for act in (lambda: log.append("a.b", actor="x"), log.retry, log.checkpoint):
            with pytest.raises(AuditError) as caught:
                act()
            assert caught.value.code == "audit_broken"
            assert "smpctl audit renew" in caught.value.hint
        assert b"".join(log.read(0, 100)) == broken
        aside = log.renew(actor="root(0)", reason="the disk")
        assert log.broken is None
        assert not log.failure
        log.append("a.b", actor="anna")
        first = msgspec.json.decode(log.read(0, 1)[0])
    assert first["event"] == "audit.begin"
    assert first["actor"] == "root(0)"
    assert first["fields"]["after"] == aside.name == "set-aside-1"
    assert first["fields"]["covered"] == 30
    assert (folder / aside.name / "audit.jsonl").read_bytes() == broken
    lines = (folder / "audit.jsonl").read_bytes().splitlines(keepends=True)
    notes = iter_notes((folder / "checkpoints").read_bytes().splitlines(keepends=True))
    assert "set aside as set-aside-1" in verify_log(lines, notes, [key]).findings[0]
    with kept() as log:
        assert log.broken is None
        assert log.size == 2


def test_a_whole_log_is_not_set_aside(kept):
    """Nobody begins a new log because they would like one."""
    with kept() as log:
        log.append("a.b", actor="anna")
        with pytest.raises(StateError):
            log.renew(actor="root(0)", reason="")


@pytest.mark.parametrize("after", [0, 1])
def test_a_crash_while_it_is_set_aside(kept, monkeypatch, after: int):
    """With the log moved and not its checkpoints it is broken still; with both moved the new one names it all the same."""
    folder = write(kept)
    breakings(folder)["edited"]()
    give, done = renewal.durable.give_name, []

    def crash(*arguments, **options):
        if len(done) > after:
            raise KeyboardInterrupt
        done.append(arguments)
        if done[-1][1].startswith("set-aside"):
            give(*arguments, **options)
            return
        done.pop()
        give(*arguments, **options)

    with kept() as log:
        monkeypatch.setattr(renewal.durable, "give_name", crash)
        if after == 0:
            with pytest.raises(KeyboardInterrupt):
                log.renew(actor="root(0)", reason="")
        else:
            monkeypatch.setattr(KeptLog, "_open", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                log.renew(actor="root(0)", reason="")
    monkeypatch.undo()
    with kept() as log:
        if after == 0:
            assert log.broken
            log.renew(actor="root(0)", reason="again")
        assert msgspec.json.decode(log.read(0, 1)[0])["event"] == "audit.begin"


def test_a_log_that_breaks_while_it_is_open(kept):
    """What the disk no longer holds when it is read back after a failure is broken from then on, not only unwritable."""
    with kept() as log:
        for _ in range(3):
            log.append("a.b", actor="anna")
        assert isinstance(log._log, AuditLog)
        log._log._failure = "a test"
        path = Path(log.directory) / "audit.jsonl"
        path.write_bytes(path.read_bytes().replace(b"anna", b"otto", 1))
        with pytest.raises(AuditError) as caught:
            log.retry()
        assert caught.value.code == "audit_broken"
        assert log.broken
        assert len(log.read(0, 9)) == 3


def test_damaged_keys_of_details_are_set_aside(kept):
    """They cost the details, not the log."""
    folder = write(kept)
    details = folder / "details.sqlite"
    was = b"no database" * 1000
    details.write_bytes(was)
    with kept() as log:
        assert log.broken is None
        log.append("a.b", actor="anna", subject="x", detail={"a": 1})
    assert (folder / "details.sqlite.damaged-1").read_bytes() == was


def test_a_broken_log_is_read_once_and_not_from_its_beginning_for_each_page(
    kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long one nobody would see the end."""
    folder = write(kept)
    breakings(folder)["edited"]()
    lines = (folder / "audit.jsonl").read_bytes().splitlines(keepends=True)
    read: list[bytes] = []

    def counted(*arguments: int | str):
        for line in read_lines(*arguments):
            read.append(line)
            yield line

    monkeypatch.setattr(marks, "read_lines", counted)
    monkeypatch.setattr(module, "read_lines", counted)
    with kept() as log:
        assert log.broken
        found = [line for since in range(0, 31, 3) for line in log.read(since, 3)]
        assert found == lines
        assert len(read) <= 2 * len(lines)
        assert log.read(7, 2) == lines[7:9]
        assert log.read(500, 2) == []
