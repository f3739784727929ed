"""Landlock by ctypes: which files this process may still open (linux/landlock.h, Documentation/userspace-api/landlock).

A ruleset binds the calling thread and those it starts later, so it is entered while there is only one. Everything the
kernel's version can refuse is refused, except what :data:`Rule` grants.
"""

import contextlib
import ctypes
import errno
import os
import stat
import struct
from typing import NamedTuple

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on all architectures
_VERSION, _PATH_BENEATH = 1, 1

_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL_DEV = 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _REFER = 1 << 5, 1 << 7, 1 << 8, 1 << 13
_FILE_RIGHTS = _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV | 1
READ = _READ_FILE | _READ_DIR
DEVICE = READ | _WRITE_FILE | _IOCTL_DEV
OVERWRITE = _WRITE_FILE | _TRUNCATE
FILES = READ | _WRITE_FILE | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER
ABI_TRUNCATE = 3  # before, a file may be emptied by who may open it
# ABI: the highest bit of the file rights it knows.
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NET_TCP = 0b11  # bind, connect; from ABI 4
_SCOPES = 0b11  # abstract Unix sockets and signals of processes outside; from ABI 6


class Rule(NamedTuple):
    """A file or folder, and what may be done below it: READ, or in addition write and send ioctls (DEVICE), or make,
    write, rename and remove files, and make folders (FILES); or only write over files that are there (OVERWRITE)."""

    path: str
    rights: int = READ


def abi(libc: ctypes.CDLL) -> int:
    """The kernel's Landlock version; 0 when it has none or it is off."""
    return max(0, int(libc.syscall(_CREATE_RULESET, None, 0, _VERSION)))


def restrict(libc: ctypes.CDLL, version: int, rules: list[Rule], *, tcp: bool = False) -> list[int]:
    """Enter the ruleset; paths that do not exist are passed over.

    Args:
        version: of :func:`abi`, at least 1.
        tcp: leave TCP alone.

    Returns:
        Descriptors to keep open: they pin the entries of /proc, whose rules would be lost with their inodes.

    Raises:
        OSError: the kernel refused it.
    """
    handled = (1 << _FS_BITS[min(version, max(_FS_BITS))]) - 1
    attributes = struct.pack(
        "=QQQ", handled, _NET_TCP if version >= 4 and not tcp else 0, _SCOPES if version >= 6 else 0
    )
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _checked(libc.syscall(_CREATE_RULESET, attributes, size, 0))
    pins = []
    try:
        for rule in rules:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                fd = _allow(libc, ruleset, handled, rule)
                if rule.path.startswith(("/proc/", "/sys/")):
                    pins.append(fd)
                else:
                    os.close(fd)
        _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    return pins


def _allow(libc: ctypes.CDLL, ruleset: int, handled: int, rule: Rule) -> int:
    fd = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    access = rule.rights
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        access &= _FILE_RIGHTS
    beneath = struct.pack("=Qi", access & handled, fd)
    _checked(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, beneath, 0))
    return fd


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, "not in this kernel" if number == errno.ENOSYS else os.strerror(number))
    return result
