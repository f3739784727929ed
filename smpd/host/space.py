"""Room on the disk of the state: how much there is, a reserve, and what running jobs have claimed of the rest.

The reserve is a *ballast*: a file that holds its blocks, so that nobody else can fill the disk to the last of them.
The journal and the audit log ask for room before they write; when there is none the ballast gives way, a piece at a
time, so that a full disk can be recorded, and things deleted to make space. It is made whole again when there is space.
Spool and vault never get any of it. All calls may block, and are safe from any thread.
"""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from smp_proto.errors import ResourceError, SmpError

BALLAST = "ballast"
# More than a group of transactions writes, or the audit log at once: what the ballast sees to that is free for them.
COMMIT_BYTES = 2 << 20
_PLENTY_BYTES, _PLENTY_S = 1 << 30, 0.1  # so much is not filled in that time
BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's own is
_HINT = "free some space (smpctl vault ls, smpctl vault rm ID, smpctl job cancel ID); waiting jobs then go on"


class Room(NamedTuple):
    """Bytes: free on the disk, the reserve, what the ballast holds of it, what jobs claimed and did not yet write."""

    free: int
    reserve: int
    held: int
    claimed: int

    @property
    def usable(self) -> int:
        """What ordinary work may still use; not below 0."""
        return max(0, self.free - self.claimed - (self.reserve - self.held))


def disk_full(what: str, needed: int, usable: int) -> ResourceError:
    """``disk_full``, with the numbers in its details."""
    return ResourceError(
        "disk_full",
        f"no space is left for {what}: it needs {_size(needed)}, and beside the reserve {_size(usable)} are free",
        hint=_HINT,
        details={"needed_bytes": needed, "usable_bytes": usable},
    )


class Space:
    """The room of one file system.

    Args:
        folder: on the file system; the ballast lies in it.
        reserve_bytes: how large the ballast is to be.

    Raises:
        ResourceError: ``disk_failed``, when the ballast cannot be opened.
    """

    def __init__(self, folder: str, reserve_bytes: int) -> None:
        self.reserve = reserve_bytes
        self._lock = threading.Lock()
        self._claimed = 0
        self._plenty_until = 0.0
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(os.path.join(folder, BALLAST), flags, 0o600)
        except OSError as error:
            raise ResourceError("disk_failed", f"{folder}/{BALLAST} cannot be opened: {error.strerror}") from error
        with self._lock:
            if self._held() > reserve_bytes:
                os.ftruncate(self._fd, reserve_bytes)
        self.restore()

    def close(self) -> None:
        """Close the ballast; it stays."""
        os.close(self._fd)

    def look(self) -> Room:
        """How much room there is."""
        with self._lock:
            return self._look()

    def restore(self) -> bool:
        """Grow the ballast as far as there is space beside :data:`COMMIT_BYTES`; True when it is whole."""
        with self._lock:
            room = self._look()
            missing = room.reserve - room.held
            # Twice, or what was given in need would be taken back before it is used.
            grow = min(missing, room.free - 2 * COMMIT_BYTES)
            if missing > 0 and grow > 0:
                with contextlib.suppress(OSError):  # somebody else was faster
                    os.posix_fallocate(self._fd, 0, room.held + grow)
            return missing <= 0 or self._held() >= self.reserve

    def spare(self, size: int = COMMIT_BYTES) -> None:
        """See that so many bytes are free for what must be written, out of the ballast where they are not.

        Raises nothing: what is written next finds out whether there was enough. Where there was plenty a moment ago
        nobody looks again: each small write asks.
        """
        now = time.monotonic()
        if now < self._plenty_until:
            return
        free = self._free()
        if free >= size:
            self._plenty_until = now + _PLENTY_S if free >= size + _PLENTY_BYTES else 0.0
            return
        with self._lock:
            missing = size - self._free()
            if missing > 0:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, max(0, self._held() - missing))

    def require(self, size: int, what: str) -> None:
        """See that ordinary work may write so many bytes.

        Raises:
            ResourceError: ``disk_full``.
        """
        with self._lock:
            self._require(size, what)

    @contextlib.contextmanager
    def claim(self, size: int, what: str) -> Iterator[None]:
        """Set so many bytes aside for the length of a block in which they are written. Raises as :meth:`require`.

        What was written before the block ends is counted twice for a moment, which errs on the safe side.
        """
        with self._lock:
            self._require(size, what)
            self._claimed += size
        try:
            yield
        finally:
            with self._lock:
                self._claimed -= size

    def allocate(self, fd: int, size: int, what: str) -> None:
        """Give a file all its blocks at once, and its size. Raises as :meth:`require`, or OSError."""
        with self._lock:
            had = os.fstat(fd)
            self._require(size - had.st_blocks * BLOCK_BYTES, what)
            try:
                os.posix_fallocate(fd, 0, size)
            except OSError:
                os.ftruncate(fd, had.st_size)  # what it did get would keep the disk full
                raise
        os.ftruncate(fd, size)

    def _require(self, size: int, what: str) -> None:
        if size > 0 and (usable := self._look().usable) < size:
            raise disk_full(what, size, usable)

    def _look(self) -> Room:
        return Room(self._free(), self.reserve, self._held(), self._claimed)

    def _free(self) -> int:
        disk = os.fstatvfs(self._fd)
        return disk.f_bavail * disk.f_frsize

    def _held(self) -> int:
        return min(self.reserve, os.fstat(self._fd).st_blocks * BLOCK_BYTES)


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an OSError of the disk into an error for a person.

    Raises:
        ResourceError: ``disk_full``, ``no_descriptors``, ``disk_failed``.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(error, what) from error


def disk_error(error: OSError, what: str) -> SmpError:
    """Name a failed system call."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError("disk_full", f"no space is left for {what}", hint=_HINT)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ResourceError(
            "no_descriptors",
            f"no file descriptor is left for {what}",
            hint="the work is tried again; raise LimitNOFILE if this repeats, see smpctl doctor",
        )
    return ResourceError("disk_failed", f"the disk failed at {what}: {error.strerror}", hint="look at the kernel log")


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB" if count >= 1 << 20 else f"{max(count, 0)} bytes"
