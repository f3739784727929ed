"""How much memory a process uses, and has used at most; how much the machine has."""

import os
import re
from typing import NamedTuple

_FIELD = re.compile(rb"^(VmRSS|VmHWM|RssAnon|RssShmem|VmSwap|Threads):\s*(\d+)", re.MULTILINE)
_LAST = b"\nSigQ:"  # behind all of these
_READ_BYTES = 1 << 14


class Usage(NamedTuple):
    """What a process uses, in bytes; zero when it is gone.

    Args:
        memory_bytes: what it takes from others: private and shared memory, swapped out or not. Not mapped files, which
            can be dropped: RssAnon, RssShmem and VmSwap of proc_pid_status(5).
        threads: how many it has.
        resident_bytes, peak_bytes: its resident set, now and at most: VmRSS and VmHWM.
    """

    memory_bytes: int
    threads: int
    resident_bytes: int
    peak_bytes: int


def usage(pid: int) -> Usage:
    """What /proc/PID/status says of a process; no memory where its first thread has ended: see :func:`hidden_usage`."""
    return _usage(_status(f"/proc/{pid}"))


def hidden_usage(pid: int) -> Usage:
    """The same by the status of another thread; blocking."""
    found = _status(f"/proc/{pid}")
    for thread in _threads(pid):
        if b"VmRSS" in found:
            break
        found |= _status(f"/proc/{pid}/task/{thread}")
    return _usage(found)


def _usage(found: dict[bytes, int]) -> Usage:
    sizes = (found.get(name, 0) for name in (b"RssAnon", b"RssShmem", b"VmSwap"))
    return Usage(sum(sizes), *(found.get(name, 0) for name in (b"Threads", b"VmRSS", b"VmHWM")))


def machine_bytes(root: str = "/") -> int:
    """The memory of this machine, or of the control groups that this process is in where they have less (cgroups(7)).

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    limits = []
    with open(os.path.join(root, "proc/meminfo"), encoding="ascii") as meminfo:
        limits += [int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemTotal:")]
    groups = os.path.join(root, "sys/fs/cgroup")
    with open(os.path.join(root, "proc/self/cgroup"), encoding="utf-8") as file:
        paths = [line.rstrip("\n").split("::", 1)[1] for line in file if line.startswith("0::")]
    for path in paths:
        parts = path.strip("/").split("/")
        for depth in range(len(parts) + 1):
            limits += _limit(os.path.join(groups, *parts[:depth], "memory.max"))
    return min(limits)


def _limit(path: str) -> list[int]:
    try:
        with open(path, encoding="ascii") as file:
            return [int(file.read())]
    except (OSError, ValueError):  # not there, or "max"
        return []


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:  # gone meanwhile
        return []


def _status(folder: str) -> dict[bytes, int]:
    """The numbers of a status file; sizes in bytes. Empty when it is gone, or cannot be seen."""
    # Once for each job: a file of Python's makes eight calls for it, and the event loop lets go of the interpreter lock
    # around them.
    data = b""
    try:
        fd = os.open(f"{folder}/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while _LAST not in data and (more := os.read(fd, _READ_BYTES)):
                data += more
        finally:
            os.close(fd)
    except OSError:  # gone, or no descriptor to look with
        return {}
    return {name: int(value) * (1 if name == b"Threads" else 1024) for name, value in _FIELD.findall(data)}
