"""The daemon's writer: what is acknowledged is on the disk, in order, sealed, signed, and found again."""

import os
import sqlite3
import stat
import threading
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

import pytest

from smp_proto.audit.note import VerifierKey, open_checkpoint
from smp_proto.audit.record import AuditRecord, parse_line
from smp_proto.audit.verify import verify_log
from smp_proto.errors import AuditError, UsageError
from smpd.audit import AuditLog

pytestmark = pytest.mark.usefixtures("any_length")

Open = Callable[..., AuditLog]


def parsed(log: AuditLog) -> list[AuditRecord]:
    return [parse_line(line) for line in log.read(0, 1 << 30)]


def test_records_are_numbered_kept_and_signed(open_log: Open, key: VerifierKey) -> None:
    """Appended records come back in order after reopening, covered by the checkpoint that close signs."""
    with open_log(clock=lambda: 1.25) as log:
        numbers = [log.append("object.open", actor="alice", job="j1", n=n, last=n == 2) for n in range(3)]
        assert numbers == [0, 1, 2]
        assert log.checkpoints() == []
    with open_log() as log:
        assert [record.fields for record in parsed(log)] == [{"n": n, "last": n == 2} for n in range(3)]
        assert parsed(log)[0].time == "1970-01-01T00:00:01.250000Z"
        assert [open_checkpoint(note, (key,)).size for note in log.checkpoints()] == [3]
        assert log.append("object.close", actor="alice", outcome="ok") == 3
        report = verify_log(log.read(0, 10), log.checkpoints(), (key,))
    assert (report.size, report.covered) == (4, 3)


def test_checkpoints_come_by_count_by_time_and_on_demand(open_log: Open, key: VerifierKey) -> None:
    """A checkpoint is signed after N records, after T seconds, and when asked, and not twice for one size."""
    with open_log(checkpoint_records=3) as log:
        for _ in range(7):
            log.append("object.open", actor="a")
        note = log.checkpoint()
        assert note == log.checkpoint() == log.checkpoints()[-1]
        assert [open_checkpoint(each, (key,)).size for each in log.checkpoints()] == [3, 6, 7]
    with open_log(checkpoint_s=0.0) as log:
        for _ in range(2):
            log.append("object.open", actor="a")
        assert [open_checkpoint(each, (key,)).size for each in log.checkpoints()] == [3, 6, 7, 8, 9]


def test_what_has_no_checkpoint_gets_one_when_it_is_due(open_log: Open) -> None:
    """No further record need come for that."""
    with open_log() as log:
        log.append("object.open", actor="a")
        log.checkpoint_if_due()
        assert log.unsigned == 1
        log._checkpoint_s = 0.0
        log.checkpoint_if_due()
        assert log.unsigned == 0
        log.checkpoint_if_due()
        assert len(log.checkpoints()) == 1


def test_an_empty_log_opens_and_closes(open_log: Open) -> None:
    """A new log has no records, no checkpoint and nothing to read."""
    for _ in range(2):
        with open_log() as log:
            assert (log.size, log.checkpoint(), log.read(0, 5)) == (0, b"", [])


def test_reading_from_any_record(open_log: Open) -> None:
    """read gives the right lines across the remembered offsets, before and after reopening."""
    with open_log() as log:
        threads = [
            threading.Thread(target=lambda: [log.append("a.b", actor="a") for _ in range(275)]) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert log.size == 2200
    for _ in range(2):
        with open_log() as log:
            for since in (0, 1, 1023, 1024, 1025, 2047, 2048, 2199):
                assert [parse_line(line).seq for line in log.read(since, 3)] == list(range(since, min(since + 3, 2200)))
            assert log.read(2200, 1) == log.read(-1, 1) == []
            assert len(log.read(0, 5000)) == 2200


def test_files_are_private(open_log: Open, tmp_path: Path) -> None:
    """The directory is 0700 and every file in it 0600, whatever the umask."""
    before = os.umask(0)
    try:
        with open_log() as log:
            log.append("a.b", actor="a", subject="s", detail={"x": 1})
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "audit").iterdir()}
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) == 0o700
    assert {"audit.jsonl", "checkpoints", "details.sqlite"} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_a_second_writer_is_refused(open_log: Open) -> None:
    """A log that is open cannot be opened again; the error says why."""
    with open_log(), pytest.raises(AuditError, match="another process writes it") as caught:
        open_log()
    assert caught.value.code == "audit_unwritable"


def test_a_closed_log_refuses(open_log: Open) -> None:
    """After close nothing is written, retry does not reopen, closing again is harmless, keys are wiped."""
    pseudonym_key, detail_key = bytearray(b"p" * 32), bytearray(b"d" * 32)
    log = open_log(pseudonym_key=pseudonym_key, detail_key=detail_key)
    log.close()
    log.close()
    for act in (lambda: log.append("a.b", actor="a"), log.checkpoint, log.retry):
        with pytest.raises(AuditError, match="closed"):
            act()
    assert pseudonym_key == detail_key == bytearray(32)


def test_a_wrong_signing_key_latches(open_log: Open) -> None:
    """A signature that does not verify is never written: the record stays, the next one is refused."""
    with open_log(sign=lambda text: bytes(64), checkpoint_records=1) as log:
        assert log.append("a.b", actor="a") == 0
        with pytest.raises(AuditError, match="signing key"):
            log.append("a.b", actor="a")
        assert log.checkpoints() == []


