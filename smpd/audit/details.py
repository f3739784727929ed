"""Details of records, sealed under the data key of their subject; destroying it makes them unreadable.

The data keys are in a small SQLite file, each sealed (AES-256-GCM) under the key that the caller gives. A
blob is key id[8] ‖ nonce[12] ‖ AES-256-GCM(JSON), with label and subject as associated data.
"""

import contextlib
import os
import sqlite3
import threading
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from smp_proto import durable
from smp_proto.audit.record import AuditRecord
from smp_proto.errors import AuditError
from smpd.host import sqlite

DETAILS_NAME = "details.sqlite"
DAMAGED = ".damaged-"
KEY_BYTES = 32
_ID, _NONCE = 8, 12
_LABEL = b"smp audit detail\n"
_KEY_LABEL = b"smp audit detail key\n"


def _set_aside_if_damaged(path: str) -> None:
    """Move a file that SQLite cannot vouch for out of the way, as it is: its details are lost, the log is not."""
    if not os.path.exists(path):
        return
    try:
        with contextlib.closing(sqlite.connect(path)) as database:
            found = str(database.execute("PRAGMA integrity_check(1)").fetchone()[0])
            damaged = found != "ok"
    except sqlite3.DatabaseError as exc:
        damaged = exc.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        if not damaged:
            raise
    if not damaged:
        return
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = os.path.basename(path)
        aside = f"{name}{DAMAGED}{sum(each.startswith(name + DAMAGED) for each in os.listdir(folder)) + 1}"
        for suffix in ("-shm", "-wal", ""):
            with contextlib.suppress(FileNotFoundError):
                durable.give_name(name + suffix, aside + suffix, folder)
        durable.sync(folder)
    finally:
        os.close(folder)


class DetailKeys:
    """The data keys of subjects, one for each, made when first needed.

    Args:
        path: of the SQLite file.
        key: 32 bytes that seal the data keys; stays the caller's.

    Raises:
        OSError: the file cannot be made.
        sqlite3.Error: here and from each method, when the file cannot be read or written.
        cryptography.exceptions.InvalidTag: from seal and unseal, when the file or a blob was altered, or
            ``key`` is not the one it was written with.
    """

    def __init__(self, path: str, key: bytearray) -> None:
        self._seal_key = key
        self._lock = threading.Lock()
        _set_aside_if_damaged(path)
        self._db = sqlite.connect(path)
        try:
            sqlite.configure(self._db)
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS keys (subject TEXT PRIMARY KEY, id BLOB, sealed BLOB) WITHOUT ROWID"
            )
        except sqlite3.Error:
            self._db.close()
            raise

    def seal(self, subject: str, detail: dict[str, Any]) -> bytes:
        """Encrypt ``detail`` under the subject's key; the key is on the disk when this returns."""
        plain, nonce = msgspec.json.encode(detail), os.urandom(_NONCE)
        with self._lock:
            key_id, sealed_key = self._find(subject) or self._make(subject)
        with self._opened(subject, key_id, sealed_key) as key:
            return key_id + nonce + AESGCM(key).encrypt(nonce, plain, _LABEL + subject.encode())

    def unseal(self, subject: str, blob: bytes) -> dict[str, Any] | None:
        """Decrypt a blob; None when its key was destroyed."""
        with self._lock:
            key_id, sealed_key = self._find(subject) or (b"", b"")
        if key_id != blob[:_ID]:
            return None
        nonce, sealed = blob[_ID : _ID + _NONCE], blob[_ID + _NONCE :]
        with self._opened(subject, key_id, sealed_key) as key:
            plain = AESGCM(key).decrypt(nonce, sealed, _LABEL + subject.encode())
        return msgspec.json.decode(plain, type=dict[str, Any])

    def of(self, record: AuditRecord) -> dict[str, Any] | None:
        """The detail of a record in the clear; None when it has none or its key was destroyed.

        Raises:
            AuditError: ``audit_broken``.
        """
        if not record.detail:
            return None
        try:
            return self.unseal(record.subject, b64decode(record.detail))
        except (sqlite3.Error, InvalidTag) as exc:
            raise AuditError(
                "audit_broken",
                f"the detail of record {record.seq} cannot be opened",
                hint=f"restore {DETAILS_NAME} from a backup, or check which key sealed it",
                details={"record": record.seq},
            ) from exc

    def destroy(self, subject: str) -> None:
        """Overwrite and remove the subject's key, if there is one."""
        with self._lock:
            self._db.execute("DELETE FROM keys WHERE subject = ?", (subject,))
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the write-ahead log holds the old page

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _find(self, subject: str) -> tuple[bytes, bytes] | None:
        """Id and sealed form of the subject's key."""
        rows = self._db.execute("SELECT id, sealed FROM keys WHERE subject = ?", (subject,))
        row: tuple[bytes, bytes] | None = rows.fetchone()
        return row

    def _make(self, subject: str) -> tuple[bytes, bytes]:
        key_id, nonce, key = os.urandom(_ID), os.urandom(_NONCE), bytearray(KEY_BYTES)
        with open("/dev/urandom", "rb", buffering=0) as random:
            random.readinto(key)  # os.urandom would leave a copy that nobody can wipe
        sealed = nonce + AESGCM(self._seal_key).encrypt(nonce, key, _KEY_LABEL + key_id + subject.encode())
        key[:] = bytes(KEY_BYTES)
        self._db.execute("INSERT INTO keys VALUES (?, ?, ?)", (subject, key_id, sealed))
        return key_id, sealed

    @contextlib.contextmanager
    def _opened(self, subject: str, key_id: bytes, sealed: bytes) -> Iterator[bytearray]:
        """The data key in the clear, wiped on leaving."""
        key, bound = bytearray(KEY_BYTES), _KEY_LABEL + key_id + subject.encode()
        try:
            AESGCM(self._seal_key).decrypt_into(sealed[:_NONCE], sealed[_NONCE:], bound, key)
            yield key
        finally:
            key[:] = bytes(KEY_BYTES)
