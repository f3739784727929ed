"""Kills a process with SIGKILL at the n-th of the steps that matter, counted from when somebody sets n.

A step is a call of one of the functions below; it has two points, just before and just after. A file that is mapped
into the test and into every process holds, for each role, how many points are left (0: not armed), how many were passed,
the name of the point at which it was killed, and the only name that counts, if not all do.
"""

import functools
import importlib
import inspect
import mmap
import os
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_AREA_BYTES = 256
_AREAS = {"smpd": 0, "smpd.fetch": 1, "smpd.compute": 2, "smpd.opening": 3}
_SYSTEM_CALLS = ("fsync", "fdatasync", "rename", "replace", "unlink", "pwrite", "write", "ftruncate", "posix_fallocate")
_STEPS = {
    "smpd": (
        *(f"os:{name}" for name in _SYSTEM_CALLS),
        "smpd.jobs.database:Database._leave",  # which commits
        "smpd.audit.log:AuditLog._commit",
        "smpd.transfer.pool:RemotePool._bring",
        "smpd.transfer.questions:Questions._call",
        "smpd.transfer.questions:Questions.write",
        "smpd.transfer.box:Meter.reached",
        "smpd.vault.objects:Vault.adopt",
        "smpd.transfer.runner:Runner.__call__",
        "smpd.transfer.leavings:Leavings.discard",
        "smpd.sync.watcher:Watcher._begin",
        "smpd.sync.watcher:Watcher._submit",
        "smpd.sync.watcher:Watcher._take_in",
    ),
    "smpd.fetch": (
        *(f"os:{name}" for name in ("fsync", "rename", "link", "unlink", "sendfile", "pread", "mkdir")),
        "smpd.fetch.bucket:Bucket.call",
        "smpd.fetch.http:Pool.get",
        "smpd.fetch.http:Pool.ask",
        "smpd.fetch.upload:Uploader._put",
        "smpd.fetch.service:Service._answer",
        "smpd.fetch.service:_Reporter.__call__",
    ),
    "smpd.compute": (
        "smpd.compute.server:Server.handle",
        "smpd.compute.run:Running._take",
        "smpd.compute.run:Running._announce",
        "smpd.compute.run:Running._work",
        "smpd.compute.run:Running._post",
    ),
    "smpd.opening": (
        "smpd.opening.server:Server._take",
        "smpd.opening.server:Server._open",
        "smpd.opening.server:Server._open_one",
    ),
}


class Switch:
    """The file, as the test sees it."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_AREA_BYTES * len(_AREAS)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.fault = f"torture.faults.steps:killing={path}"

    def arm(self, points: int, role: str = "smpd", only: str = "") -> None:
        """Kill that role at so many points from now, 0 for never; with ``only``, points of this name alone count."""
        struct.pack_into("<qq48s48s", self._map, _AREAS[role] * _AREA_BYTES, points, 0, b"", only.encode())

    def passed(self, role: str = "smpd") -> int:
        """How many points were passed since."""
        return int(struct.unpack_from("<q", self._map, _AREAS[role] * _AREA_BYTES + 8)[0])

    def killed_at(self, role: str = "smpd") -> str:
        """At which step it was killed; empty when it was not."""
        return bytes(struct.unpack_from("48s", self._map, _AREAS[role] * _AREA_BYTES + 16)[0]).rstrip(b"\0").decode()


def killing(path: str) -> None:
    """Plant it: count the steps of this process."""
    from torture import planted

    with open(path, "r+b") as file:
        shared = mmap.mmap(file.fileno(), 0)
    at = _AREAS[planted.ROLE] * _AREA_BYTES
    lock = threading.Lock()

    def point(name: str) -> None:
        with lock:
            left, passed, _, only = struct.unpack_from("<qq48s48s", shared, at)
            if only[0] and only.rstrip(b"\0") != name.encode()[:48]:
                return
            struct.pack_into("<qq", shared, at, max(0, left - 1), passed + 1)
            if left == 1:
                struct.pack_into("48s", shared, at + 16, name.encode()[:48])
                os.kill(os.getpid(), signal.SIGKILL)
                threading.Event().wait()

    for step in _STEPS[planted.ROLE]:
        module, _, name = step.partition(":")
        _wrap(importlib.import_module(module), name, point)


def _wrap(owner: Any, name: str, point: Callable[[str], None]) -> None:
    first, _, rest = name.partition(".")
    if rest:
        owner, name = getattr(owner, first), rest
    function = getattr(owner, name)
    label = f"{getattr(owner, '__name__', '')}.{name}"

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapped(*arguments: Any, **options: Any) -> Any:
            point(f"before {label}")
            answer = await function(*arguments, **options)
            point(f"after {label}")
            return answer

    else:

        @functools.wraps(function)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            point(f"before {label}")
            answer = function(*arguments, **options)
            point(f"after {label}")
            return answer

    setattr(owner, name, wrapped)
