"""A long log is opened from its last checkpoint on, and what came before is verified while the work goes on."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kept_logs import FIRST, KEYS, SECOND, THIRD, Keys, Place, signing

from smp_proto.audit.merkle import Tree
from smp_proto.audit.note import VerifierKey, iter_notes, peek_checkpoint
from smp_proto.audit.record import parse_line
from smp_proto.audit.verify import LogVerifier
from smp_proto.errors import AuditError
from smpd.audit import earlier, opening
from smpd.audit.kept import KeptLog
from smpd.audit.log import AuditLog
from smpd.jobs.database import Database
from smpd.jobs.journal import Journal
from smpd.state import lost_jobs
from smpd.vault.checkpoint import LastCheckpoint

RECORDS = 4500
PIECE = 500


@pytest.fixture(autouse=True)
def _none_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "WHOLE_RECORDS", 0)
    monkeypatch.setattr(earlier, "PIECE_RECORDS", PIECE)


@pytest.fixture
def place(tmp_path: Path, open_log: Any, key: VerifierKey, db: Database, last: LastCheckpoint) -> Place:
    """A log of nine checkpoints, a few records after the last of which nobody signed: smpd was killed."""

    def often(*arguments: Any, **settings: Any) -> AuditLog:
        return open_log(*arguments, checkpoint_records=PIECE, **settings)

    found = Place(tmp_path / "audit", often, key, db, last)
    log = found.opened()
    for begin in range(0, RECORDS, PIECE):
        log.append("a.b", actor="anna", subjects=[f"scan {begin + number}" for number in range(PIECE)])
    log.append("a.b", actor="anna", subjects=["x"] * 7)
    log._log._files.close()  # killed
    return found


def test_a_checkpoint_that_is_damaged_costs_no_other(place: Place) -> None:
    """It is found out about later; until then what was signed last is not taken for torn, and nothing is cut off."""
    path = place.folder / "checkpoints"
    data = bytearray(path.read_bytes())
    data[data.index(b"\n\n")] = ord("!")
    path.write_bytes(data)
    with place.opened() as log:
        assert log.broken is None
        assert path.read_bytes() == data
        assert b"audit.recovered" not in b"".join(log.read(RECORDS, 100))
        with pytest.raises(AuditError):
            looked_back(log)


def test_a_start_looks_for_lost_jobs_past_a_record_that_is_none_any_more(place: Place, db: Database, seal: Any) -> None:
    """It is found out about later; the records behind it tell of jobs all the same."""
    with place.opened() as log:
        log.append("job.submit", actor="anna", job="lost")
    data = place.log.read_bytes()
    place.log.write_bytes(data.replace(b'"anna"', b'"an\0a"', 1))
    with place.opened() as log:
        assert log.broken is None
        assert lost_jobs(log, Journal(db, seal)) == ["lost"]


def looked_back(log: KeptLog) -> int:
    """In how many pieces."""
    pieces = 0
    while log.unseen:
        log.look_back()
        pieces += 1
    return pieces


def test_only_what_came_after_is_verified_first(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written on at once; the rest comes in pieces, after which nothing is left to do."""
    fed, feed = [], LogVerifier.feed
    monkeypatch.setattr(LogVerifier, "feed", lambda self, line: (fed.append(line), feed(self, line))[1])
    with place.opened() as log:
        assert len(fed) == 7
        assert log.unseen == RECORDS
        assert log.append("c.d", actor="anna") == RECORDS + 7
        log.look_back()
        assert log.unseen == RECORDS - PIECE
        assert looked_back(log) == RECORDS // PIECE - 1
        assert log.size == RECORDS + 8
        log.look_back()
        assert not log.broken
    assert place.events()[-1] == "c.d"
    assert not place.findings()


