"""Faults of what is kept: of the vault, and of the end of a job."""

import os
import signal
from typing import Any

from torture import planted


def killed() -> None:
    """smpd is killed once a file has its name in the vault, and before its row and the end of its job are there."""
    if planted.ROLE == "smpd":
        from smpd.jobs.journal import Journal

        def succeed_in(*_: Any, **__: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        Journal.succeed_in = succeed_in  # type: ignore[assignment, method-assign]
