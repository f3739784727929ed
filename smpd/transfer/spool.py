"""The spool: verified ciphertext on disk, so that a job outlives its process.

A spool file is the sealed object itself, at its final offsets; when all its ranges are there and its tail is
written, it is the object. A range counts only once it is synced *and* marked in the journal, in that order.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import anyio

from smp_proto import durable
from smp_proto.errors import ResourceError
from smpd.transfer.grouping import GroupCommit
from smpd.transfer.opening import write_exact

# Left for the journal and the audit log, which have to say that the disk is full.
RESERVE_BYTES = 8 << 20

Mark = Callable[[Mapping[int, bytes]], None]


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an OSError of the disk into an error for a person."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(
                "disk_full",
                f"no space is left for {what}",
                hint="free some space (smpctl vault ls, smpctl vault rm ID); jobs that wait go on by themselves",
            ) from error
        raise ResourceError("disk_failed", f"the disk failed at {what}: {error.strerror}") from error


class Spool:
    """One spool file, open; made by :meth:`open`."""

    def __init__(self, path: str, fd: int, mark: Mark | None) -> None:
        self.path = path
        self.fd = fd
        self._mark = mark
        self._ranges = GroupCommit(self._commit)

    @classmethod
    async def open(cls, path: str, size: int, mark: Mark | None) -> "Spool":
        """Open a spool file, made when it is not there.

        Args:
            path: where it is.
            size: of the whole object, allocated at once so that a full disk is found before the first byte.
            mark: makes ranges durable in the journal (blocking); called after they are synced. None where the object
                counts as a whole only.

        Raises:
            ResourceError: ``disk_full`` or ``disk_failed``.
        """
        return cls(path, await anyio.to_thread.run_sync(_allocate, path, size), mark)

    async def add(self, index: int, leaves: bytes) -> None:
        """Note that a range was written; returns once it counts."""
        if self._mark is not None:
            await self._ranges.add((index, leaves))

    def flushing(self) -> contextlib.AbstractAsyncContextManager[None]:
        """For the length of a block, sync and mark ranges: once for all that came meanwhile."""
        return self._ranges.running()

    async def finish(self, tail: bytes, offset: int) -> None:
        """Write the envelope and trailer and sync; the file is then the whole object."""

        def write() -> None:
            with disk_errors("the spool"):
                write_exact(self.fd, memoryview(tail), offset)
                durable.sync(self.fd)

        await anyio.to_thread.run_sync(write)

    def close(self) -> None:
        """Close the descriptor; the file stays."""
        os.close(self.fd)

    def _commit(self, batch: Sequence[tuple[int, bytes]]) -> None:
        with disk_errors("the spool"):
            durable.sync_data(self.fd)
        assert self._mark is not None
        self._mark(dict(batch))


def _allocate(path: str, size: int) -> int:
    with disk_errors("the spool"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            had = os.fstat(fd)
            check_room(fd, size - had.st_blocks * 512)
            try:
                os.posix_fallocate(fd, 0, size)
            except OSError:
                os.ftruncate(fd, had.st_size)  # what it did get would keep the disk full
                raise
            os.ftruncate(fd, size)
        except BaseException:
            os.close(fd)
            raise
        return fd


def check_room(where: str | int, size: int) -> None:
    """See that a disk has room for so many bytes beside the reserve.

    Raises:
        ResourceError: ``disk_full``.
    """
    with disk_errors("the spool"):
        disk = os.statvfs(where)
        if size > 0 and disk.f_bavail * disk.f_frsize - size < RESERVE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def remove(path: str) -> None:
    """Delete a spool file that may not be there; blocking."""
    with disk_errors("the spool"), contextlib.suppress(FileNotFoundError):
        os.unlink(path)
