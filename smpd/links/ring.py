"""A ring: N slots of shared memory in one memfd, touched once and reused for ever.

The side that hands out slots (always smpd) keeps a :class:`Slots`; the other side only maps and fills or
drains what it is told. A slot is bytes ``[slot * slot_bytes, (slot + 1) * slot_bytes)`` of the memfd.
"""

import contextlib
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
from collections.abc import AsyncIterator, Container

import anyio

from smp_proto.errors import ResourceError
from smp_proto.memory import memset
from smpd.host.bounds import no_memory, require_memory
from smpd.host.space import disk_error

_LITTLE_BYTES = 128 << 10
_numbers = itertools.count(1)
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Ring:
    """A mapped ring. ``fd`` may be sent to the process that shares it; ``number`` is another for each ring here."""

    def __init__(self, fd: int, slots: int, slot_bytes: int) -> None:
        self.number = next(_numbers)
        self.closed = False
        self.fd = fd
        self.slots = slots
        self.slot_bytes = slot_bytes
        if os.fstat(fd).st_size != slots * slot_bytes:
            raise ResourceError("internal", "a ring arrived with a size other than announced")
        self._map = mmap.mmap(fd, slots * slot_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with contextlib.suppress(OSError):  # a kernel without them; it makes them where shmem_enabled allows that
            self._map.madvise(mmap.MADV_HUGEPAGE)
        _lock(self._map)
        self._view = memoryview(self._map)

    @classmethod
    def create(cls, name: str, slots: int, slot_bytes: int) -> "Ring":
        """Allocate a ring and touch every page of it.

        Its size is sealed, so that the other process cannot shrink it and turn our next access into SIGBUS.

        Raises:
            ResourceError: ``no_memory`` or ``no_descriptors``, when it is not to be had.
        """
        what = f"a ring of {slots} slots of {slot_bytes} bytes"
        require_memory(slots * slot_bytes, what)
        try:
            fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise (no_memory(what) if error.errno == errno.ENOMEM else disk_error(error, what)) from error
        try:
            # Allocating here instead of at first touch turns a lack of memory into an error, not a SIGBUS.
            os.posix_fallocate(fd, 0, slots * slot_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            return cls(fd, slots, slot_bytes)
        except OSError as error:
            os.close(fd)
            raise no_memory(what) from error

    def slot(self, index: int) -> memoryview:
        """The writable bytes of one slot; the caller releases the view."""
        if not 0 <= index < self.slots:
            raise IndexError(index)
        return self._view[index * self.slot_bytes : (index + 1) * self.slot_bytes]

    def read(self, index: int, at: int, into: memoryview) -> None:
        """Fill ``into`` with what lies from byte ``at`` of a slot on, without the interpreter lock.

        By a copy from memory to memory: read(2) of a memfd takes its pages one by one, and three times as long. Little
        is copied with the lock, since getting that back takes longer than to copy some pages.

        Raises:
            ValueError: the slot ends before that.
        """
        with self.slot(index) as slot, slot[at : at + len(into)] as source:
            if len(source) != len(into):
                raise ValueError("a read beyond the end of the slot")
            if len(into) <= _LITTLE_BYTES:
                into[:] = source
                return
            # Both views stay exported until the copy is done, so neither can be unmapped meanwhile.
            first, target = ctypes.c_char.from_buffer(source), ctypes.c_char.from_buffer(into)
            ctypes.memmove(ctypes.addressof(target), ctypes.addressof(first), len(into))
            del first, target

    def wipe(self, index: int, length: int | None = None) -> None:
        """Zero the first ``length`` bytes of a slot, or all of it; where it is much, without the interpreter lock."""
        length = self.slot_bytes if length is None else length
        if not 0 <= length <= self.slot_bytes:
            raise ValueError("a slot is not so long")
        with self.slot(index) as view:
            first = ctypes.c_char.from_buffer(view)  # it stays exported, and so mapped, until all is zero
            (memset if length <= _LITTLE_BYTES else ctypes.memset)(ctypes.addressof(first), 0, length)
            del first

    def close(self) -> None:
        """Unmap and close. Views still exported keep the memory mapped until they go."""
        self.closed = True
        self._view.release()
        with contextlib.suppress(BufferError):
            self._map.close()
        os.close(self.fd)


def _lock(mapped: mmap.mmap) -> None:
    """Keep a ring out of swap (mlock(2)) where the limit LimitMEMLOCK allows it, until it is unmapped."""
    libc = ctypes.CDLL(None)
    first = ctypes.c_char.from_buffer(mapped)
    libc.mlock(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped)))


class Slots:
    """The free slots of a ring. Waiting for one is the back-pressure of the whole pipeline.

    Waiters are served in the order they came: ranges take slots in order, so the range that everything
    after it waits for always has one.
    """

    def __init__(self, count: int) -> None:
        self._free = list(range(count))
        self._tokens = anyio.Semaphore(count, max_value=count, fast_acquire=True)

    async def take(self) -> int:
        """Wait for a free slot and take it."""
        await self._tokens.acquire()
        return self._free.pop()

    def take_those(self, wanted: Container[int]) -> list[int]:
        """Take those of these slots that are free, at once."""
        taken: list[int] = []
        for index in [each for each in self._free if each in wanted]:
            try:
                self._tokens.acquire_nowait()
            except anyio.WouldBlock:  # what is left is promised to somebody who waits
                break
            self._free.remove(index)
            taken.append(index)
        return taken

    def give(self, index: int) -> None:
        """Return a slot."""
        self._free.append(index)
        self._tokens.release()

    @property
    def free(self) -> int:
        """How many slots could be taken now."""
        return self._tokens.value

    @contextlib.asynccontextmanager
    async def lease(self) -> AsyncIterator[int]:
        """A slot for the length of a block."""
        index = await self.take()
        try:
            yield index
        finally:
            self.give(index)


def read_exact(fd: int, into: memoryview, offset: int) -> None:
    """Fill ``into`` from a descriptor at ``offset``; for rings and files whose size is known.

    Raises:
        EOFError: the file is shorter.
    """
    while into:
        count = os.preadv(fd, [into], offset)
        if count == 0:
            raise EOFError
        into, offset = into[count:], offset + count
