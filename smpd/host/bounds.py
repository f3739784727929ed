"""How much more memory there is for this process: the limits that hold for it, and what is left of them."""

import os
import resource
from collections.abc import Iterator
from typing import NamedTuple

from smp_proto.errors import ResourceError

_CGROUPS = "/sys/fs/cgroup"
_CGROUP_OF = "/proc/self/cgroup"
_MEMINFO = "/proc/meminfo"
# Left for everything that is not a ring: at the limit itself the kernel ends processes.
_MARGIN_BYTES = 16 << 20


class Bound(NamedTuple):
    """A limit on memory: what is left of it, what it is in all, and whose it is."""

    left: int
    limit: int
    name: str


def bounds() -> list[Bound]:
    """The limits that hold for this process: the machine's, its control groups' (v2, v1), its own address space's."""
    found: list[Bound] = []
    try:
        machine = _fields(_MEMINFO, b"MemAvailable:", b"MemTotal:")
        found.append(Bound(machine[b"MemAvailable:"], machine[b"MemTotal:"], "the machine"))
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            used = _fields("/proc/self/status", b"VmSize:")[b"VmSize:"]
            found.append(Bound(limit - used, limit, "the limit on address space (RLIMIT_AS)"))
    except (OSError, KeyError, ValueError):
        pass  # no /proc: the other limits hold all the same
    return found + list(_control_groups())


def require_memory(size: int, what: str) -> None:
    """See that there is memory for ``what``: beyond a control group's limit the kernel would kill, not refuse.

    Raises:
        ResourceError: ``no_memory``; retryable, unless no waiting can help.
    """
    for bound in bounds():
        if bound.left < size + _MARGIN_BYTES:
            raise no_memory(f"{what}: {bound.name} has {max(bound.left, 0) >> 20} MiB left", bound.limit > size)


def no_memory(what: str, retryable: bool = True) -> ResourceError:
    """``no_memory``, with what to do."""
    return ResourceError(
        "no_memory",
        f"no memory for {what}",
        hint="lower fetch.slots, fetch.slot_bytes or compute.slots, raise the limit (MemoryMax), or free memory",
        retryable=retryable,
    )


def _control_groups() -> Iterator[Bound]:
    """The limits of this process's memory control groups, up to the root."""
    try:
        with open(_CGROUP_OF) as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        root = os.path.join(_CGROUPS, "memory") if controllers else _CGROUPS
        at = path.strip("/")
        while True:
            bound = _bound(os.path.join(root, at), *names)
            if bound is not None:
                yield bound
            if not at:
                break
            at = os.path.dirname(at)


def _bound(folder: str, limit_name: str, used_name: str) -> Bound | None:
    try:
        with open(os.path.join(folder, limit_name)) as file:
            limit = int(file.read())  # "max", where there is none
        with open(os.path.join(folder, used_name)) as file:
            used = int(file.read())
        with open(os.path.join(folder, "memory.stat")) as file:
            stat = dict(line.split() for line in file)
    except (OSError, ValueError):
        return None
    cache = int(stat.get("inactive_file", 0)) if limit_name == "memory.max" else int(stat.get("total_inactive_file", 0))
    return Bound(limit - used + cache, limit, "the control group's limit (MemoryMax)")


def _fields(path: str, *names: bytes) -> dict[bytes, int]:
    """Fields of a table in kB, in bytes."""
    found = {}
    with open(path, "rb") as file:
        for line in file:
            if line.startswith(names):
                name, count = line.split()[:2]
                found[name] = int(count) * 1024
    return found
