"""A file that only grows, where a write counts only once it is synced."""

import fcntl
import os
from collections.abc import Iterator

from smp_proto import durable
from smp_proto.audit.record import MAX_LINE_BYTES
from smp_proto.errors import AuditError


class AppendFile:
    """One append-only file, mode 0600, locked against a second writer.

    Opening syncs it and drops its cached pages, so that what is read next is what the disk holds: after a
    failed fsync Linux keeps the pages but no longer writes them.

    Raises:
        OSError: here and from each method; after one from :meth:`append` open the file anew.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, mode=0o600)
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise BlockingIOError(exc.errno, "another process writes it", path) from exc
            os.fchmod(self._fd, 0o600)
            durable.reread(self._fd)
        except OSError:
            os.close(self._fd)
            raise

    def append(self, data: bytes) -> None:
        """Write and sync; on return ``data`` is on the disk."""
        durable.append(self._fd, data)

    def cut(self, size: int) -> int:
        """Keep the first ``size`` bytes; return how many were dropped."""
        dropped = os.fstat(self._fd).st_size - size
        if dropped:
            durable.cut(self._fd, size)
        return dropped

    def close(self) -> None:
        """Release the file and its lock."""
        os.close(self._fd)


def unwritable(directory: str, reason: str) -> AuditError:
    """``audit_unwritable``, for the log in a directory."""
    return AuditError(
        "audit_unwritable",
        f"the audit log in {directory} cannot be written: {reason}",
        hint="free space on its disk or repair it; the log then reopens and goes on",
    )


def read_lines(path: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The lines from byte ``start`` to byte ``end`` (or all), newlines kept; long ones come in pieces."""
    with open(path, "rb") as file:
        file.seek(start)
        left = os.fstat(file.fileno()).st_size - start if end is None else end - start
        while left > 0 and (line := file.readline(min(left, MAX_LINE_BYTES + 1))):
            left -= len(line)
            yield line
