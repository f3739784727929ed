"""Whether the program on the disk is still the one that runs: an upgrade puts another in its place.

The daemon goes on as it was, but a worker that it starts then is of the new version, and the two need not agree.
"""

import os

import smpd
from smp_proto.errors import ResourceError

_FILE = os.path.abspath(smpd.__file__)


def _stamp() -> tuple[int, int]:
    """What an installer changes, and copies and backups of the disk do not; zeros where there is no such file."""
    try:
        found = os.stat(_FILE)
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


_BEGUN = _stamp()
_seen = False


def is_replaced() -> bool:
    """Whether another version was installed since this one was started; blocks."""
    global _seen  # noqa: PLW0603 - there is one program
    _seen = _stamp() != _BEGUN
    return _seen


def was_replaced() -> bool:
    """What :func:`is_replaced` found when it was last asked; does not block."""
    return _seen


def replaced(what: str) -> ResourceError:
    """``program_replaced``: something is not started, since it would be of another version."""
    return ResourceError(
        "program_replaced",
        f"{what} is not started: another version of smpd was installed since this one was started",
        hint="restart smpd: systemctl restart smpd; jobs go on by themselves then",
    )
