"""The two files of a log, opened together and verified: every record against every checkpoint."""

import contextlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from smp_proto import durable
from smp_proto.audit.merkle import Tree
from smp_proto.audit.note import VerifierKey, iter_notes
from smp_proto.audit.verify import LogVerifier, broken

from .files import AppendFile, read_lines

LOG_NAME = "audit.jsonl"
CHECKPOINTS_NAME = "checkpoints"
MARK_RECORDS = 1024  # a byte offset is remembered for each so many records
_LAST = "the last checkpoint, as the database has it,"


class Opened(NamedTuple):
    """A log that is what was signed; ``files`` closes it.

    Sizes are in bytes. ``marks`` are the offsets of each :data:`MARK_RECORDS`-th record, ``newest`` is the last
    checkpoint and ``covered`` how many records it is over, ``dropped`` what was cut off both files.
    """

    files: contextlib.ExitStack
    log: AppendFile
    notes: AppendFile
    tree: Tree
    marks: list[int]
    log_size: int
    notes_size: int
    newest: bytes
    covered: int
    dropped: int


def open_verified(
    directory: str,
    keys: Sequence[VerifierKey],
    last: bytes | None,
    log_end: int | None = None,
    notes_end: int | None = None,
) -> Opened:
    """Open or create the files, verify them up to the given ends (or all), and cut off the rest.

    A last line or note that is torn counts as the rest, unless a checkpoint covers it.

    Args:
        directory: of the log.
        keys: that may have signed; the first signs from now on.
        last: the newest checkpoint as it was kept apart from the log, which must hold it.
        log_end: how many bytes of the log count.
        notes_end: how many bytes of the checkpoints count.

    Raises:
        AuditError: ``audit_broken``.
        OSError: as it came.
    """
    log_path, notes_path = os.path.join(directory, LOG_NAME), os.path.join(directory, CHECKPOINTS_NAME)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(contextlib.closing(AppendFile(log_path)))
        notes = stack.enter_context(contextlib.closing(AppendFile(notes_path)))
        durable.sync_folder(directory)
        notes_size, newest = 0, b""
        for note in iter_notes(read_lines(notes_path, 0, notes_end)):
            if note.endswith(b"\n") and b"\n\n" in note[:-1]:
                notes_size, newest = notes_size + len(note), note
        verifier = LogVerifier(iter_notes(read_lines(notes_path, 0, notes_size)), keys, last, _LAST)
        marks: list[int] = []
        log_size = 0
        lines = read_lines(log_path, 0, log_end)
        for line in lines:
            if not line.endswith(b"\n") and not any(b"\n" in rest for rest in lines):
                break
            if verifier.tree.size % MARK_RECORDS == 0:
                marks.append(log_size)
            verifier.feed(line)
            log_size += len(line)
        verifier.finish()
        if not verifier.may_sign(keys[0]):
            raise broken(verifier.covered, "the key that signed the log last did not hand it over to the box's")
        dropped = log.cut(log_size) + notes.cut(notes_size)
        return Opened(
            stack.pop_all(),
            log,
            notes,
            verifier.tree,
            marks,
            log_size,
            notes_size,
            newest,
            verifier.covered,
            dropped,
        )