def test_a_short_one_is_verified_whole(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes no time, and shows all there is to see before anything is done."""
    monkeypatch.setattr(opening, "WHOLE_RECORDS", RECORDS)
    with place.opened() as log:
        assert not log.unseen


def test_what_an_older_smpd_kept(place: Place, last: LastCheckpoint) -> None:
    """It says nothing of how far the log was: all of it is verified, and the next checkpoint says it."""
    found = last.read()
    assert found
    last.keep(found.note)
    for unseen in (0, RECORDS + 8):
        with place.opened() as log:
            assert log.unseen == unseen
            log.append("a.b", actor="anna")


@pytest.mark.parametrize("seen", [False, True])
def test_any_record_can_be_read(place: Place, seen: bool) -> None:
    """Before all is verified and after; whoever reads the log through does not begin anew each time."""
    lines = place.log.read_bytes().splitlines(keepends=True)
    with place.opened() as log:
        if seen:
            looked_back(log)
        rng = random.Random(5)
        for _ in range(60):
            since, limit = rng.randrange(len(lines) + 3), rng.choice([1, 3, 700, 2000])
            assert log.read(since, limit) == lines[since : since + limit]
        marks = log._log._marks.all
        assert marks == sorted(set(marks))
        assert all(sum(map(len, lines[: mark.record])) == mark.offset for mark in marks)


def test_reading_it_through(place: Place) -> None:
    """Each page begins where the one before ended."""
    with place.opened() as log:
        for since in range(0, RECORDS, 1500):
            log.read(since, 1500)
        assert [mark.record for mark in log._log._marks.all] == [0, 3000, 4500]  # 1500 is near enough to the first


def _at(data: bytes, number: int) -> int:
    return sum(map(len, data.splitlines(keepends=True)[:number]))


def _flip(place: Place) -> None:
    data = bytearray(place.log.read_bytes())
    data[_at(data, 1234) + 40] ^= 1
    place.log.write_bytes(data)


def _swap(place: Place) -> None:
    lines = place.log.read_bytes().splitlines(keepends=True)
    lines[700], lines[701] = lines[701], lines[700]
    place.log.write_bytes(b"".join(lines))


def _another(place: Place) -> None:
    """A record that says something else, of the same length."""
    data = place.log.read_bytes()
    at = _at(data, 2000)
    place.log.write_bytes(data[:at] + data[at:].replace(b'"anna"', b'"otto"', 1))


def _leave_out(place: Place) -> None:
    lines = place.log.read_bytes().splitlines(keepends=True)
    place.log.write_bytes(b"".join(lines[:50] + lines[51:]))


def _put_in(place: Place) -> None:
    """Two where one was, so that all after them is where it was."""
    lines = place.log.read_bytes().splitlines(keepends=True)
    lines[-8:-7] = [b"{}\n", lines[-8][3:]]
    place.log.write_bytes(b"".join(lines))


def _fewer(place: Place) -> None:
    """All of them made up, in as many bytes, but one fewer."""
    lines = place.log.read_bytes().splitlines(keepends=True)
    signed, rest = lines[:RECORDS], lines[RECORDS:]
    last = signed[-2].replace(b'"anna"', b'"anna%s"' % (b"a" * len(signed[-1])))
    assert sum(map(len, [*signed[:-2], last])) == sum(map(len, signed))
    place.log.write_bytes(b"".join([*signed[:-2], last, *rest]))


def _note(place: Place) -> None:
    """A checkpoint among those before."""
    data = bytearray(place.notes.read_bytes())
    data[70] ^= 1
    place.notes.write_bytes(data)


def _no_notes(place: Place) -> None:
    _another(place)
    place.notes.write_bytes(b"")


def _shorter(place: Place) -> None:
    os.truncate(place.log, _at(place.log.read_bytes(), 3000))


LATER = [_flip, _swap, _another, _put_in, _fewer, _note]


@pytest.mark.parametrize("change", [*LATER, _leave_out, _no_notes, _shorter])
def test_what_was_changed_is_found(
    place: Place, change: Callable[[Place], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the record that a verification of the whole names; from then on the log is broken at each start."""
    change(place)
    with place.opened() as log:
        if change in LATER:
            assert not log.broken
            with pytest.raises(AuditError) as caught:
                looked_back(log)
            assert caught.value.code == "audit_broken"
        found = log.broken
        assert found
        assert not log.unseen
        with pytest.raises(AuditError, match="not what was signed"):
            log.append("a.b", actor="anna")
    with place.opened() as log:
        assert log.broken
        assert log.broken.details == found.details
    monkeypatch.setattr(opening, "WHOLE_RECORDS", 1 << 60)
    with place.opened() as log:
        assert log.broken
        assert log.broken.details == found.details


def test_nothing_is_signed_once_it_was_found(place: Place) -> None:
    """What nobody signed yet stays so."""
    _flip(place)
    notes = place.notes.read_bytes()
    with place.opened() as log:
        log.append("a.b", actor="anna")
        with pytest.raises(AuditError):
            looked_back(log)
    assert place.notes.read_bytes() == notes


def test_a_disk_that_cannot_be_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """That says nothing of the log; it is looked at again from the beginning."""
    with place.opened() as log:
        log.look_back()

        def fails(self: LogVerifier, line: bytes) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patched, pytest.raises(AuditError, match="cannot be read: .*Input/output"):
            patched.setattr(LogVerifier, "feed", fails)
            log.look_back()
        assert log.unseen == RECORDS
        assert not log.failure
        looked_back(log)
        assert not log.broken


def test_after_a_failed_write_only_the_end_is_read_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log need not be verified anew for that, and looking back goes on."""
    with place.opened() as log:
        log.look_back()
        with monkeypatch.context() as patched, pytest.raises(AuditError):
            patched.setattr("smp_proto.durable.append", _refuse)
            log.append("a.b", actor="anna")
        fed, feed = [], LogVerifier.feed
        with monkeypatch.context() as patched:
            patched.setattr(LogVerifier, "feed", lambda self, line: (fed.append(line), feed(self, line))[1])
            log.retry()
        assert len(fed) == 7
        looked_back(log)
        assert not log.broken
    assert place.events()[-1] == "audit.recovered"
    assert len(place.findings()) == 1


def _refuse(fd: int, data: bytes) -> None:
    raise OSError(28, "No space left on device")


class Verifying:
    """The log of :class:`Keys`, verified from its beginning."""

    def __init__(self, keys: Keys) -> None:
        folder = keys._folder / "audit"
        self.lines = (folder / "audit.jsonl").read_bytes().splitlines(keepends=True)
        self.notes = list(iter_notes((folder / "checkpoints").read_bytes().splitlines(keepends=True)))

    def up_to(self, size: int) -> LogVerifier:
        """As it is when it has seen the checkpoint over so many records."""
        notes = [note for note in self.notes if peek_checkpoint(note).size <= size]
        verifier = LogVerifier(notes, KEYS[:1])
        for line in self.lines[:size]:
            verifier.feed(line)
        verifier.finish()
        return verifier


@pytest.mark.parametrize("seed", range(12))
def test_what_is_kept_is_what_a_verifier_knows(tmp_path: Path, open_log: Any, last: LastCheckpoint, seed: int) -> None:
    """Through changes of keys, ones that fail, crashes and openings, whatever their order."""
    keys, rng = Keys(tmp_path, open_log, last), random.Random(seed)
    log, kept = keys.opened(), []

    def crash() -> None:
        raise KeyboardInterrupt

    for _ in range(25):
        key = rng.choice([FIRST, SECOND, THIRD])
        match rng.randrange(6):
            case 0 | 1:
                log.append("a.b", actor="anna", subjects=["x"] * rng.randrange(1, 9))
                if rng.random() < 0.7:
                    log.checkpoint()
            case 2 if key not in keys.order:
                keys.change(log, key)
            case 3 if key not in keys.order:
                with pytest.raises(KeyboardInterrupt):
                    log.rotate(KEYS[key], signing(key), crash, actor="anna")
                if rng.random() < 0.5:  # it was committed, but the log is not there to be told
                    keys.order.insert(0, key)
                    log._log._files.close()
                    log = keys.opened()
            case 4:
                log.close()
                log = keys.opened()
            case 5:
                log._log._files.close()  # killed
                log = keys.opened()
        assert not log.broken
        found = last.read()
        assert found
        if found.reached:
            kept.append(found.reached)
    log.close()
    whole = Verifying(keys)
    for reached in kept:
        verified, verifier = reached.verified, whole.up_to(reached.verified.size)
        assert verified.roots == verifier.tree.roots
        assert Tree.of(verified.size, verified.roots).root() == verifier.tree.root()
        assert verified.signer == str(verifier.turns.signers[-1])
        assert verified.successors == tuple(map(str, verifier.turns.successors))
        assert reached.log_bytes == sum(map(len, whole.lines[: verified.size]))
        assert reached.notes_bytes == sum(map(len, whole.notes[: verifier.checkpoints_ok - 1]))
    assert kept


def test_a_tree_that_is_none() -> None:
    """A size has as many roots as bits."""
    tree = Tree(bytes([number]) * 32 for number in range(11))
    assert Tree.of(11, tree.roots).root() == tree.root()
    for size, roots in ((11, tree.roots[1:]), (12, tree.roots), (-1, tree.roots[:1]), (1, (b"short",))):
        with pytest.raises(ValueError, match="leaves"):
            Tree.of(size, roots)


def test_what_is_kept_does_not_fit(place: Place, last: LastCheckpoint) -> None:
    """Where it is nonsense the log is verified whole."""
    found = last.read()
    assert found
    assert found.reached
    reached, verified = found.reached, found.reached.verified
    replace = msgspec.structs.replace
    for wrong in (
        replace(reached, log_bytes=reached.log_bytes - 1),
        replace(reached, log_bytes=1 << 40),
        replace(reached, notes_bytes=reached.notes_bytes + 1),
        replace(reached, verified=replace(verified, size=verified.size + 1)),
        replace(reached, verified=replace(verified, roots=verified.roots[::-1])),
        replace(reached, verified=replace(verified, roots=())),
        replace(reached, verified=replace(verified, signer="me")),
        replace(reached, verified=replace(verified, signer=str(KEYS[THIRD]))),
    ):
        last.keep(found.note, wrong)
        with place.opened() as log:
            assert not log.broken
            assert not log.unseen
            assert log.size == RECORDS + 7


def test_events_are_what_they_were(place: Place) -> None:
    """The one record in this log that is no other's is found by its number."""
    with place.opened() as log:
        number = log.append("c.d", actor="anna")
    with place.opened() as log:
        assert parse_line(log.read(number, 1)[0]).event == "c.d"
