"""The person's own files on their way in: found, named, opened. Symbolic links are never followed."""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from smp_proto.control import EntryView
from smp_proto.durable import is_part
from smp_proto.errors import NotFoundError, ResourceError, SmpError, UsageError
from smp_proto.sealed.entries import NameSet

FILES_PER_OPEN = 200  # a connection may have 256 descriptors that nobody took yet
HEAD_BYTES = 132  # enough for the magic of every media type, DICOM's being the last


class LocalFile(NamedTuple):
    """A file and the name of its entry: relative, with ``/`` between components."""

    name: str
    path: str

    def open(self) -> tuple[int, int]:
        """A descriptor open for reading, which the caller closes, and the size in bytes.

        Raises:
            NotFoundError: ``no_such_file``; it is not there, may not be read, or is no regular file.
        """
        try:
            # NONBLOCK: a pipe put here since must not hold us.
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _unreadable(self.path, error) from None
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise NotFoundError("no_such_file", f"{self.path} is no regular file", hint="name files or folders")
        return fd, found.st_size


def collect(
    paths: Iterable[str | os.PathLike[str] | LocalFile], *, skipped: Callable[[str], None] | None = None
) -> list[LocalFile]:
    """Files with the names of their entries; folders are walked, in order.

    A file is named by its last component, what is below a folder by the folder's name and the path below it.

    Args:
        paths: files, folders, or files that are named already.
        skipped: is told of each symbolic link, pipe, device and socket below a folder.

    Raises:
        NotFoundError: ``no_such_file``.
        UsageError: ``bad_request`` when there is nothing or two files would have one name, ``bad_name``.
    """
    files: list[LocalFile] = []
    for each in paths:
        if isinstance(each, LocalFile):
            files.append(each)
        else:
            files.extend(_below(os.fspath(each), skipped or (lambda _path: None)))
    if not files:
        raise UsageError("bad_request", "there is no file in what was named", hint="name at least one file")
    seen: dict[str, str] = {}
    together = NameSet()
    for file in files:
        try:
            file.name.encode()
        except UnicodeEncodeError:
            hint = "rename it; entry names are UTF-8"
            raise UsageError("bad_name", f"the name of {file.path!r} is not UTF-8", hint=hint) from None
        if seen.setdefault(file.name, file.path) != file.path:
            message = f"{seen[file.name]} and {file.path} would both be named {file.name}"
            raise UsageError("bad_request", message, hint="name the folder above them instead")
        try:
            together.add(file.name)
        except ValueError as error:
            message = f"{file.path!a} cannot be sealed as {file.name!a}: {error}"
            raise UsageError("bad_name", message, hint="rename it") from None
    return files


def _below(path: str, skipped: Callable[[str], None]) -> Iterator[LocalFile]:
    try:
        found = os.lstat(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    if stat.S_ISREG(found.st_mode):
        yield LocalFile(os.path.basename(path), path)
    elif stat.S_ISDIR(found.st_mode):
        # The folder itself names what is below it, also when it is written as "." or "..".
        yield from walk(path, os.path.basename(os.path.abspath(path)), skipped)
    else:
        what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "no file or folder"
        raise UsageError("bad_request", f"{path} is {what}", hint="name the file that it stands for")


def walk(folder: str, prefix: str, skipped: Callable[[str], None], *, living: bool = False) -> Iterator[LocalFile]:
    """The files below a folder, in order, their names after ``prefix``; arguments and errors as :func:`collect`.

    Of a folder that is ``living`` others may go while it is walked; those that do are left out.
    """
    waiting = _listed(folder, prefix)
    while waiting:
        name, entry = waiting.pop()
        if is_part(entry.name):
            continue  # what an export that was killed left there is no file of anybody's
        if entry.is_dir(follow_symlinks=False):
            try:
                waiting += _listed(entry.path, name)
            except NotFoundError:
                if not living or os.path.lexists(entry.path):
                    raise
        elif entry.is_file(follow_symlinks=False):
            yield LocalFile(name, entry.path)
        else:
            skipped(entry.path)


def _listed(folder: str, prefix: str) -> list[tuple[str, os.DirEntry[str]]]:
    """What is in a folder, with the names of entries, the last first."""
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name, reverse=True)
    except OSError as error:
        raise _unreadable(folder, error) from None
    return [(f"{prefix}/{entry.name}" if prefix else entry.name, entry) for entry in ordered]


def total_bytes(files: Iterable[LocalFile]) -> int:
    """How long files are in all.

    Raises:
        NotFoundError: ``no_such_file``; one is not there any more.
    """
    total = 0
    for file in files:
        try:
            total += os.lstat(file.path).st_size
        except OSError as error:
            raise _unreadable(file.path, error) from None
    return total


def _unreadable(path: str, error: OSError) -> SmpError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError("no_such_file", f"{path} does not exist", hint="check the path")
    reason = (error.strerror or str(error)).lower()
    if error.errno == errno.ENAMETOOLONG:
        hint = "no entry may have such a name; seal what lies deep by itself"
        return UsageError("bad_name", f"{path[:80]}... is too long a path", hint=hint)
    if isinstance(error, PermissionError) or error.errno in (40, 20):
        return NotFoundError("no_such_file", f"{path} cannot be read: {reason}", hint="check its owner and mode")
    return ResourceError("disk_failed", f"{path} cannot be read: {reason}", hint="check the disk")


def wanted_entries(entries: list[EntryView], names: Iterable[str] | None) -> list[EntryView]:
    """The entries asked for; ``no_such_file`` for a name that is not there."""
    if names is None:
        return entries
    wanted = set(names)
    missing = wanted - {entry.name for entry in entries}
    if missing:
        hint = "see the names with: smpctl vault ls ID"
        raise NotFoundError("no_such_file", f"no entry is named {min(missing)}", hint=hint)
    return [entry for entry in entries if entry.name in wanted]


def batches(items: Mapping[str, list[EntryView]]) -> Iterator[tuple[str, list[EntryView]]]:
    """Each item with as many of its entries as may be open at once on both sides, until all have come."""
    for item, entries in items.items():
        for start in range(0, len(entries), FILES_PER_OPEN):
            yield item, entries[start : start + FILES_PER_OPEN]
