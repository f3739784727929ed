"""Files that are whole or absent after a power cut: the one place that knows how."""

import contextlib
import ctypes
import os
import secrets
from collections.abc import Sequence

_libc = ctypes.CDLL(None, use_errno=True)
# Before Linux 5.8 syncfs(2) did not tell of failed writes, so there it is not relied on.
_TOGETHER = 4 if tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (5, 8) else 1 << 30


def write_file(folder: int | str, name: str, data: bytes | bytearray | memoryview, mode: int = 0o600) -> None:
    """Write, or replace, a file so that a reader sees the old or the new content, whatever happens.

    A temporary file is written and synced, renamed, and the folder synced: a rename alone may survive a power
    cut that its content does not.

    Args:
        folder: path or descriptor of the folder.
        name: one path component.
        data: the content.
        mode: permissions, exactly.

    Raises:
        OSError: as it came; the old content is untouched.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError("a file name is one component")
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if isinstance(folder, str) else folder
    temporary = f".{name[:64]}.{secrets.token_hex(8)}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode, dir_fd=at)
        try:
            with open(fd, "wb", buffering=0) as file:
                os.fchmod(fd, mode)
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.fsync(fd)
            os.rename(temporary, name, src_dir_fd=at, dst_dir_fd=at)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=at)
            raise
        os.fsync(at)
    finally:
        if isinstance(folder, str):
            os.close(at)


def sync_folder(path: str) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def adopt_files(sources: Sequence[tuple[str, str]], folder: int) -> None:
    """Move files, as pairs of path and name in ``folder``, so that they survive a power cut.

    The contents are synced, the files renamed, the folders synced. All sources are in one folder, which is on the file
    system of ``folder``. Many files are synced as one, by syncfs(2): five times faster than one by one.

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
    for parent in {os.path.dirname(source) or "." for source, _ in sources}:
        sync_folder(parent)


def _sync_file_system(fd: int) -> None:
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
