"""Files that are whole or absent after a power cut: the one place that syncs, renames and links.

A file that is *replaced* is written under a name of its own, synced, renamed, and its folder synced: a rename alone may
survive a power cut that the content does not. A file that *grows* is written and synced, and counts as far as that.

A sync that failed is never tried again as if nothing were lost. Linux gives up the pages it could not write and says so
once; the next sync of the same file succeeds and means nothing. So whoever gets an OSError from here makes the
file anew, or reads back what the disk does hold (:func:`reread`) and checks it before it believes any of it.

What is not whole yet is called a *part*: a file, or a folder of files. Its maker holds a lock on it (flock(2)), which a
crash takes away, so :func:`sweep` can tell one that is left behind from one that is being written.

All calls block, and raise OSError as it came.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence

_PART = re.compile(r"\.smp-[0-9a-f]{16}\.part")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_RENAME_NOREPLACE = 1
_libc = ctypes.CDLL(None, use_errno=True)
# Before Linux 5.8 syncfs(2) did not tell of failed writes, so there it is not relied on.
_TOGETHER = 4 if tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (5, 8) else 1 << 30


# ── what is replaced as a whole ────────────────────────────────────────────────────────────────────────────


def part_name() -> str:
    """What a file is called until it is whole."""
    return f".smp-{secrets.token_hex(8)}.part"


def is_part(name: str) -> bool:
    """Whether a file of this name is not whole."""
    return _PART.fullmatch(name) is not None


def create_part(folder: int, mode: int = 0o600, name: str = "") -> tuple[int, str]:
    """Make an empty file that is to get its name by :func:`publish`; returns its descriptor, and what it is called.

    That is ``name``, of :func:`part_name`, where somebody is to know it beforehand.
    """
    while True:
        part = name or part_name()
        fd = os.open(part, _NEW, mode, dir_fd=folder)
        if _hold(fd):
            return fd, part


def create_stage(folder: int) -> tuple[int, str]:
    """Make a folder for many parts, as :func:`create_part` one; :func:`remove_stage` takes it away again."""
    while True:
        part = part_name()
        os.mkdir(part, 0o700, dir_fd=folder)
        fd = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        if _hold(fd):
            return fd, part


def sweep_path(path: str) -> None:
    """As :func:`sweep`, of a folder by its path."""
    fd = os.open(path, _FOLDER)
    try:
        sweep(fd)
    finally:
        os.close(fd)


def remove_stage(fd: int, part: str, folder: int) -> None:
    """Remove a folder of parts with what is still in it, and close its descriptor."""
    try:
        for name in os.listdir(fd):
            os.unlink(name, dir_fd=fd)
        os.rmdir(part, dir_fd=folder)
    finally:
        os.close(fd)


def sweep(folder: int) -> None:
    """Remove the parts that a crash left in a folder: those of this user that nobody holds.

    What cannot be removed stays, and nobody is told: it is in nobody's way.
    """
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir(folder)
    for name in filter(is_part, names):
        with contextlib.suppress(OSError):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            found = os.fstat(fd)
            try:
                if found.st_uid != os.geteuid():
                    continue
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISDIR(found.st_mode):
                    remove_stage(os.dup(fd), name, folder)
                else:
                    os.unlink(name, dir_fd=folder)
            finally:
                os.close(fd)


def _hold(fd: int) -> bool:
    """Lock a new part; False, and it is closed, when it was swept before that."""
    free = True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        free = False
    except OSError:  # a file system without locks; then nothing is swept there either
        pass
    if free and os.fstat(fd).st_nlink:
        return True
    os.close(fd)
    return False


def publish(fd: int, part: str, name: str, folder: int, *, replace: bool = True) -> None:
    """Give a file that was written its name, durably: the content is synced, the file renamed, the folder synced.

    Args:
        fd: the file, open for writing.
        part: what it is called in ``folder`` by now.
        name: what it is to be called there.
        folder: a descriptor.
        replace: whether there may be a file of that name.

    Raises:
        FileExistsError: there is, and it is not to be replaced.
    """
    os.fsync(fd)
    give_name(part, name, folder, replace=replace)
    os.fsync(folder)


def give_name(part: str, name: str, folder: int, *, stage: int | None = None, replace: bool = True) -> None:
    """Rename a file whose content is synced, from a stage where one is given. It is durable once its folder is synced.

    Raises:
        FileExistsError: there is one of that name, and it is not to be replaced.
    """
    source = folder if stage is None else stage
    if replace:
        os.rename(part, name, src_dir_fd=source, dst_dir_fd=folder)
        return
    try:  # a hard link is the only way that checks and acts at once
        os.link(part, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with contextlib.suppress(FileNotFoundError):
            os.lstat(name, dir_fd=folder)
            raise FileExistsError(17, "file exists", name) from None
        os.rename(part, name, src_dir_fd=source, dst_dir_fd=folder)
        return
    os.unlink(part, dir_fd=source)


def move(name: str, folder: int, other: str, into: int) -> None:
    """Give a file another name, perhaps in another folder of the same file system, durably. Nothing is replaced.

    Args:
        folder, into: descriptors of the folders.

    Raises:
        FileExistsError: there is something of the other name.
    """
    if _libc.renameat2(folder, os.fsencode(name), into, os.fsencode(other), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(number, os.strerror(number), name)
        with contextlib.suppress(FileNotFoundError):  # a file system that cannot check and act at once
            os.lstat(other, dir_fd=into)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), other)
        os.rename(name, other, src_dir_fd=folder, dst_dir_fd=into)
    os.fsync(into)
    os.fsync(folder)


def also_name(path: str, other: str) -> None:
    """Give a file another name beside the one it has, durably.

    Raises:
        FileExistsError: there is a file of that name.
    """
    os.link(path, other, follow_symlinks=False)
    sync_folder(os.path.dirname(other) or ".")


@contextlib.contextmanager
def new_file(folder: int, name: str, mode: int = 0o600, *, replace: bool = True) -> Iterator[int]:
    """A descriptor of a new file, which gets its name durably when the block ends, and is removed when that fails.

    Args:
        folder: a descriptor.
        name: one path component.
        mode: permissions, less the umask.
        replace: whether there may be a file of that name.

    Raises:
        OSError: what is at the name is what was there before; only if the folder could not be synced, it may be new.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError("a file name is one component")
    fd, part = create_part(folder, mode)
    try:
        yield fd
        publish(fd, part, name, folder, replace=replace)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part, dir_fd=folder)
        raise
    finally:
        os.close(fd)


