"""Starts smpd under strace, which puts a fault into its calls: ``python -m torture.traced OPTIONS -- ARGUMENTS``.

strace becomes a grandchild (``-D``), so that the process started is the daemon itself; only the calls that it is to
look at stop (``--seccomp-bpf``). It follows threads and workers, and counts the calls of each thread by themselves.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator

import box
from box import Box

from smp_proto.errors import SmpError
from smpctl import Client

WAIT_S = 60.0


@contextlib.contextmanager
def tracing(*options: str) -> Iterator[None]:
    """For a block, every daemon is started under strace with these options."""
    before = box.LAUNCH
    box.LAUNCH = ["-m", "torture.traced", *options, "--"]
    try:
        yield
    finally:
        box.LAUNCH = before


def start(machine: Box) -> bool:
    """Start a daemon that may refuse to; whether it answers."""
    machine.start(wait=False)
    assert machine.process
    end = time.monotonic() + WAIT_S
    while machine.process.poll() is None:
        with contextlib.suppress(SmpError, OSError), Client(str(machine.socket)) as client:
            client.status()
            return True
        assert time.monotonic() < end, "the daemon neither answers nor ends"
        time.sleep(0.02)
    return False


if __name__ == "__main__":
    at = sys.argv.index("--")
    command = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", *sys.argv[1:at], sys.executable, "-m", "smpd"]
    os.execvp("strace", [*command, *sys.argv[at + 1 :]])
