"""The log's key is changed: who knows the first one can follow, and nobody else's checkpoints get in."""

from pathlib import Path
from typing import Any

import pytest
from kept_logs import FIRST, KEYS, ORIGIN, SECOND, STRANGER, THIRD, Keys, signing

from smp_proto.audit.merkle import leaf_hash, root_of
from smp_proto.audit.note import Checkpoint, sign_note, signers
from smp_proto.audit.record import AuditRecord, encode_line, format_time, parse_line
from smp_proto.audit.verify import verify_log
from smp_proto.errors import AuditError
from smpd.vault.checkpoint import LastCheckpoint

pytestmark = pytest.mark.usefixtures("any_length")


class Log:
    """Lines and notes as a test puts them together."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.notes: list[bytes] = []

    def record(self, event: str = "object.open", outcome: str = "", **fields: Any) -> "Log":
        seq = len(self.lines)
        self.lines.append(encode_line(AuditRecord(seq, format_time(seq), event, "a", "", "", outcome, fields, "")))
        return self

    def names(self, former: int, key: int, outcome: str = "") -> "Log":
        return self.record("key.rotate", outcome, former=str(KEYS[former]), verifier=str(KEYS[key]))

    def note(self, key: int) -> bytes:
        root = root_of(leaf_hash(line[:-1]) for line in self.lines)
        return sign_note(Checkpoint(ORIGIN, len(self.lines), root).text(), KEYS[key], signing(key))

    def signed(self, key: int) -> "Log":
        self.notes.append(self.note(key))
        return self

    def verify(self, outside: bytes | None = None) -> tuple[str, ...]:
        return verify_log(self.lines, self.notes, KEYS[:1], outside).signers


def rotated() -> Log:
    """A log that two rotations are in, the second key's only checkpoint being that over the second."""
    log = Log().record().signed(FIRST).names(FIRST, SECOND).signed(FIRST).record()
    return log.names(SECOND, THIRD).signed(SECOND).record().signed(THIRD).record()


def test_who_knows_the_first_key_can_follow() -> None:
    """Through two changes, in a log with its own checkpoints, and against one kept elsewhere by whichever key."""
    log = rotated()
    assert log.verify() == tuple(map(str, KEYS[:3]))
    for key in (FIRST, SECOND, THIRD):
        assert log.verify(log.note(key))
    with pytest.raises(AuditError, match="the outside checkpoint is not valid: no signature on the note is by a known"):
        log.verify(log.note(STRANGER))
    assert "may sign from there on" in verify_log(log.lines, log.notes, KEYS[:1]).findings[0]


@pytest.mark.parametrize(
    "log",
    [
        Log().record().signed(FIRST).record().signed(SECOND),
        Log().record().signed(FIRST).names(FIRST, SECOND).signed(SECOND),
        Log().record().signed(FIRST).names(STRANGER, SECOND).signed(FIRST).record().signed(SECOND),
        Log().record().signed(FIRST).names(FIRST, SECOND, "failed").signed(FIRST).record().signed(SECOND),
        Log().names(FIRST, SECOND).signed(FIRST).record().signed(SECOND).record().signed(FIRST),
        Log().names(FIRST, SECOND).names(FIRST, THIRD).signed(FIRST).record().signed(SECOND).record().signed(THIRD),
        Log().names(FIRST, SECOND).signed(FIRST).names(SECOND, THIRD).signed(FIRST).record().signed(THIRD),
        Log().record().signed(SECOND),
        Log().names(FIRST, SECOND).record().signed(SECOND),
    ],
    ids=[
        "no record",
        "no checkpoint over the record",
        "named by another",
        "a change that failed",
        "back again",
        "two at once",
        "named by one that never signed",
        "nothing by the first",
        "the first's checkpoint removed",
    ],
)
def test_no_other_key_gets_in(log: Log) -> None:
    """A key signs only once a record names it that a checkpoint of the key before it covers."""
    with pytest.raises(AuditError, match="no signature on the note is by a known key") as caught:
        log.verify()
    assert isinstance(caught.value.details["record"], int)


def test_a_record_that_names_no_key_is_broken() -> None:
    """It is the record that is named, not what comes after."""
    log = Log().record().record("key.rotate", former=str(KEYS[0]), verifier="me").signed(FIRST)
    with pytest.raises(AuditError, match="record 1 names a key that is none"):
        log.verify()


@pytest.fixture
def keys(tmp_path: Path, open_log: Any, last: LastCheckpoint) -> Keys:
    return Keys(tmp_path, open_log, last)


def test_the_log_itself_changes_over(keys: Keys) -> None:
    """The former key signs the record of the change, the new one all after it, also when the log is opened again."""
    with keys.opened() as log:
        log.append("a.b", actor="anna")
        early = log.checkpoint()
        keys.change(log, SECOND)
        assert [signers(note, KEYS)[0] for note in log.checkpoints()] == [KEYS[FIRST], KEYS[FIRST], KEYS[SECOND]]
    with keys.opened() as log:
        assert not log.broken
        keys.change(log, THIRD)
        log.append("a.b", actor="anna")
        late = log.checkpoint()
    assert keys.verify(early) == keys.verify(late) == tuple(map(str, KEYS[:3]))


def test_a_change_that_fails_changes_nothing(keys: Keys) -> None:
    """The present key goes on; the log says that it failed, and another try may follow."""

    def fails() -> None:
        raise OSError(28, "No space left on device")

    with keys.opened() as log:
        with pytest.raises(OSError, match="No space"):
            log.rotate(KEYS[STRANGER], signing(STRANGER), fails, actor="anna")
        assert parse_line(log.read(1, 1)[0]).outcome == "failed"
        keys.change(log, SECOND)
    assert keys.verify() == tuple(map(str, KEYS[:2]))


def test_a_crash_after_the_commit(keys: Keys) -> None:
    """The log's next opening is with the new key, which the record that was signed lets in; the former one then is not."""
    with keys.opened() as log, pytest.raises(KeyboardInterrupt):
        log.rotate(KEYS[SECOND], signing(SECOND), _interrupted, actor="anna")
    keys.order = [SECOND, FIRST]
    with keys.opened() as log:
        assert not log.broken
        log.append("a.b", actor="anna")
    assert keys.verify() == tuple(map(str, KEYS[:2]))
    keys.order = [FIRST]  # an old backup of the keys, say
    with keys.opened() as log:
        assert log.broken
        assert "did not hand it over" in log.broken.message


def _interrupted() -> None:
    raise KeyboardInterrupt
