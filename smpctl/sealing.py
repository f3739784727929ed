"""Sealed objects as files, without a daemon: seal, open, look at, rewrap. Constant memory, no plaintext in a temp file.

A file gets its name when it is whole and on disk; what went wrong before leaves nothing behind.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from smp_proto import durable
from smp_proto.durable import write_all
from smp_proto.errors import IntegrityError, NotFoundError, SmpError, StateError, UsageError
from smp_proto.names import has_controls
from smp_proto.sealed.bundle import BundleInfo, BundleReader, BundleWriter
from smp_proto.sealed.entries import PLACE, Attributes, Entry, Scalar, guess_media_type
from smp_proto.sealed.envelope import Envelope, Trust, rewrap_envelope
from smp_proto.sealed.filekey import wipe
from smp_proto.sealed.keys import Identity, PublicIdentity
from smp_proto.sealed.layout import TRAILER_BYTES, Trailer
from smpctl.files import HEAD_BYTES, LocalFile, total_bytes
from smpctl.landing import Landing, check_replaceable, disk_error

_READ_BYTES = 1 << 20
_REMOTE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}:")
Progress = Callable[[int, int], None]


class Sealed(NamedTuple):
    """A sealed file, open for reading, and what it says of itself; nothing of that is checked yet."""

    fd: int
    trailer: Trailer
    envelope_bytes: bytes
    envelope: Envelope

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill a view from an offset.

        Raises:
            IntegrityError: ``truncated``; the file became shorter.
        """
        done = 0
        while done < len(view):
            count = os.preadv(self.fd, [view[done:]], offset + done)
            if not count:
                raise IntegrityError("truncated", "the file became shorter while it was read")
            done += count


