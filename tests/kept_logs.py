"""Audit logs as the daemon has them, what the database says of them, and what is done to both while nobody looks."""

from pathlib import Path
from typing import Any

from nacl.signing import SigningKey

from smp_proto.audit.note import VerifierKey, iter_notes
from smp_proto.audit.record import AuditRecord, encode_line, parse_line
from smp_proto.audit.verify import verify_log
from smpd.audit.kept import KeptLog
from smpd.audit.log import AuditLog
from smpd.jobs.database import Database
from smpd.vault.checkpoint import LastCheckpoint

ORIGIN = "audit.example/box1"
PRIVATE = [SigningKey(bytes([number]) * 32) for number in range(4)]
KEYS = [VerifierKey(ORIGIN, bytes(each.verify_key)) for each in PRIVATE]
FIRST, SECOND, THIRD, STRANGER = range(4)


def signing(number: int) -> Any:
    return lambda text: PRIVATE[number].sign(text).signature


class Place:
    """A log, what the database says of it, and what somebody does to both while nobody looks."""

    def __init__(self, folder: Path, open_log, key: VerifierKey, database: Database, last: LastCheckpoint) -> None:
        self.folder, self.key, self.database, self.last = folder, key, database, last
        self.log, self.notes = folder / "audit.jsonl", folder / "checkpoints"
        self._open_log = open_log

    def opened(self) -> KeptLog:
        return KeptLog(str(self.folder), lambda: [self.key], self._open_log, self.last)

    def write(self, records: int = 5) -> None:
        with self.opened() as log:
            for number in range(records):
                log.append("a.b", actor="anna", number=number)

    def anew(self, records: int) -> None:
        """A log that somebody made up, with the checkpoints left out."""
        made = [
            AuditRecord(n, "2026-01-01T00:00:00.000000Z", "a.b", "otto", "", "", "", {}, "") for n in range(records)
        ]
        self.log.write_bytes(b"".join(map(encode_line, made)))
        self.notes.write_bytes(b"")

    def rows(self) -> list[tuple]:
        return self.database.rows("SELECT * FROM versions")

    def put_back(self, rows: list[tuple]) -> None:
        with self.database.transaction() as connection:
            connection.execute("DELETE FROM versions")
            connection.executemany("INSERT INTO versions VALUES (?, ?, ?)", rows)

    def broken(self) -> str:
        with self.opened() as log:
            return log.broken.message if log.broken else ""

    def events(self) -> list[str]:
        return [parse_line(line).event for line in self.log.read_bytes().splitlines(keepends=True)]

    def findings(self) -> tuple[str, ...]:
        lines = self.log.read_bytes().splitlines(keepends=True)
        return verify_log(lines, iter_notes(self.notes.read_bytes().splitlines(keepends=True)), [self.key]).findings


class Keys:
    """What the daemon has: keys that a commit changes, and a log that is opened with them."""

    def __init__(self, folder: Path, open_log: Any, last: LastCheckpoint) -> None:
        self.order = [FIRST]
        self._folder, self._open_log, self._last = folder, open_log, last

    def opened(self) -> KeptLog:
        directory = str(self._folder / "audit")
        return KeptLog(directory, lambda: [KEYS[each] for each in self.order], self._open, self._last)

    def _open(self, **kept: Any) -> AuditLog:
        key, *earlier = (KEYS[each] for each in self.order)
        more = {"sign": signing(self.order[0]), "key": key, "earlier_keys": earlier}
        return self._open_log(self._folder / "audit", **more, **kept)

    def change(self, log: KeptLog, key: int) -> None:
        log.rotate(KEYS[key], signing(key), lambda: self.order.insert(0, key), actor="anna", reason="a test")

    def notes(self) -> list[bytes]:
        return list(iter_notes((self._folder / "audit" / "checkpoints").read_bytes().splitlines(keepends=True)))

    def verify(self, outside: bytes | None = None) -> tuple[str, ...]:
        lines = (self._folder / "audit" / "audit.jsonl").read_bytes().splitlines(keepends=True)
        return verify_log(lines, self.notes(), KEYS[:1], outside).signers
