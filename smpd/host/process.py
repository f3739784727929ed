"""Making this process a poor target: no core dump, no tracing by its own user, secrets not swapped out."""

import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import Iterable

from smp_proto.errors import ResourceError
from smp_proto.memory import BIND_NOW, forbid_dumps
from smpd.host.orphans import adopt_orphans

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_ARENAS = 2
_MMAP_BYTES = 256 << 10
_libc = ctypes.CDLL(None, use_errno=True)


def harden() -> None:
    """Forbid core dumps, ptrace and /proc/PID/mem for other processes of this user (prctl(2), PR_SET_DUMPABLE).

    And have what our processes leave behind stay ours, so that the control socket knows it.

    Raises:
        ResourceError: ``sandbox`` when the kernel refuses; keys must not be loaded then.
    """
    try:
        forbid_dumps()
    except OSError as error:
        raise ResourceError(
            "sandbox", f"the kernel refuses PR_SET_DUMPABLE: {error.strerror}", hint="check the seccomp profile"
        ) from error
    try:
        adopt_orphans()
    except OSError as error:
        message = f"the kernel refuses PR_SET_CHILD_SUBREAPER: {error.strerror}"
        raise ResourceError("sandbox", message, hint="check the seccomp profile") from error
    os.umask(0o077)
    if hasattr(_libc, "mallopt"):  # glibc: a heap for each thread keeps what was freed in it, content and all
        _libc.mallopt(_M_ARENA_MAX, _ARENAS)
        _libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def bind_now() -> None:
    """Start this program once more with :data:`BIND_NOW`, unless it was started so: it is read at the start only.

    Raises:
        ResourceError: ``sandbox``; it cannot be started again.
    """
    if os.environ.get(BIND_NOW):  # empty, it says nothing
        return
    os.environ[BIND_NOW] = "1"
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - what is running already
    except OSError as error:
        message = f"smpd cannot start itself with {BIND_NOW}=1: {error.strerror}"
        raise ResourceError("sandbox", message, hint=f"start it with {BIND_NOW}=1 in its environment") from error


def note(number: signal.Signals) -> list[int]:
    """From now on a signal does nothing but to be added to what is returned. For the main thread.

    Unlike one that is ignored it is not ignored by the programs that are started.
    """
    came: list[int] = []
    signal.signal(number, lambda number, _frame: came.append(number))
    return came


def ignore(numbers: Iterable[signal.Signals]) -> None:
    """From now on these signals do nothing. For the main thread, and for when no program is started any more."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def trim_memory() -> None:
    """Give freed memory back to the system (malloc_trim(3)), and with it what was in it. Blocking."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def lock_memory(buffer: bytearray) -> bool:
    """Keep a buffer's pages out of swap (mlock(2)); False where the limit LimitMEMLOCK does not allow it.

    The buffer must not change its length while locked. Its pages stay locked until the process ends, or until
    the allocator gives them back.
    """
    if not buffer:
        return True
    view = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    return bool(_libc.mlock(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(len(buffer))) == 0)


def cpu_seconds(pid: int) -> float:
    """What a process has spent so far, all its threads together; 0.0 where there is none (clock_getcpuclockid(3))."""
    clock = ctypes.c_int()
    if not pid or _libc.clock_getcpuclockid(ctypes.c_int(pid), ctypes.byref(clock)):
        return 0.0
    try:
        return time.clock_gettime(clock.value)
    except OSError:  # it has gone since
        return 0.0


def collect_seldom() -> None:
    """Leave what lives already out of garbage collection for good, and look through young objects after 10,000 of them.

    Python does so after 700, which took a tenth of a fetch process's time: a transfer makes and drops a hundred objects
    for each range, hardly any of them in a cycle.
    """
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
