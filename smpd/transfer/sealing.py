"""Sealed files made on this box, and opening them for a person: between descriptors, in threads."""

import contextlib
import fcntl
import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import BinaryIO

import anyio
from blake3 import blake3

from smp_proto import durable
from smp_proto.control import Result
from smp_proto.errors import IntegrityError, ResourceError, UsageError
from smp_proto.sealed.bundle import BundleInfo, BundleReader, BundleWriter
from smp_proto.sealed.entries import Entry
from smp_proto.sealed.envelope import Envelope, Trust
from smp_proto.sealed.keys import Identity, PublicIdentity
from smp_proto.sealed.layout import TRAILER_BYTES, Layout, Trailer
from smp_proto.sealed.payload import content_digest, leaf
from smpd.host.space import Space, disk_errors
from smpd.links.ring import read_exact

_READ_BYTES = 4 << 20  # so that the thread that hashes is woken seldom


@contextlib.asynccontextmanager
async def sealed_file(
    space: Space, path: str, own: Sequence[Identity], recipients: Sequence[PublicIdentity] | None
) -> AsyncIterator["SealedFile"]:
    """A writer whose bytes go to a new file at ``path``; what was there before is replaced.

    The writer blocks: use it in threads. If the block fails, or ends before the writer has finished, the file is
    removed.

    Args:
        own: the box's identities; the first, as it is when the writer finishes, signs.
        recipients: for whom; None for this box alone.
    """
    writer = SealedFile(space, path, own, recipients)
    try:
        yield writer
        writer.kept = writer.finished
    finally:
        writer.abort()
        if not writer.kept:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(writer.discard)


class SealedFile(BundleWriter):
    """Writes to a file, which is made when its first bytes come: that is in a thread already.

    Attributes:
        syncs: finishing makes the file durable. Not to be where it is moved to the vault next, which does that.
        finished: the file is whole, and durable if it ``syncs``: a job may count on it.
        signed_by: the key id of who signed it then.
        kept: a job does: it stays, whatever becomes of who wrote it.
    """

    def __init__(
        self, space: Space, path: str, own: Sequence[Identity], recipients: Sequence[PublicIdentity] | None
    ) -> None:
        super().__init__(self._append, sender=None, recipients=recipients or [])
        self._own, self._for_own = own, recipients is None
        self._space = space
        self._path = path
        self._fd = -1
        self.syncs = True
        self.finished = self.kept = False
        self.signed_by = b""

    def finish(self) -> BundleInfo:
        """See :meth:`BundleWriter.finish`."""
        self.sender = sender = self._own[0]
        if self._for_own:
            self.recipients = [sender.public]
        info = super().finish()
        self._close()
        if self.syncs:
            sync_file(self._path)
        self.signed_by = sender.public.key_id
        self.finished = True
        return info

    def discard(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        self._close()  # which frees its blocks, and takes as long as there are many

    def _append(self, data: memoryview) -> None:
        self._space.require(len(data), "the spool")
        with disk_errors("the spool"):
            if self._fd < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
                self._fd = os.open(self._path, flags, 0o600)
            durable.write_all(self._fd, data)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def check_regular(fd: int, access: int, name: str) -> int:
    """The size of a file handed over by a person, which must be a regular one, open for what is to be done.

    A pipe or device could block a thread for ever.

    Raises:
        UsageError: ``bad_request``.
    """
    info = os.fstat(fd)
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_PATH)
    if not stat.S_ISREG(info.st_mode) or mode not in (access, os.O_RDWR):
        raise UsageError("bad_request", f"{name} is no regular file open for this", hint="hand over plain files")
    return info.st_size


