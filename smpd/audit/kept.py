"""The audit log as the daemon has it: whole, or broken and set apart until an admin begins a new one.

A broken log keeps the daemon from nothing but acts: it can be looked at, as it is, and so can all else.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from smp_proto.audit.note import VerifierKey, iter_notes
from smp_proto.errors import AuditError, IntegrityError, ResourceError, SmpError, StateError

from .earlier import Earlier
from .files import read_lines
from .log import AuditLog
from .marks import Marks, read_from
from .opening import CHECKPOINTS_NAME, LOG_NAME
from .remembered import Memory, Remembered
from .renewal import SetAside, last_set_aside, set_aside

_NAMES = (LOG_NAME, CHECKPOINTS_NAME)


class KeptLog:
    """The log in a directory; calls and errors as those of :class:`AuditLog`, for whom ``broken`` is None.

    Args:
        directory: of the log.
        keys: its public key, and those before it, as they are when asked.
        open_log: opens it with the arguments ``last`` and ``remember`` of :class:`AuditLog`.
        last: where its newest checkpoint is kept apart.
        doubt: why what is kept there may be somebody else's, or empty.

    Raises:
        AuditError: ``audit_unwritable``.
    """

    def __init__(
        self,
        directory: str,
        keys: Callable[[], Sequence[VerifierKey]],
        open_log: Callable[..., AuditLog],
        last: Memory,
        doubt: str = "",
    ) -> None:
        self.directory = directory
        self.broken: AuditError | None = None
        self._keys = keys
        self._open_log = open_log
        self._last = last
        self._doubt = doubt
        self._unknown = ""  # why nothing says what was signed last of a log that has records
        self._after: SetAside | None = None  # the log before a new one, until that names it
        self._log: AuditLog | None = None
        self._earlier: Earlier | None = None  # verifies what the opening passed over, while there is some of it
        self._changing = threading.Lock()
        self._looking = threading.Lock()
        self._marks = Marks()  # of a broken log, which does not change
        self._open()

    def __enter__(self) -> "KeptLog":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def keys(self) -> Sequence[VerifierKey]:
        """The log's public key, and those before it, newest first."""
        return self._keys()

    @property
    def size(self) -> int:
        """Number of records on the disk; 0 for a broken log, of which nobody can tell."""
        return self._log.size if self._log else 0

    @property
    def unsigned(self) -> int:
        """Number of records that no checkpoint covers yet."""
        return self._log.unsigned if self._log else 0

    @property
    def failure(self) -> str:
        """Why the log refuses to write, or empty."""
        return self._log.failure if self._log else self._refusal().message

    def pseudonym(self, name: str) -> str:
        """As :meth:`AuditLog.pseudonym`; ``audit_broken`` for a broken log."""
        return self._whole().pseudonym(name)

    def append(self, event: str, **fields: Any) -> int:
        """As :meth:`AuditLog.append`; ``audit_broken`` for a broken log."""
        return self._whole().append(event, **fields)

    def checkpoint(self) -> bytes:
        """As :meth:`AuditLog.checkpoint`; ``audit_broken`` for a broken log."""
        return self._whole().checkpoint()

    def checkpoint_if_due(self) -> None:
        """As :meth:`AuditLog.checkpoint_if_due`; ``audit_broken`` for a broken log."""
        self._whole().checkpoint_if_due()

    def rotate(
        self, key: VerifierKey, sign: Callable[[bytes], bytes], commit: Callable[[], None], *, actor: str, **fields: Any
    ) -> None:
        """Have another key sign from now on: record it, sign that with the present key, ``commit``, change over.

        Args:
            key: the other one; it bears the name of the present one.
            sign: as for :class:`AuditLog`.
            commit: makes it the first of the keys; if it raises, all stays as it is.
            actor: who asked.
            fields: more facts for the record.

        Raises:
            AuditError: ``audit_unwritable``, ``audit_broken``; nothing was committed.
        """
        log = self._whole()
        log.append("key.rotate", actor=actor, former=str(self.keys[0]), verifier=str(key), **fields)
        log.checkpoint()
        try:
            commit()
        except BaseException:
            with contextlib.suppress(AuditError):
                log.append("key.rotate", actor=actor, outcome="failed", **fields)
            raise
        log.hand_over(key, sign)
        with contextlib.suppress(AuditError):  # it is done; that the log cannot be written is told by the log
            log.append("key.rotate", actor=actor, outcome="done", **fields)
            log.checkpoint()  # from here on the former key counts no more

    def retry(self) -> None:
        """As :meth:`AuditLog.retry`. What the disk no longer holds as it was acknowledged is broken from then on."""
        log = self._whole()
        with self._breaking(log):
            log.retry()
        self._begin(log)
        self._adopt(log)

    @property
    def unseen(self) -> int:
        """Number of records that are still to be verified, see :meth:`look_back`."""
        return self._earlier.unseen if self._earlier else 0

    def look_back(self) -> None:
        """Verify another piece of what the opening of a long log passed over.

        Raises:
            AuditError: ``audit_broken``, as it is from then on. ``audit_unwritable`` where it cannot be read; the next
                call begins anew.
        """
        log, earlier = self._log, self._earlier
        if log is None or earlier is None:
            return
        try:
            with self._breaking(log):
                done = earlier.step()
        except OSError as exc:
            self._earlier = earlier.anew()
            message, hint = f"the audit log in {self.directory} cannot be read: {exc}", "look at the kernel log"
            raise AuditError("audit_unwritable", message, hint=hint) from exc
        if done:
            self._earlier = None

    @contextlib.contextmanager
    def _breaking(self, log: AuditLog) -> Iterator[None]:
        """What shows in this block that the log is broken makes it so, and has its next opening verify all of it."""
        try:
            yield
        except AuditError as error:
            if error.code == "audit_broken":
                with self._changing:
                    log.latch(error.message)
                    self.broken, self._log, self._earlier = error, None, None
                    log.close()
                    with contextlib.suppress(SmpError):  # a full disk: the next one finds out again
                        if (last := self._last.read()) is not None:
                            self._last.keep(last.note)
            raise

    def read(self, since: int, limit: int) -> list[bytes]:
        """Up to ``limit`` lines from record ``since`` on; of a broken log the lines as they are."""
        if self._log is not None:
            return self._log.read(since, limit)
        path = f"{self.directory}/{LOG_NAME}"
        with self._looking:
            mark = self._marks.before(since)
        found, following = read_from(path, mark, os.path.getsize(path), since, limit)
        if found:  # who reads on from here does not begin anew
            with self._looking:
                self._marks.add(following)
        return found

    def checkpoints(self) -> list[bytes]:
        """All checkpoints, oldest first, as signed notes; of a broken log as they are."""
        if self._log is not None:
            return self._log.checkpoints()
        return list(iter_notes(read_lines(f"{self.directory}/{CHECKPOINTS_NAME}")))

    def renew(self, *, actor: str, reason: str) -> SetAside:
        """Set a broken log aside, as it is, and begin a new one, whose first record names it.

        Raises:
            StateError: ``wrong_state``; the log is not broken.
            AuditError: ``audit_unwritable``; it is as it was, or the new one is begun at the next start.
        """
        with self._changing:
            if self.broken is None:
                raise StateError("wrong_state", "the audit log is not broken", hint="smpctl audit verify checks it")
            found = self.broken.message
            try:
                self._last.give_up()
                last = _note(self._remembered())
                aside = set_aside(self.directory, _NAMES, self.keys, last, actor=actor, reason=reason, found=found)
            except (OSError, ResourceError) as error:
                raise AuditError("audit_unwritable", f"the audit log cannot be set aside: {error}") from error
            self._open()
            return aside

    def close(self) -> None:
        """As :meth:`AuditLog.close`."""
        if self._log is not None:
            self._log.close()

    def _open(self) -> None:
        last = self._remembered()
        if last is not None and last.given_up and self._is_gone():
            last = None  # a log was set aside, and none is begun yet
        try:
            log = self._open_log(last=_note(last), reached=last and last.reached, remember=self._last.keep)
        except AuditError as error:
            if error.code != "audit_broken":
                raise
            self.broken = error
            return
        self._log, self.broken, self._marks = log, None, Marks()
        if last is not None and log.began is not None:
            self._earlier = Earlier(self.directory, self.keys, last.note, log.began)
        if log.size:
            self._adopt(log)
            return
        self._unknown, self._after = "", last_set_aside(self.directory)
        with contextlib.suppress(SmpError):  # a full disk: the log is latched, and its :meth:`retry` does it
            log.remember()
        self._begin(log)

    def _remembered(self) -> Remembered | None:
        """What was signed last, as far as it is known; notes why it is not."""
        self._unknown = self._doubt
        try:
            found = self._last.read()
        except IntegrityError:
            found, self._unknown = None, "what the database has of its last checkpoint is damaged"
        if found is None:
            self._unknown = self._unknown or "the database has no checkpoint of it"
        return found

    def _is_gone(self) -> bool:
        paths = [os.path.join(self.directory, name) for name in _NAMES]
        return not any(os.path.exists(path) and os.path.getsize(path) for path in paths)

    def _begin(self, log: AuditLog) -> None:
        """Have a new log name the one before it, if there is one and that was not done yet."""
        if self._after is not None:
            facts: dict[str, Any] = msgspec.structs.asdict(self._after)
            facts["after"], facts["covered"] = facts.pop("name"), facts.pop("size")
            log.append("audit.begin", **facts)
            self._after = None

    def _adopt(self, log: AuditLog) -> None:
        """Record that a log was taken as it was found: by an upgrade, or since somebody changed the database."""
        if self._unknown:
            with contextlib.suppress(SmpError):  # a full disk: the log is latched, and :meth:`retry` comes here
                log.append("audit.adopted", actor="smpd", reason=self._unknown, records=log.size)
                log.checkpoint()
                self._unknown = self._doubt = ""

    def _whole(self) -> AuditLog:
        if self._log is None:
            raise self._refusal()
        return self._log

    def _refusal(self) -> AuditError:
        assert self.broken is not None
        return AuditError(
            "audit_broken",
            f"the audit log is not what was signed, so nothing is done: {self.broken.message}",
            hint="copy the folder audit and find out why; if it alone is from a backup, put back smpd.db of then, too; "
            "to begin a new log instead, as an admin: smpctl audit renew --reason TEXT",
            details=self.broken.details,
        )


def _note(remembered: Remembered | None) -> bytes | None:
    return None if remembered is None else remembered.note