def test_bad_records_do_not_latch(open_log: Open) -> None:
    """A record that cannot be encoded is refused and the next one is written."""
    with open_log() as log:
        for bad in ({"event": "open"}, {"event": "a.b", "x": 1.5}, {"event": "a.b", "detail": {"x": 1}}):
            with pytest.raises(UsageError):
                log.append(actor="a", **bad)
        with pytest.raises(UsageError):
            log.append("a.b", actor="a", subject="s", detail={"x": object()})
        assert log.append("a.b", actor="a") == 0


# --- what the records hide ---


def test_names_and_details_are_not_in_the_files(open_log: Open, tmp_path: Path) -> None:
    """Neither name nor detail of an object is in any file in the clear; a name has one pseudonym."""
    with open_log() as log:
        log.append("object.open", actor="a", subject="Doe^Jane/scan.dcm", detail={"patient": "Doe^Jane"})
        log.append("object.close", actor="a", subject="Doe^Jane/scan.dcm")
        one, other = parsed(log)
        assert one.subject == other.subject == log.pseudonym("Doe^Jane/scan.dcm")
        assert log.detail(one) == {"patient": "Doe^Jane"}
        assert log.detail(other) is None
        everything = b"".join(each.read_bytes() for each in (tmp_path / "audit").iterdir())
    assert b"Doe" not in everything
    assert "p" * 8 not in repr(log) + str(vars(log).keys())


def test_shredding_makes_details_unreadable_for_ever(open_log: Open, tmp_path: Path) -> None:
    """After shred no detail of the subject opens and its sealed key is in no file; others still open."""
    with open_log() as log:
        for subject in ("one", "two", "one"):
            log.append("object.open", actor="a", subject=subject, detail={"of": subject})
        database = sqlite3.connect(tmp_path / "audit" / "details.sqlite")
        query = "SELECT sealed FROM keys WHERE subject = ?"
        (sealed,) = database.execute(query, (log.pseudonym("one"),)).fetchone()
        database.close()
        assert log.shred("one", actor="officer") == 3
        assert sealed not in b"".join(each.read_bytes() for each in (tmp_path / "audit").iterdir())
        log.append("object.open", actor="a", subject="one", detail={"of": "one again"})
        assert [log.detail(each) for each in parsed(log)] == [
            None,
            {"of": "two"},
            None,
            None,
            {"of": "one again"},
        ]
        assert parsed(log)[3].event == "detail.shred"
    with open_log() as log:
        assert [log.detail(each) for each in parsed(log)][:3] == [None, {"of": "two"}, None]
        assert log.shred("never seen", actor="officer") == 5


def test_a_detail_opens_only_for_its_record_and_key(open_log: Open) -> None:
    """Under another sealing key details are neither read nor written; records without one still are."""
    with open_log() as log:
        log.append("a.b", actor="a", subject="s", detail={"x": 1})
    with open_log(detail_key=bytearray(b"e" * 32)) as log:
        (record,) = parsed(log)
        with pytest.raises(AuditError, match="detail of record 0"):
            log.detail(record)
        with pytest.raises(AuditError, match="data key"):
            log.append("a.b", actor="a", subject="s", detail={"x": 2})
        assert log.append("a.b", actor="a", subject="s") == 1
    assert len(b64decode(record.detail)) == 8 + 12 + len(b'{"x":1}') + 16


# --- group commit ---


def test_concurrent_appends_share_syncs_and_keep_order(
    open_log: Open, monkeypatch: pytest.MonkeyPatch, key: VerifierKey
) -> None:
    """While one fsync runs the others queue; the next takes all of them, in the order of their numbers."""
    entered, release, syncs = threading.Event(), threading.Event(), []
    true_fsync = os.fsync

    def slow_fsync(fd: int) -> None:
        syncs.append(fd)
        if len(syncs) == 1:
            entered.set()
            release.wait()
        true_fsync(fd)

    with open_log() as log:
        monkeypatch.setattr("smp_proto.durable.os.fsync", slow_fsync)
        got: list[tuple[int, int]] = []
        threads = [
            threading.Thread(target=lambda n=n: got.append((log.append("a.b", actor="a", n=n), n))) for n in range(20)
        ]
        threads[0].start()
        entered.wait()
        for thread in threads[1:]:
            thread.start()
        while len(log._queue) < 19:
            threading.Event().wait(0.001)
        assert log.size == 0
        assert got == []
        release.set()
        for thread in threads:
            thread.join()
        assert len(syncs) == 2
        monkeypatch.undo()
        assert sorted(seq for seq, _ in got) == list(range(20))
        assert [record.fields["n"] for record in parsed(log)] == [n for _, n in sorted(got)]
        assert verify_log(log.read(0, 100), [log.checkpoint()], (key,)).covered == 20


def test_keys_of_a_log_that_does_not_open_are_wiped(open_log, tmp_path):
    """Whoever opened it has no use for them any more."""
    with open_log() as log:
        log.append("a.b", actor="a")
    (tmp_path / "audit" / "audit.jsonl").write_bytes(b"")
    pseudonym_key, detail_key = bytearray(b"p" * 32), bytearray(b"d" * 32)
    with pytest.raises(AuditError):
        open_log(pseudonym_key=pseudonym_key, detail_key=detail_key)
    assert not any(pseudonym_key + detail_key)