class HandedFile:
    """The content of a file handed over by a person, read from its beginning.

    Its file system may never answer: who reads may be left behind, so nothing but the buffer is touched there.

    Args:
        fd: stays open, and somebody else's.
        name: what to call it in errors.
    """

    def __init__(self, fd: int, name: str) -> None:
        self._fd, self._name = fd, name
        self._size = self._offset = 0
        self._buffer: bytearray | None = None
        self._over = self._closed = False

    @property
    def over(self) -> bool:
        """Whether the last bytes were read."""
        return self._over

    def read(self) -> memoryview:
        """The next bytes, good until the next call; blocking.

        Raises:
            UsageError: ``bad_request``, as :func:`check_regular`.
            IntegrityError: ``source_changed``; it is not as long any more as when it was first read.
            ResourceError: it could not be read.
        """
        try:
            if self._buffer is None:
                self._size = check_regular(self._fd, os.O_RDONLY, self._name)
                self._buffer = bytearray(min(_READ_BYTES, self._size + 1))
            view = memoryview(self._buffer)
            count = self._read(view)
            self._offset += count
            if self._offset == self._size:  # one that goes on growing would never end
                self._over = True
                count += (more := self._read(view[count:] if count < len(view) else memoryview(bytearray(1))))
                self._offset += more
            if self._offset > self._size or not (count or self._over):
                found = os.fstat(self._fd).st_size
                if found == self._size < self._offset:  # of the kernel's own, as in /proc
                    text = f"{self._name} says that it is {found} bytes long, and holds more"
                    raise IntegrityError("source_changed", text, hint="seal a copy of it")
                message = f"{self._name} was {self._size} bytes long and then {found}: something writes to it"
                raise IntegrityError("source_changed", message, hint="seal it once it is complete")
            return view[:count]
        finally:
            if self._closed:
                self._wipe()

    def _read(self, into: memoryview) -> int:
        try:
            return os.preadv(self._fd, [into], self._offset)
        except OSError as error:
            raise ResourceError("disk_failed", f"{self._name} could not be read: {error.strerror}") from error

    def close(self) -> None:
        """Wipe what was read last, also by a read that nobody waits for."""
        self._closed = True
        self._wipe()

    def _wipe(self) -> None:
        if self._buffer is not None:
            self._buffer[:] = bytes(len(self._buffer))


def sealed_by(path: str) -> bytes:
    """The key id of who signed a sealed file, by its own word; empty if there is no such file any more. Blocking.

    Raises:
        ResourceError: it cannot be read.
        IntegrityError: it is none.
    """
    if not os.path.lexists(path):  # after a crash it may lie in the vault already
        return b""
    with disk_errors("the spool"), open(path, "rb") as file:
        trailer = _trailer(file, path)
        file.seek(trailer.payload_bytes)
        return Envelope.parse(file.read(trailer.envelope_bytes)).signed.sender


def sync_file(path: str) -> None:
    """Make a file durable, and its name; blocking.

    Raises:
        ResourceError: ``disk_full``, ``disk_failed``.
    """
    with disk_errors("the spool"), open(path, "rb") as file:
        durable.sync(file.fileno())
        durable.sync_folder(os.path.dirname(path))


def end_digest(path: str) -> str:
    """A digest of what follows the payload of a sealed file: its envelope and trailer."""
    with disk_errors("the spool"), open(path, "rb") as file:
        file.seek(_trailer(file, path).payload_bytes)
        return blake3(file.read()).hexdigest()


def check_sealed(path: str, result: Result, end: str) -> None:
    """See that a file sealed here is still what it was, before it goes anywhere; blocking.

    Args:
        path: of the file.
        result: what was noted of it when it was sealed.
        end: its :func:`end_digest`, or empty where an older SMP noted none.

    Raises:
        IntegrityError: ``corrupt``, ``truncated``, ``not_sealed``: this box's disk changed it.
    """
    with disk_errors("the spool"), open(path, "rb") as file:
        layout = Layout.from_payload_bytes(_trailer(file, path).payload_bytes)
        file.seek(0)
        spans = map(layout.leaf_span, range(layout.segments))
        found = content_digest(leaf(file.read(stop - start)) for start, stop in spans)
    if found.hex() != result.content_digest or (end and end_digest(path) != end):
        raise IntegrityError("corrupt", "what was sealed here was changed on the disk before it was delivered")


def _trailer(file: BinaryIO, path: str) -> Trailer:
    size = os.stat(path).st_size
    file.seek(max(0, size - TRAILER_BYTES))
    return Trailer.parse(file.read(), size)


def read_bundle(fd: int, identities: Sequence[Identity], trust: Trust) -> BundleReader:
    """A reader over a sealed file."""

    def read_into(offset: int, view: memoryview) -> None:
        read_exact(fd, view, offset)

    return BundleReader(read_into, os.fstat(fd).st_size, identities=identities, trust=trust)


def open_into(reader: BundleReader, targets: Mapping[str, int], check: Callable[[], object]) -> list[Entry]:
    """Open entries into a person's files, checking the whole object.

    Args:
        check: raises if it is to stop.

    Raises:
        IntegrityError: it does not check out; what the files hold by then is not to be used.
        ResourceError: a file could not be written.
    """

    def sink(entry: Entry, offset: int, data: memoryview) -> None:
        with disk_errors(entry.name):
            while data:
                check()
                count = os.pwrite(targets[entry.name], data, offset)
                data, offset = data[count:], offset + count

    reader.extract(sink, entries=targets, progress=lambda _: check())
    return [entry for entry in reader.entries if entry.name in targets]
