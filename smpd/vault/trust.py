"""The senders this box believes: their public keys, until when, and for which places.

Nothing is trusted on first use. Removing leaves a tombstone, so that a later refusal can say why; trusting a removed
key once more takes an explicit add. Each record is sealed whole, so one that was altered on disk is no sender at all.
Whether a signature holds is decided elsewhere; here a public key is text. All calls block.
"""

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from smp_proto.control import TrustView
from smp_proto.errors import IntegrityError, NotFoundError, StateError, UsageError
from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal
from smpd.vault.remotes import check_name, parse_location

UNTIL_MAX = 253402300799.0  # the last second of the year 9999


class _Record(msgspec.Struct):
    """A sender as kept."""

    view: TrustView
    key: str


_decode = msgspec.msgpack.Decoder(_Record).decode


class TrustStore:
    """The trust store.

    Args:
        db: where it is kept.
        seal: seals its records.
        wall: the clock that dates adding and removing.
    """

    def __init__(self, db: Database, seal: StateSeal, *, wall: Callable[[], float] = time.time) -> None:
        self._db = db
        self._seal = seal
        self._wall = wall
        self._changes = 0
        self._read: tuple[int, Senders] | None = None  # what was read after so many changes

    def add(
        self,
        name: str,
        key: str,
        *,
        key_id: bytes,
        fingerprint: str,
        prefixes: list[str] | None = None,
        until: float = 0.0,
    ) -> TrustView:
        """Believe a sender from now on.

        Args:
            name: as of a remote.
            key: the public key as text; the caller has parsed it.
            key_id, fingerprint: what the parsed key says of itself.
            prefixes: ``REMOTE:PREFIX`` each; none means anywhere.
            until: seconds since the epoch; 0 means for good.

        Raises:
            UsageError: ``bad_name``, for the name or a prefix; ``bad_request`` for a time that none is.
            StateError: ``exists``, when the name or the key is believed already.
        """
        check_name(name, "sender")
        if not 0 <= until <= UNTIL_MAX:
            raise UsageError("bad_request", f"no trust can end at {until:g} seconds", hint="0 means for good")
        for prefix in prefixes or []:
            parse_location(prefix, prefix=True)
        view = TrustView(name, key_id.hex(), fingerprint, self._wall(), until, list(prefixes or []))
        with self._db.transaction() as connection:
            for record in self._records(connection):
                old = record.view
                if not old.removed and (old.name == name or old.key_id == view.key_id):
                    what = f"a sender {name}" if old.name == name else f"this key, as sender {old.name}"
                    hint = f"to change it: smpctl trust remove {old.name}, then add it again"
                    raise StateError("exists", f"there is {what} already", hint=hint)
            number = connection.execute("INSERT INTO trust (body) VALUES (x'')").lastrowid
            self._write(connection, int(number or 0), _Record(view, key))
        self._changes += 1
        return view

    def list(self) -> list[TrustView]:
        """Return all senders in the order they were added, tombstones included."""
        with self._db.transaction() as connection:
            return [record.view for record in self._records(connection)]

    def damaged(self) -> int:
        """How many records do not open: their senders are not believed."""
        rows = self._db.rows("SELECT number, body FROM trust ORDER BY number")
        return len(rows) - len(self._opened(rows))

    def remove(self, name: str) -> TrustView:
        """Stop believing a sender; return its tombstone.

        Raises:
            NotFoundError: ``no_such_key``.
        """
        found: TrustView | None = None
        with self._db.transaction() as connection:
            for number, record in self._numbered(connection):
                if record.view.name == name and not record.view.removed:
                    record.view.removed = self._wall()
                    self._write(connection, number, record)
                    found = record.view
                    break
        if found is None:
            hint = "smpctl trust list shows them"
            raise NotFoundError("no_such_key", f"no sender {name[:80]!r} is believed", hint=hint)
        self._changes += 1
        return found

    def read(self) -> "Senders":
        """Return the senders as they are now, to look several up. The database is asked again after a change only."""
        changes = self._changes  # counted once a change is committed, so what is read now is not older than that
        if self._read is None or self._read[0] != changes:
            rows = self._db.rows("SELECT number, body FROM trust ORDER BY number")
            self._read = changes, Senders([record for _, record in self._opened(rows)])
        return self._read[1]

    def key_of(self, sender_key_id: bytes) -> str:
        """The public key of a sender who is, or once was, believed: for what was verified when it came.

        Raises:
            IntegrityError: ``untrusted_sender``, when nobody here ever had this key.
        """
        key_id = sender_key_id.hex()
        with self._db.transaction() as connection:
            for record in self._records(connection):
                if record.view.key_id == key_id:
                    return record.key
        raise _untrusted(f"no sender with key {key_id} was ever known here", "get the object again from its remote")

    def _numbered(self, connection: sqlite3.Connection) -> tuple[tuple[int, _Record], ...]:
        return self._opened(connection.execute("SELECT number, body FROM trust ORDER BY number").fetchall())

    def _opened(self, rows: Iterable[tuple[int, bytes]]) -> tuple[tuple[int, _Record], ...]:
        found = []
        for number, body in rows:
            try:
                found.append((number, _decode(self._seal.open(body, _context(number)))))
            except (IntegrityError, msgspec.MsgspecError, ValueError, RecursionError):
                continue  # altered: not believed
        return tuple(found)

    def _records(self, connection: sqlite3.Connection) -> tuple[_Record, ...]:
        return tuple(record for _, record in self._numbered(connection))

    def _write(self, connection: sqlite3.Connection, number: int, record: _Record) -> None:
        body = self._seal.seal(msgspec.msgpack.encode(record), _context(number))
        connection.execute("UPDATE trust SET body=? WHERE number=?", (body, number))


