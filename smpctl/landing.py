"""Where opened entries land: files that appear below one folder whole and verified, or not at all.

The names come from others. Each is checked, and each component is opened from the one above it without following
a link, so that nothing is written outside the folder, whatever is planted in it. Until then they are in a folder of
their own beside where they go, which the next landing there removes if a crash left it.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Self

from smp_proto import durable
from smp_proto.control import EntryView
from smp_proto.errors import IntegrityError, ResourceError, SmpError, StateError, UsageError
from smp_proto.sealed.entries import NameSet, valid_entry_name

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Landing:
    """Files below ``dest`` that get their names together, by :meth:`commit`; a context manager.

    Leaving it without a commit removes everything it made.

    Args:
        dest: a folder, made if it is not there (the folder above it must be).
        overwrite: whether files of the same names may be replaced.
    """

    def __init__(self, dest: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self._dest = os.fspath(dest)
        self._overwrite = overwrite
        self._root = -1
        self._made_dest = False
        self._folders: list[str] = []
        self._stage = -1
        self._stage_name = ""
        self._parts: dict[str, str] = {}
        self._inodes: dict[str, int] = {}
        self._made = 0

    def __enter__(self) -> Self:
        try:
            os.mkdir(self._dest, 0o700)
            self._made_dest = True
        except FileExistsError:
            pass
        except OSError as error:
            raise disk_error(self._dest, error) from None
        try:
            self._root = os.open(self._dest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            durable.sweep(self._root)
            self._stage, self._stage_name = durable.create_stage(self._root)
        except OSError as error:
            self.__exit__()
            raise disk_error(self._dest, error) from None
        return self

    def plan(self, names: Iterable[str]) -> None:
        """Check all names before anything is written.

        Raises:
            UsageError: ``bad_name``; a name that leads elsewhere, or two that one file system cannot tell apart.
            StateError: ``exists``; a file is there and is not to be replaced, or what is no file, which cannot be.
        """
        seen = NameSet()
        for name in names:
            try:
                seen.add(name)
                if any(map(durable.is_part, name.split("/"))):  # the next landing would take it for a crash's
                    raise ValueError("it is what unfinished files are called here")
            except ValueError as error:
                shown = ascii(name if len(name) <= 80 else name[:80] + "...")
                message = f"the entry {shown} cannot be made into a file: {error}"
                raise UsageError("bad_name", message, hint="nothing was written; ask its sender") from None
            mode = self._mode(name)
            if mode is None:
                continue
            if not self._overwrite:
                hint = "choose another folder, or add --force to replace it"
                raise StateError("exists", f"{self._dest}/{name} exists", hint=hint)
            # A folder would stop the commit after others were replaced; a rename replaces a device as it does a link.
            if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
                what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
                hint = "choose another folder, or move it away"
                raise StateError("exists", f"{self._dest}/{name} is there and is {what}", hint=hint)

    def create(self, name: str) -> int:
        """A descriptor for a new, empty file that will be ``name``; the caller closes it."""
        *folders, _last = name.split("/")
        os.close(self._descend(folders, make=True))
        part = str(self._made)  # made anew, a file has another: what was begun before goes with the stage
        self._made += 1
        try:
            fd = os.open(part, _NEW_FILE, 0o600, dir_fd=self._stage)
        except OSError as error:
            raise disk_error(f"{self._dest}/{name}", error) from None
        self._parts[name] = part
        return fd

    def commit(self, sizes: dict[str, int]) -> None:
        """Give every file its name.

        Args:
            sizes: how many bytes each must have.

        Raises:
            IntegrityError: ``truncated``; a file is not as long as it should be. None keeps its name then.
            ResourceError: ``disk_full``, ``disk_failed``.

        What fails or is interrupted takes the names away again, but for those that replaced a file.
        """
        try:
            self._commit(sizes)
        except OSError as error:
            self._undo()
            raise disk_error(self._dest, error) from None
        except BaseException:
            self._undo()
            raise

    def _commit(self, sizes: dict[str, int]) -> None:
        touched: set[tuple[str, ...]] = {()}
        for name, part in self._parts.items():
            folders = name.split("/")[:-1]
            touched.update(tuple(folders[:depth]) for depth in range(1, len(folders) + 1))
            self._inodes[name] = _settle(self._stage, part, name, sizes[name])
        for name, part in self._parts.items():
            self._name(name, part)
        for folders_touched in touched:
            fd = self._descend(folders_touched, make=False)
            try:
                durable.sync(fd)
            finally:
                os.close(fd)
        if self._made_dest:
            durable.sync_folder(os.path.dirname(os.path.abspath(self._dest)))
        self._folders.clear()
        self._made_dest = False

    def _undo(self) -> None:
        """Take back the names that were given. What was replaced is not to be had any more, so there they stay."""
        if self._overwrite:
            return
        for name, inode in self._inodes.items():
            *folders, last = name.split("/")
            with suppress(OSError, SmpError):
                parent = self._descend(folders, make=False)
                try:
                    if os.lstat(last, dir_fd=parent).st_ino == inode:  # not what somebody else put there
                        os.unlink(last, dir_fd=parent)
                finally:
                    os.close(parent)

    def __exit__(self, *_: object) -> None:
        if self._stage >= 0:
            with suppress(OSError):
                durable.remove_stage(self._stage, self._stage_name, self._root)
        if self._root >= 0:
            for folder in reversed(self._folders):
                with suppress(OSError):
                    os.rmdir(folder, dir_fd=self._root)
            os.close(self._root)
        if self._made_dest:
            with suppress(OSError):
                os.rmdir(self._dest)

    def _descend(self, folders: Iterable[str], *, make: bool) -> int:
        """A descriptor of a folder below the root, one component at a time."""
        fd, path = os.dup(self._root), ""
        for component in folders:
            path = f"{path}/{component}".lstrip("/")
            try:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(component, 0o700, dir_fd=fd)
                        self._folders.append(path)
                below = os.open(component, _FOLDER, dir_fd=fd)
            except OSError as error:
                raise disk_error(f"{self._dest}/{path}", error) from None
            finally:
                os.close(fd)
            fd = below
        return fd

    def _mode(self, name: str) -> int | None:
        """What is there under a name, as ``st_mode``; None for nothing."""
        *folders, last = name.split("/")
        try:
            parent = self._descend(folders, make=False)
        except StateError:
            raise
        except SmpError:
            return None
        try:
            return os.lstat(last, dir_fd=parent).st_mode
        except OSError:
            return None
        finally:
            os.close(parent)

    def _name(self, name: str, part: str) -> None:
        *folders, last = name.split("/")
        parent = self._descend(folders, make=False)
        try:
            durable.give_name(part, last, parent, stage=self._stage, replace=self._overwrite)
        except OSError as error:
            raise disk_error(f"{self._dest}/{name}", error) from None
        finally:
            os.close(parent)


def check_apart(items: Mapping[str, Sequence[EntryView]]) -> None:
    """Refuse vault items whose entries cannot all be files of one folder: the last would replace the others.

    Raises:
        StateError: ``exists``, naming two of them. What is wrong with one by itself says :meth:`Landing.plan`.
    """
    together = NameSet()
    for item, entries in items.items():
        for name in (entry.name for entry in entries):
            try:
                together.add(name)
            except ValueError as error:
                other = next((each for each in items if each != item and not _fits(name, items[each])), None)
                if other is None or not valid_entry_name(name):
                    continue
                message = f"{other} and {item} cannot be exported into one folder: {name!a}: {error}"
                hint = "nothing was written; export them one by one, each into its own: smpctl vault open ID -o DIR"
                raise StateError("exists", message, hint=hint) from None


def _fits(name: str, others: Sequence[EntryView]) -> bool:
    names = NameSet()
    names.add(name)
    try:
        for each in others:
            names.add(each.name)
    except ValueError:
        return False
    return True


@contextmanager
def opening(item: str) -> Iterator[None]:
    """Have an error say which vault item it is about."""
    try:
        yield
    except SmpError as error:
        error.details["item"] = item
        raise


def _settle(stage: int, part: str, name: str, size: int) -> int:
    """Make the content of a file durable; its inode."""
    fd = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=stage)
    try:
        found = os.fstat(fd)
        if found.st_size != size:
            message = f"{name} came out as {found.st_size} bytes instead of {size}"
            raise IntegrityError("truncated", message, hint="try again; nothing was kept")
        durable.sync(fd)
        return found.st_ino
    finally:
        os.close(fd)


def check_replaceable(path: str) -> None:
    """Refuse to replace what is no regular file: a rename would, and root may do so with /dev/null.

    Raises:
        StateError: ``exists``.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise StateError("exists", f"{path} is no regular file", hint="choose another name")


def disk_error(path: str, error: OSError) -> SmpError:
    """What an error of the file system means for a file to be written."""
    reason = (error.strerror or str(error)).lower()
    if not path:
        return UsageError("bad_request", "an empty path names nothing to write to", hint="name a file or a folder")
    if isinstance(error, FileExistsError):
        return StateError("exists", f"{path} exists", hint="choose another folder, or add --force to replace it")
    if error.errno in (20, 40):  # ENOTDIR, ELOOP: what O_NOFOLLOW says of a link
        message = f"{path} is a link or a file where a folder should be"
        return StateError("exists", message, hint="choose an empty folder")
    if isinstance(error, FileNotFoundError):
        folder = os.path.dirname(path) or path
        return ResourceError("disk_failed", f"{path} cannot be written: there is no such folder", hint=f"make {folder}")
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return ResourceError("disk_full", f"{path} cannot be written: {reason}", hint="free some space")
    return ResourceError("disk_failed", f"{path} cannot be written: {reason}", hint="check the folder's owner and mode")
