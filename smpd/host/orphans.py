"""What a command leaves behind: processes whose parent ended become ours, are known to be, and are ended.

Nothing here waits for any child: uvloop and asyncio wait for those that they started, each by its id, and would miss
one whose status was taken from them.
"""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
_ROUNDS_S = 5.0
_PAUSE_S = 0.01
_libc = ctypes.CDLL(None, use_errno=True)


class _Standing(NamedTuple):
    parent: int
    session: int


def adopt_orphans() -> None:
    """From now on who is left by a descendant of this process becomes its child, and not that of pid 1 (prctl(2)).

    Raises:
        OSError: the kernel refuses.
    """
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _adopts() -> bool:
    found = ctypes.c_int()
    return _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(found), 0, 0, 0) == 0 and found.value == 1


def parent_of(pid: int) -> int:
    """The parent of a process.

    Raises:
        ProcessLookupError, FileNotFoundError: there is none of this id.
        OSError: it cannot be told now.
    """
    return _standing(pid).parent


def end_orphans() -> bool:
    """Kill our children that are of another session than ours, theirs when they become ours, and reap them; blocking.

    Workers are of our session; who was started with one of its own has to be waited for before. Nothing is done in
    a process that adopts no orphans.

    Returns:
        Whether none is left.
    """
    if not _adopts():
        return True
    give_up = time.monotonic() + _ROUNDS_S
    while left := list(_orphans()):
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > give_up:
            return False
        time.sleep(_PAUSE_S)  # until they are dead, and their children are ours
    return True


def _orphans() -> Iterator[int]:
    ours, session = os.getpid(), os.getsid(0)
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                standing = _standing(int(name))
                if standing.parent == ours and standing.session != session:
                    yield int(name)


def _standing(pid: int) -> _Standing:
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The name before it may hold anything (proc_pid_stat(5)).
        fields = file.read().rpartition(b")")[2].split()
    return _Standing(int(fields[1]), int(fields[3]))
