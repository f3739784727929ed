"""The spool: verified ciphertext on disk, so that a job outlives its process.

A spool file is the sealed object itself, at its final offsets; when all its ranges are there and its tail is
written, it is the object. A range counts only once it is synced *and* marked in the journal, in that order.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Mapping, Sequence

import anyio

from smp_proto import durable
from smpd.host.space import Space, disk_errors
from smpd.opening.ranges import write_exact
from smpd.transfer.grouping import GroupCommit

_ALIGNED_BYTES = 4096  # what direct writes have to keep to, on all but odd disks

Mark = Callable[[Mapping[int, bytes]], None]


class Spool:
    """One spool file, open; made by :meth:`open`.

    Args:
        direct: a descriptor of the same file that goes past the page cache, -1 where there is none.
    """

    def __init__(self, path: str, fd: int, direct: int, mark: Mark | None) -> None:
        self.path = path
        self.fd = fd
        self._direct = direct
        self._aligned = direct >= 0
        self._mark = mark
        self._ranges = GroupCommit(self._commit)

    @classmethod
    async def open(cls, space: Space, path: str, size: int, mark: Mark | None) -> "Spool":
        """Open a spool file, made when it is not there.

        Args:
            space: of the disk it is on.
            path: where it is.
            size: of the whole object, allocated at once so that a full disk is found before the first byte.
            mark: makes ranges durable in the journal (blocking); called after they are synced. None where the object
                counts as a whole only.

        Raises:
            ResourceError: ``disk_full`` or ``disk_failed``.
        """
        return cls(path, *await anyio.to_thread.run_sync(_allocate, space, path, size), mark)

    def write(self, data: memoryview, offset: int) -> None:
        """Write ciphertext to its place; blocking, from several threads at once.

        Whole segments go past the page cache, where the disk allows it: they are not read again soon, and finding
        memory for them, and syncing it, takes four times as long as all else that is done with them.

        Raises:
            OSError: as it came.
        """
        if self._aligned and not (len(data) | offset) % _ALIGNED_BYTES:
            try:
                write_exact(self._direct, data, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._aligned = False  # this disk wants more than pages
            else:
                return
        write_exact(self.fd, data, offset)

    async def add(self, first: int, leaves: bytes) -> None:
        """Note that a range was written, by its first segment and their leaves; returns once it counts."""
        if self._mark is not None:
            await self._ranges.add((first, leaves))

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
        """Close the descriptors; the file stays."""
        os.close(self.fd)
        if self._direct >= 0:
            os.close(self._direct)

    def _commit(self, batch: Sequence[tuple[int, bytes]]) -> None:
        with disk_errors("the spool"):
            durable.sync_data(self.fd)
        assert self._mark is not None
        self._mark(dict(batch))


def _allocate(space: Space, path: str, size: int) -> tuple[int, int]:
    with disk_errors("the spool"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            space.allocate(fd, size, "the spool")
        except BaseException:
            os.close(fd)
            raise
    try:
        # Not by the path again: the same file, whatever is done to its name meanwhile.
        return fd, os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return fd, -1  # the file system has no such thing, or there are no descriptors left


def remove(path: str) -> None:
    """Delete a spool file that may not be there; blocking."""
    with disk_errors("the spool"), contextlib.suppress(FileNotFoundError):
        os.unlink(path)
