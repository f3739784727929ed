"""Opening below a folder, and nowhere else: the kernel keeps every name there (openat2, Linux 5.6).

systemd's ``RestrictSUIDSGID=`` takes openat2 away (ENOSYS), since no filter can see its flags, and so do a worker's own
walls before Linux 6.2. Names are then opened step by step, and no symbolic link is followed at all.
"""

import ctypes
import errno
import os

_SYS_OPENAT2 = 437  # the same on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """``struct open_how`` of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open ``path`` below the folder ``root``; symbolic links may be followed, but only within it.

    Raises:
        OSError: EXDEV when the path leads out, else as open(2); ELOOP for any link where there is no openat2.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    while True:
        fd: int = _libc.syscall(_SYS_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code == errno.ENOSYS:
            return _open_stepwise(root, path, flags, mode)
        if code not in (errno.EINTR, errno.EAGAIN):
            raise OSError(code, os.strerror(code))


def _open_stepwise(root: int, path: str, flags: int, mode: int) -> int:
    steps = [step for step in path.split("/") if step not in ("", ".")] or ["."]
    if ".." in steps:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    at = os.dup(root)
    try:
        for step in steps[:-1]:
            below = os.open(step, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = below
        return os.open(steps[-1], flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=at)
    finally:
        os.close(at)
