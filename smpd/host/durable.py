"""Files that are whole or absent after a power cut: the one place that knows how."""

import contextlib
import os
import secrets


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


def adopt_file(source: str, folder: int, name: str) -> None:
    """Move a file to ``name`` in ``folder`` so that it survives a power cut: fsync, rename, fsync of both folders.

    Raises:
        OSError: FileNotFoundError, when there is none; ELOOP, when it is a symbolic link.
    """
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(fd, 0o600)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(source, name, dst_dir_fd=folder)
    os.fsync(folder)
    sync_folder(os.path.dirname(source) or ".")
