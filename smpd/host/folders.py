"""Folders that are ours alone, and the lock that keeps a second daemon off the same state."""

import fcntl
import os
import shlex
import stat

from smp_proto import durable
from smp_proto.errors import ResourceError, StateError
from smpd.host.space import disk_errors

_HINT = "it must be ours and closed to others: see docs/reference/configuration.md"


def ensure_dir(path: str, mode: int = 0o700) -> None:
    """Make ``path`` a folder of ours that nobody else can write to; parents are made as needed.

    Raises:
        ResourceError: ``disk_failed`` when it is a symbolic link, belongs to someone else, or is open to others.
    """
    try:
        if durable.make_folders(path, mode):
            os.chmod(path, mode)  # whatever the umask made of it
        found = os.lstat(path)
    except OSError as error:
        raise _unfit(path, f"cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise _unfit(path, "is not a folder")
    if found.st_uid != os.geteuid():
        raise _unfit(path, f"belongs to user {found.st_uid}")
    if excess := stat.S_IMODE(found.st_mode) & 0o777 & ~mode:
        hint = f"run: chmod {stat.S_IMODE(found.st_mode) & mode:o} {shlex.quote(path)}"
        raise _unfit(path, f"gives others rights ({excess:04o} too many)", hint)


def lock_state(path: str) -> int:
    """Take the exclusive lock of the state folder and return its descriptor, to be kept open.

    Raises:
        StateError: ``exists`` when another process has it.
        ResourceError: ``disk_full``, ``disk_failed``; it cannot be made, as where the disk is read-only.
    """
    lock = os.path.join(path, "lock")
    with disk_errors(lock):
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise StateError(
            "exists", f"another smpd uses {path}", hint="stop it, or give this one its own paths.state"
        ) from None
    return fd


def _unfit(path: str, reason: str, hint: str = _HINT) -> ResourceError:
    return ResourceError("disk_failed", f"{path} {reason}", hint=hint)
