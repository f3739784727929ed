"""The two files of a log, opened together and verified: every record against every checkpoint.

A long log would keep a daemon from its work for minutes. Of one of more than :data:`WHOLE_RECORDS` only what came after
the checkpoint that is kept apart is verified here. That is enough to write on: the tree over what came before is that
checkpoint's, whatever the file says by now. :class:`~smpd.audit.earlier.Earlier` then verifies the rest of the file.
"""

import contextlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from smp_proto import durable
from smp_proto.audit.note import VerifierKey, iter_notes
from smp_proto.audit.verify import LogVerifier, broken
from smp_proto.errors import AuditError, KeyFileError

from .files import AppendFile, read_lines
from .marks import Mark, Marks
from .remembered import Reached

LOG_NAME = "audit.jsonl"
CHECKPOINTS_NAME = "checkpoints"
WHOLE_RECORDS = 100_000  # takes half a second to a second
LAST = "the last checkpoint, as the database has it,"


class Opened(NamedTuple):
    """A log that is what was signed; ``files`` closes it.

    Sizes are in bytes. ``verifier`` has seen all of it, or all after ``began``. ``newest`` is the last checkpoint,
    ``dropped`` what was cut off both files.
    """

    files: contextlib.ExitStack
    log: AppendFile
    notes: AppendFile
    verifier: LogVerifier
    began: Reached | None
    marks: Marks
    log_size: int
    notes_size: int
    newest: bytes
    dropped: int


def open_verified(
    directory: str,
    keys: Sequence[VerifierKey],
    last: bytes | None,
    log_end: int | None = None,
    notes_end: int | None = None,
    reached: Reached | None = None,
) -> Opened:
    """Open or create the files, verify them up to the given ends (or all), and cut off the rest.

    A last line or note that is torn counts as the rest, unless a checkpoint covers it.

    Args:
        directory: of the log.
        keys: that may have signed; the first signs from now on.
        last: the newest checkpoint as it was kept apart from the log, which must hold it.
        log_end: how many bytes of the log count.
        notes_end: how many bytes of the checkpoints count.
        reached: how far a long log was when ``last`` was made; where it does not fit the files they are verified whole.

    Raises:
        AuditError: ``audit_broken``.
        OSError: as it came.
    """
    log_path, notes_path = paths(directory)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(contextlib.closing(AppendFile(log_path)))
        notes = stack.enter_context(contextlib.closing(AppendFile(notes_path)))
        durable.sync_folder(directory)
        read, notes_size, newest, rest = 0, 0, b"", b""
        for note in iter_notes(read_lines(notes_path, 0, notes_end)):
            read, rest = read + len(note), rest + note
            if note.endswith(b"\n") and b"\n\n" in note[:-1]:  # one before it that is not whole is damage, not a rest
                notes_size, newest, rest = read, note, b""
        signed_bytes = reached.notes_bytes if reached is not None else 0  # those before the last one, all synced
        if reached is not None and reached.verified.size <= WHOLE_RECORDS:
            reached = None
        try:
            verifier, marks, log_size = _verify(directory, keys, last, log_end, notes_size, reached)
        except (AuditError, KeyFileError, ValueError):
            if reached is None:
                raise
            reached = None  # all of it will show which record is bad
            verifier, marks, log_size = _verify(directory, keys, last, log_end, notes_size, None)
        if notes_size < signed_bytes:  # no crash does that, and who follows the log's keys needs them
            message = f"of {signed_bytes} bytes of checkpoints that were signed {notes_size} are left"
            raise broken(verifier.covered, message)
        if notes_end is None and last and newest != last and not last.startswith(rest.rstrip(b"\0")):
            # A crash leaves a part of it at most.
            raise broken(verifier.covered, "the last checkpoint in its file is not the one that was signed last")
        if not verifier.may_sign(keys[0]):
            raise broken(verifier.covered, "the key that signed the log last did not hand it over to the box's")
        dropped = log.cut(log_size) + notes.cut(notes_size)
        files = stack.pop_all()
    return Opened(files, log, notes, verifier, reached, marks, log_size, notes_size, newest, dropped)


def _verify(
    directory: str,
    keys: Sequence[VerifierKey],
    last: bytes | None,
    log_end: int | None,
    notes_size: int,
    reached: Reached | None,
) -> tuple[LogVerifier, Marks, int]:
    """Verify the files, or what came after a checkpoint; the verifier, marks, and how many bytes of the log count."""
    log_path, notes_path = paths(directory)
    begin, notes_begin, after = (reached.log_bytes, reached.notes_bytes, reached.verified) if reached else (0, 0, None)
    if notes_begin > notes_size or begin > (os.path.getsize(log_path) if log_end is None else log_end):
        raise ValueError("the files are shorter than they were")
    verifier = LogVerifier(iter_notes(read_lines(notes_path, notes_begin, notes_size)), keys, last, LAST, after)
    marks = Marks()
    marks.add(Mark(verifier.tree.size, begin))
    lines, size = read_lines(log_path, begin, log_end), begin
    for line in lines:
        if not line.endswith(b"\n") and not any(b"\n" in rest for rest in lines):
            break
        marks.begins(verifier.tree.size, size)
        verifier.feed(line)
        size += len(line)
    verifier.finish()
    return verifier, marks, size


def paths(directory: str) -> tuple[str, str]:
    """Of the log and its checkpoints."""
    return os.path.join(directory, LOG_NAME), os.path.join(directory, CHECKPOINTS_NAME)
