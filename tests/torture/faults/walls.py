"""Faults that leave a wall of the compute process down; the daemon and fetch are left alone."""

from torture import planted


def no_seccomp() -> None:
    """Say that system calls are refused, and refuse none."""
    if planted.ROLE == "smpd.compute":
        from smpd.walls.sandbox import Sandbox

        def pretend(self: Sandbox, *_: object, **__: object) -> None:
            self.walls["seccomp"] = "on"

        Sandbox.enter_seccomp = pretend