class Senders:
    """The senders as they were when read."""

    def __init__(self, records: Sequence[_Record]) -> None:
        self._records = records

    @property
    def keys(self) -> list[str]:
        """The public keys of those who may be believed somewhere, now or later."""
        return [record.key for record in self._records if not record.view.removed]

    def lookup(self, sender_key_id: bytes, location: str, now: float) -> str:
        """Return the public key to verify an object with.

        Args:
            sender_key_id: who the object says signed it.
            location: ``REMOTE:PATH`` it came from.
            now: seconds since the epoch.

        Raises:
            IntegrityError: ``untrusted_sender``; the hint says what to type.
        """
        key_id, shown = sender_key_id.hex(), sender_key_id.hex("-", 2)  # as people compare it
        records = [record for record in self._records if record.view.key_id == key_id]
        if not records:
            raise _untrusted(
                f"no sender with key {shown} is known here",
                "ask the sender for the public key, compare its fingerprint by another way, "
                "then: smpctl trust add NAME KEYFILE",
            )
        last = next((record for record in records if not record.view.removed), records[-1])
        view = last.view
        if view.removed:
            raise _untrusted(
                f"sender {view.name} (key {shown}) was removed on {_day(view.removed)}",
                f"if it is to be believed again: smpctl trust add {view.name} KEYFILE",
            )
        again = f"smpctl trust remove {view.name}, then: smpctl trust add {view.name} KEYFILE"
        if view.until and now >= view.until:
            raise _untrusted(
                f"trust in sender {view.name} (key {shown}) ended on {_day(view.until)}",
                f"to go on believing it: {again} --until DATE",
            )
        if view.prefixes and not any(_within(location, prefix) for prefix in view.prefixes):
            remote = location.partition(":")[0]
            raise _untrusted(
                f"sender {view.name} (key {shown}) is believed only for {', '.join(view.prefixes)}",
                f"to believe it for this remote too: {again} --prefix {remote}: with the prefixes it has",
            )
        return last.key


def _within(location: str, prefix: str) -> bool:
    """Whether a location is at or below a prefix, step by step: ``a:ct`` covers ``a:ct/1`` and not ``a:ct2``."""
    if prefix.endswith((":", "/")):
        return location.startswith(prefix)
    return location == prefix or location.startswith(prefix + "/")


def _day(seconds: float) -> str:
    seconds = min(max(0.0, seconds), UNTIL_MAX)  # a record may be older than the check of its time, and even a NaN
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _untrusted(message: str, hint: str) -> IntegrityError:
    return IntegrityError("untrusted_sender", message, hint=hint)


def _context(number: int) -> str:
    return f"trust {number}"
