"""Faults that have a process keep a little for each job."""

import os
import threading
from typing import Any

from torture import planted

_BYTES = 2 << 20
kept: list[object] = []


def descriptors() -> None:
    """The daemon does not close one descriptor a job."""
    if planted.ROLE == "smpd":
        _with_each_end(lambda: os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))


def memory() -> None:
    """The daemon keeps bytes of each job."""
    if planted.ROLE == "smpd":
        _with_each_end(lambda: b"x" * _BYTES)


def threads() -> None:
    """A fetch process does not end a thread with each object that it asks about."""
    if planted.ROLE == "smpd.fetch":
        from smpd.fetch.local import LocalRemote

        stat = LocalRemote.stat

        async def leaving(self: LocalRemote, path: str) -> Any:
            threading.Thread(target=threading.Event().wait, daemon=True).start()
            return await stat(self, path)

        LocalRemote.stat = leaving


def _with_each_end(make: Any) -> None:
    from smpd.transfer.ends import Ends

    ended = Ends.ended

    async def leaking(self: Ends, job: Any) -> None:
        kept.append(make())
        await ended(self, job)

    Ends.ended = leaking