@contextmanager
def sealed_file(path: str) -> Iterator[Sealed]:
    """Open a sealed file and read its end.

    Raises:
        NotFoundError: ``no_such_file``.
        IntegrityError: ``not_sealed``, ``truncated``, ``unsupported`` or ``corrupt``.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise NotFoundError("no_such_file", f"{path} cannot be read: {reason}", hint="check the path") from None
    try:
        size = os.fstat(fd).st_size
        try:
            tail = os.pread(fd, TRAILER_BYTES, max(0, size - TRAILER_BYTES))
            trailer = Trailer.parse(tail, size)
            data = os.pread(fd, trailer.envelope_bytes, trailer.payload_bytes)
            sealed = Sealed(fd, trailer, data, Envelope.parse(data))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise NotFoundError("no_such_file", f"{path} cannot be read: {reason}", hint="name a sealed file") from None
        except IntegrityError as error:
            raise _named(path, error) from None
        yield sealed
    finally:
        os.close(fd)


def _named(path: str, error: IntegrityError) -> SmpError:
    body = error.body()
    body.message = f"{path}: {body.message}"
    return SmpError.from_body(body)


@contextmanager
def _new_file(path: str, *, overwrite: bool, mode: int = 0o666) -> Iterator[int]:
    """A descriptor of a file that gets its name when the block ends without an error."""
    folder_path, name = os.path.split(path)
    if not name:
        raise UsageError("bad_request", f"{path or 'nothing'} is no name of a file", hint="name a file, as scan.smp")
    folder = -1
    try:
        folder = os.open(folder_path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        durable.sweep(folder)
        if overwrite:
            check_replaceable(path)
        elif _is_there(name, folder):
            raise FileExistsError(17, "file exists")
        with durable.new_file(folder, name, mode, replace=overwrite) as fd:
            yield fd
    except FileExistsError:
        raise StateError("exists", f"{path} exists", hint="choose another name, or add --force") from None
    except OSError as error:
        raise disk_error(path, error) from None
    finally:
        if folder >= 0:
            os.close(folder)


def seal_files(
    files: Sequence[LocalFile],
    output: str,
    *,
    sender: Identity,
    recipients: Sequence[PublicIdentity],
    overwrite: bool = False,
    place: str = "",
    progress: Progress | None = None,
) -> BundleInfo:
    """Seal files as one object into the file ``output``.

    Args:
        files: what, under which names.
        output: the new file.
        sender: signs.
        recipients: who can open it.
        overwrite: whether ``output`` may be there already.
        place: the end of the path where it is to lie in the storage; a box refuses it anywhere else.
        progress: called with plaintext bytes done and in all.

    Raises:
        NotFoundError: ``no_such_file``.
        IntegrityError: ``source_changed``; a file changed its length while it was read.
        StateError: ``exists``.
        UsageError: ``bad_name``, ``bad_request``.
    """
    if place:
        check_place(place)
    total, done = total_bytes(files), 0
    buffer = bytearray(_READ_BYTES)
    with _new_file(output, overwrite=overwrite) as out:
        writer = BundleWriter(lambda view: write_all(out, view), sender=sender, recipients=recipients)
        try:
            for number, file in enumerate(files):
                attributes: dict[str, Scalar | list[Scalar]] = {PLACE: place} if place and not number else {}
                for count in _seal_one(writer, file, buffer, attributes):
                    done += count
                    if progress:
                        progress(done, max(done, total))
            return writer.finish()
        finally:
            writer.abort()
            wipe(buffer)


def check_place(place: str) -> None:
    """Refuse a place where no object can lie: who is to open it would be refused wherever it is.

    Raises:
        UsageError: ``bad_name``.
    """
    wrong = ""
    if not place:
        wrong = "is empty"
    elif place.startswith("/"):
        wrong = "is absolute"
    elif place.endswith("/"):
        wrong = "ends in a slash, and an object does not"
    elif _REMOTE.match(place):
        wrong = "begins like REMOTE:PATH"
    elif any(step in (".", "..") for step in place.split("/")):
        wrong = "has a '.' or '..' step"
    elif has_controls(place):
        wrong = "has a control character or is not UTF-8"
    if wrong:
        hint = "give the path below the remote's root, or its end, e.g. scans/one.smp"
        raise UsageError("bad_name", f"the place {place!a} {wrong}", hint=hint)


def _seal_one(writer: BundleWriter, file: LocalFile, buffer: bytearray, attributes: Attributes) -> Iterator[int]:
    fd, size = file.open()
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        writer.begin(file.name, guess_media_type(file.name, os.pread(fd, HEAD_BYTES, 0)), attributes)
        read = 0
        with memoryview(buffer) as view:
            while count := os.readv(fd, [buffer]):
                writer.write(view[:count])
                read += count
                yield count
        if read != size:
            message = f"{file.path} was {size} bytes long and then {read}: something writes to it"
            raise IntegrityError("source_changed", message, hint="seal it once it is complete")
        writer.end()
    finally:
        os.close(fd)


def open_file(
    sealed: Sealed,
    dest: str,
    *,
    identity: Identity,
    trust: Trust,
    names: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Entry, ...]:
    """Open a sealed file into files below ``dest``, which get their names once everything is verified.

    Args:
        sealed: from :func:`sealed_file`.
        dest: a folder, made if need be.
        identity: a recipient's.
        trust: gives the public key of a sender, or raises.
        names: only these entries; all are verified in any case.
        overwrite: whether files may be replaced.
        progress: called with payload bytes done and in all.

    Raises:
        IntegrityError: ``corrupt``, ``truncated``, ``untrusted_sender``, ``wrong_recipient``.
        NotFoundError: ``no_such_file``; there is no entry of such a name.
        StateError: ``exists``.
    """
    total = sealed.trailer.payload_bytes
    with (
        BundleReader(sealed.read_into, sealed.trailer.object_bytes, identities=[identity], trust=trust) as reader,
        Landing(dest, overwrite=overwrite) as landing,
    ):
        missing = set(names or ()) - {entry.name for entry in reader.entries}
        if missing:
            hint = "see the names with: smpctl inspect FILE --as KEY"
            raise NotFoundError("no_such_file", f"no entry is named {min(missing)}", hint=hint)
        wanted = tuple(entry for entry in reader.entries if names is None or entry.name in names)
        landing.plan(entry.name for entry in wanted)
        fd = -1

        def sink(entry: Entry, offset: int, data: memoryview) -> None:
            nonlocal fd
            if offset == 0:
                fd = landing.create(entry.name)
            try:
                write_all(fd, data)
            except OSError as error:
                raise disk_error(entry.name, error) from None
            if offset + len(data) == entry.size:
                os.close(fd)
                fd = -1

        try:
            reader.extract(
                sink,
                entries=[entry.name for entry in wanted],
                progress=(lambda done: progress(done, total)) if progress else None,
            )
        finally:
            if fd >= 0:
                os.close(fd)
        landing.commit({entry.name: entry.size for entry in wanted})
        return wanted


def rewrap_file(
    sealed: Sealed,
    output: str,
    *,
    identity: Identity,
    trust: Trust,
    recipients: Sequence[PublicIdentity],
    overwrite: bool,
) -> None:
    """Write the same object with other recipients; the payload is copied by the kernel, still sealed.

    Raises:
        IntegrityError: as :func:`open_file`. The payload itself is not looked at.
        StateError: ``exists``.
    """
    envelope = rewrap_envelope(sealed.envelope_bytes, sealed.trailer, [identity], trust, recipients)
    trailer = Trailer(sealed.trailer.payload_bytes, len(envelope))
    with _new_file(output, overwrite=overwrite, mode=os.fstat(sealed.fd).st_mode & 0o777) as out:
        _copy(sealed.fd, out, trailer.payload_bytes)
        write_all(out, memoryview(envelope))
        write_all(out, memoryview(trailer.pack()))


def _copy(source: int, target: int, length: int) -> None:
    """The first ``length`` bytes, shared between the files where the file system can do that."""
    done, ranges = 0, True
    while done < length:
        try:
            if ranges:
                count = os.copy_file_range(source, target, length - done, done, done)
            else:
                count = os.sendfile(target, source, done, length - done)
        except OSError:
            if not ranges:
                raise
            ranges = False  # across file systems, or one that cannot
            os.lseek(target, done, os.SEEK_SET)
            continue
        if not count:
            raise IntegrityError("truncated", "the file became shorter while it was copied")
        done += count
    os.lseek(target, length, os.SEEK_SET)


def _is_there(name: str, folder: int) -> bool:
    with suppress(FileNotFoundError):
        os.lstat(name, dir_fd=folder)
        return True
    return False
