"""The append-only log: group commit, checkpoints, recovery.

One thread at a time, the leader, touches the files; the others queue their records and wait. So records that
arrive together share one fsync, and their order in the file is the order in which they got their numbers.

Any failure of a write or an fsync latches the log: every call that would write is refused until :meth:`retry`
has read back from the disk exactly what was acknowledged.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from smp_proto import durable
from smp_proto.audit.merkle import leaf_hash
from smp_proto.audit.note import Checkpoint, VerifierKey, iter_notes, sign_note
from smp_proto.audit.record import AuditRecord, FieldValue, encode_line, encode_lines, format_time, parse_line
from smp_proto.audit.turns import ROTATION
from smp_proto.audit.verify import Verified, broken
from smp_proto.errors import AuditError, ResourceError, SmpError
from smp_proto.memory import wipe

from .files import read_lines, unwritable
from .marks import MARK_RECORDS, Marks, read_from
from .opening import CHECKPOINTS_NAME, LOG_NAME, open_verified
from .remembered import Reached
from .subjects import Subjects

CHECKPOINT_RECORDS = 1000
CHECKPOINT_S = 60.0
_SELF = "smpd"
_ROTATES = f'"{ROTATION}"'.encode()


class _Entry:
    """A record on its way to the disk; settled when ``synced`` or ``failure`` is set."""

    __slots__ = ("failure", "line", "synced")

    def __init__(self, line: bytes) -> None:
        self.line = line
        self.synced = False
        self.failure = ""


class AuditLog:
    """The audit log in one directory: opened or created, and verified against its checkpoints.

    Any thread may use it; every call may block.

    Args:
        directory: of the log alone; made with mode 0700.
        sign: Ed25519 over what it is given, 64 bytes.
        key: the public key that belongs to ``sign``; its name is the log's origin.
        pseudonym_key: HMAC key for subjects, 32 bytes; wiped at once.
        detail_key: seals the data keys of details, 32 bytes; the log takes it over, and wipes it at its end.
        clock: seconds since the epoch, for the records only.
        earlier_keys: keys that signed older checkpoints.
        checkpoint_records: sign after so many records.
        checkpoint_s: sign after so many seconds, at the next record or :meth:`checkpoint_if_due`.
        make_room: called before something is written, to see that there is room for it.
        last: the newest checkpoint, where it was kept apart from the log: the log must hold it.
        reached: how far the log was then, see :mod:`smpd.audit.opening`.
        remember: keeps each checkpoint, and how far the log is, apart from the log, before the log does; may raise
            ResourceError.

    Attributes:
        began: from where on the last opening verified it; None where it was whole.

    Raises:
        AuditError: ``audit_unwritable`` from here and from each call that writes: the act must not be done.
            ``audit_broken`` from here and from :meth:`retry`, when the disk does not hold what was signed.
    """

    def __init__(
        self,
        directory: str,
        *,
        sign: Callable[[bytes], bytes],
        key: VerifierKey,
        pseudonym_key: bytearray,
        detail_key: bytearray,
        clock: Callable[[], float] = time.time,
        earlier_keys: Sequence[VerifierKey] = (),
        checkpoint_records: int = CHECKPOINT_RECORDS,
        checkpoint_s: float = CHECKPOINT_S,
        make_room: Callable[[], None] = lambda: None,
        last: bytes | None = None,
        reached: Reached | None = None,
        remember: Callable[[bytes, Reached | None], None] = lambda note, reached: None,
    ) -> None:
        self.directory = os.path.abspath(directory)
        self._sign = sign
        self._keys = (key, *earlier_keys)
        self._clock = clock
        self._checkpoint_records = checkpoint_records
        self._checkpoint_s = checkpoint_s
        self._make_room = make_room
        self._last = last
        self._reached = reached
        self._remember = remember
        self._changed = threading.Condition()  # guards all that follows
        self._busy = False  # a leader is at work; only it touches the files and the tree
        self._failure = ""
        self._closed = False
        self._dropped = 0
        self._covered = 0
        self._log_size = self._notes_size = 0
        self._marks = Marks()
        self._files = contextlib.ExitStack()
        self._queue: list[_Entry] = []
        self._flight: list[_Entry] = []
        try:
            durable.make_folder(self.directory, 0o700)
            os.chmod(self.directory, 0o700)
            dropped = self._load()
            self._subjects = Subjects(self.directory, pseudonym_key, detail_key)
        except BaseException as exc:
            self._files.close()
            wipe(pseudonym_key)
            wipe(detail_key)
            if isinstance(exc, OSError | sqlite3.Error):
                raise self._unwritable(str(exc)) from exc
            raise
        if dropped:
            with contextlib.suppress(AuditError):  # a full disk: the log is latched, and retry() records it
                self._record_recovery("a torn line at start", dropped)

    def __enter__(self) -> "AuditLog":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Number of records on the disk."""
        return self._tree.size

    @property
    def unsigned(self) -> int:
        """Number of records that no checkpoint covers yet."""
        return self._tree.size - self._covered

    @property
    def failure(self) -> str:
        """Why the log refuses to write, or empty."""
        return self._failure

    def pseudonym(self, name: str) -> str:
        """As :meth:`Subjects.pseudonym`."""
        return self._subjects.pseudonym(name)

    def append(
        self,
        event: str,
        *,
        actor: str,
        job: str = "",
        subject: str = "",
        subjects: Sequence[str] = (),
        outcome: str = "",
        detail: dict[str, Any] | None = None,
        **fields: FieldValue,
    ) -> int:
        """Write one record and return its number; it is on the disk then, and the act may be done.

        Args:
            event: what is about to be done, as ``object.open``.
            actor: who asked.
            job: id of the job.
            subject: the object's name in the clear; only its pseudonym is written.
            subjects: of several records, one for each, synced as one; the number is that of the first.
            outcome: for a record that follows an act.
            detail: anything, encrypted under the subject's data key.
            fields: small facts; nothing about a patient.

        Raises:
            UsageError: ``bad_request``, when the record cannot be encoded, or a detail has no subject.
        """
        names = [self._subjects.pseudonym(each) if each else "" for each in subjects or (subject,)]
        blobs = [] if detail is None else [self._subjects.sealed(name, detail) for name in names]
        with self._changed:
            self._refuse_if_failed()
            first = self._tree.size + len(self._flight) + len(self._queue)
            now = format_time(self._clock())
            if detail is None:
                lines = encode_lines(AuditRecord(first, now, event, actor, job, names[0], outcome, fields, ""), names)
            else:
                lines = [
                    encode_line(AuditRecord(seq, now, event, actor, job, name, outcome, fields, blob))
                    for seq, (name, blob) in enumerate(zip(names, blobs, strict=True), first)
                ]
            entries = list(map(_Entry, lines))
            self._queue += entries
            entry = entries[-1]  # they go to the disk together
            while self._busy and not entry.synced and not entry.failure:
                self._changed.wait()
            lead = not entry.synced and not entry.failure
            self._busy = self._busy or lead
        if lead:
            with contextlib.suppress(OSError, SmpError), self._leading():
                self._commit()
        if not entry.synced:
            raise self._unwritable(entry.failure)
        return first

    def checkpoint(self) -> bytes:
        """Sign a checkpoint if there are records without one; return the newest (empty for an empty log)."""
        self._lead(self._write_checkpoint)
        return self._newest

    def checkpoint_if_due(self) -> None:
        """Sign a checkpoint if there are records that have none for as long as ``checkpoint_s`` says."""
        if self.unsigned and time.monotonic() - self._signed_at >= self._checkpoint_s:
            self.checkpoint()

    def remember(self) -> None:
        """Have a checkpoint over the log as it is kept apart, also of an empty one."""
        self._lead(lambda: self._keep_apart(self._signed(), None))

    def latch(self, reason: str) -> None:
        """Refuse from now on as after a failed write; nothing more is signed."""
        with self._changed:
            while self._busy:
                self._changed.wait()
            self._fail(reason)

    def hand_over(self, key: VerifierKey, sign: Callable[[bytes], bytes]) -> None:
        """Have another key sign from now on, which bears the same name; a signed record must have said so before."""

        def change() -> None:
            self._keys, self._sign = (key, *self._keys), sign

        self._lead(change, failed=True)

    def retry(self) -> None:
        """After a failure: reopen, read back from the disk what was acknowledged, and go on from there."""
        reason = self._failure
        if reason:
            self._lead(self._reload, failed=True)
            self._record_recovery(reason, self._dropped)

    def shred(self, subject: str, *, actor: str) -> int:
        """Record, then destroy the data key of a subject: its details so far can never be read again."""
        seq = self.append("detail.shred", actor=actor, subject=subject)
        self._subjects.shred(subject)
        return seq

    def detail(self, record: AuditRecord) -> dict[str, Any] | None:
        """As :meth:`DetailKeys.of`."""
        return self._subjects.detail(record)

    def read(self, since: int, limit: int) -> list[bytes]:
        """Up to ``limit`` lines, newlines included, from record ``since`` on; only what is on the disk."""
        with self._changed:
            end = self._log_size
            if not 0 <= since < self._tree.size:
                return []
            mark = self._marks.before(since)
        found, following = read_from(self._path(LOG_NAME), mark, end, since, limit)
        if since - mark.record >= MARK_RECORDS:  # who reads a long log on from here does not begin anew
            with self._changed:
                self._marks.add(following)
        return found

    def checkpoints(self) -> list[bytes]:
        """All checkpoints, oldest first, as signed notes."""
        return list(iter_notes(read_lines(self._path(CHECKPOINTS_NAME), 0, self._notes_size)))

    def close(self) -> None:
        """Sign what has no checkpoint yet, release the files, wipe the keys; a second call does nothing."""
        with self._changed:
            if self._closed:
                return
            healthy = not self._failure
        try:
            if healthy:
                self._lead(self._write_checkpoint)
        finally:
            with self._changed:
                while self._busy:
                    self._changed.wait()
                self._closed = True
                self._fail("it is closed")
                self._files.close()
                self._subjects.close()

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def _unwritable(self, reason: str) -> AuditError:
        return unwritable(self.directory, reason)

    def _refuse_if_failed(self) -> None:
        if self._failure:
            raise self._unwritable(self._failure)

    def _fail(self, reason: str) -> None:
        """Latch the log and turn away who waits; the caller holds the lock."""
        self._failure = reason
        for entry in (*self._flight, *self._queue):
            entry.failure = reason
        self._flight, self._queue = [], []
        self._changed.notify_all()

    # --- the leader's work ---

    def _lead(self, work: Callable[[], None], *, failed: bool = False) -> None:
        """Become the leader and do ``work``; ``failed`` allows it on a failed log that is not closed."""
        with self._changed:
            while self._busy:
                self._changed.wait()
            if self._closed or not failed:
                self._refuse_if_failed()
            self._busy = True
        try:
            with self._leading():
                work()
        except (OSError, ResourceError) as exc:
            raise self._unwritable(str(exc)) from exc

    @contextlib.contextmanager
    def _leading(self) -> Iterator[None]:
        """Latch the log if the leader fails, and in any case let the next one lead."""
        try:
            yield
        except BaseException as exc:
            with self._changed:
                self._fail(str(exc) or type(exc).__name__)
            raise
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _commit(self) -> None:
        """Write all that is queued, sync once, acknowledge, and sign a checkpoint when one is due."""
        with self._changed:
            self._flight, self._queue = self._queue, []
        self._make_room()
        self._log.append(b"".join(entry.line for entry in self._flight))
        with self._changed:
            for entry in self._flight:
                self._marks.begins(self._tree.size, self._log_size)
                if _ROTATES in entry.line:
                    self._turns.look_at(parse_line(entry.line))
                self._tree.append(leaf_hash(entry.line[:-1]))
                self._log_size += len(entry.line)
                entry.synced = True
            self._flight = []
            self._changed.notify_all()
        due = time.monotonic() - self._signed_at >= self._checkpoint_s
        if due or self._tree.size - self._covered >= self._checkpoint_records:
            self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        if self._tree.size == self._covered:
            return
        note = self._signed()
        self._turns.signed(self._keys[:1])
        # Its records are on the disk, so a crash before the next line does no harm.
        self._keep_apart(note, Reached(Verified.of(self._tree, self._turns), self._log_size, self._notes_size))
        self._notes.append(note)
        self._notes_size += len(note)
        self._newest, self._covered, self._signed_at = note, self._tree.size, time.monotonic()

    def _signed(self) -> bytes:
        text = Checkpoint(self._keys[0].name, self._tree.size, self._tree.root()).text()
        return sign_note(text, self._keys[0], self._sign)

    def _keep_apart(self, note: bytes, reached: Reached | None) -> None:
        self._remember(note, reached)
        self._last, self._reached = note, reached

    # --- opening ---

    def _load(self, log_end: int | None = None, notes_end: int | None = None) -> int:
        """Open and verify the files; see :func:`open_verified`. Returns the bytes that were cut off."""
        opened = open_verified(self.directory, self._keys, self._last, log_end, notes_end, self._reached)
        verifier = opened.verifier
        self._files, self._log, self._notes = opened.files, opened.log, opened.notes
        self._tree, self._turns, self._marks, self.began = verifier.tree, verifier.turns, opened.marks, opened.began
        self._log_size, self._notes_size = opened.log_size, opened.notes_size
        self._newest, self._covered, self._signed_at = opened.newest, verifier.covered, time.monotonic()
        return opened.dropped

    def _reload(self) -> None:
        if not self._failure:
            return
        acknowledged = self._tree.size, self._tree.root()
        self._files.close()
        self._dropped = self._load(self._log_size, self._notes_size)
        if (self._tree.size, self._tree.root()) != acknowledged:
            raise broken(self._tree.size, "the disk does not hold the records that were acknowledged")
        if not self._tree.size:
            self._keep_apart(self._signed(), None)  # else what was kept of a log before would be asked of this one
        self._failure = ""

    def _record_recovery(self, reason: str, dropped: int) -> None:
        self.append("audit.recovered", actor=_SELF, reason=reason[:200], bytes_dropped=dropped)