def write_file(
    folder: int | str, name: str, data: bytes | bytearray | memoryview, mode: int = 0o600, *, replace: bool = True
) -> None:
    """Write, or replace, a file so that a reader sees the old or the new content, whatever happens.

    Args:
        folder: path or descriptor of the folder.
        name: one path component.
        data: the content.
        mode: permissions, exactly.
        replace: whether there may be a file of that name.

    Raises:
        OSError: as :func:`new_file`.
    """
    at = os.open(folder, _FOLDER) if isinstance(folder, str) else folder
    try:
        with new_file(at, name, mode, replace=replace) as fd:
            os.fchmod(fd, mode)
            write_all(fd, data)
    finally:
        if isinstance(folder, str):
            os.close(at)


def adopt_files(sources: Sequence[tuple[str, str]], folder: int) -> None:
    """Move files, as pairs of path and name in ``folder``, so that they survive a power cut.

    The contents are synced, the files renamed, ``folder`` synced. All sources are on its file system. Theirs is not
    synced: should an old name come back after a power cut, which no journaling file system does, it is a second name of
    what is in ``folder``. Many files are synced as one, by syncfs(2): five times faster than one by one.

    Raises:
        OSError: FileNotFoundError, when one is not there; ELOOP, when it is a symbolic link. Adopt them again.
    """
    each = len(sources) < _TOGETHER
    for source, _ in sources:
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o600)
            if each:
                os.fsync(fd)
        finally:
            os.close(fd)
    if not each:
        _sync_file_system(folder)
    for source, name in sources:
        os.rename(source, name, dst_dir_fd=folder)
    os.fsync(folder)


# ── what grows ─────────────────────────────────────────────────────────────────────────────────────────────


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of it; not synced yet."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def append(fd: int, data: bytes) -> None:
    """Write and sync; on return ``data`` is on the disk."""
    write_all(fd, data)
    os.fsync(fd)


def cut(fd: int, size: int) -> None:
    """Keep the first ``size`` bytes, durably."""
    os.ftruncate(fd, size)
    os.fsync(fd)


def reread(fd: int) -> None:
    """Have what is read from now on come from the disk, and not from pages that could not be written."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


# ── by itself ──────────────────────────────────────────────────────────────────────────────────────────────


def sync(fd: int) -> None:
    """Make a file's content, or a folder's names, durable."""
    os.fsync(fd)


def sync_data(fd: int) -> None:
    """Make a file's content durable, where its size and times do not matter or were synced before."""
    os.fdatasync(fd)


def sync_folder(path: str) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, _FOLDER)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: str, mode: int, parent: int | None = None) -> None:
    """Make a folder durably, in an open one or by its path, unless something of that name is there.

    One that is there may have been made before a crash and never synced, so the folder above is synced in any case.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode, dir_fd=parent)
    if parent is None:
        sync_folder(os.path.dirname(path) or ".")
    else:
        os.fsync(parent)


def make_folders(path: str, mode: int) -> bool:
    """Make a folder durably, and those above it with mode 0755; False when it is there."""
    if os.path.lexists(path):
        return False
    if above := os.path.dirname(path):
        make_folders(above, 0o755)
    make_folder(path, mode)
    return True


def remove(name: str, folder: int) -> None:
    """Remove a file durably; one that is not there is gone already, but perhaps not durably."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    os.fsync(folder)


def _sync_file_system(fd: int) -> None:
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
