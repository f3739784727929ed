"""What processes cost while they run: CPU time and peak memory, read from /proc.

``getrusage`` is of no use for the peak: a child begins with the peak of the process that forked it.
"""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.results import Sample

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_EVERY_S = 0.02
TIMEOUT_S = 120.0


def descendants(pid: int) -> list[int]:
    """A process and all that came of it, as far as they run."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{each}/task"):
                found += map(int, Path(f"/proc/{each}/task/{task}/children").read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its descendants, those that ended and were waited for included."""
    total = 0
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total * _TICK_S


def status_value(pid: int, key: str) -> int:
    """A number from /proc/PID/status (kB as bytes); 0 when it is not there (any more)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                words = line.split()
                return int(words[1]) * (1024 if words[-1] == "kB" else 1)
    return 0


def _role(pid: int) -> str:
    """A name for a process: its module or script, else its program."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if "-m" in words:
            return words[words.index("-m") + 1]
        return os.path.basename(words[0])
    return ""


class Peaks:
    """The peak memory of a process and its descendants, by role; several of one role are numbered."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peaks: dict[tuple[str, int], int] = {}

    def look(self) -> None:
        """Note what the kernel has noted so far."""
        for pid in descendants(self._pid):
            peak, role = status_value(pid, "VmHWM"), _role(pid)
            if peak and role:
                self._peaks[role, pid] = peak

    def by_role(self) -> dict[str, int]:
        """``{"smpd.fetch": …, "smpd.fetch 2": …}``, in bytes."""
        found: dict[str, int] = {}
        for role, pid in sorted(self._peaks):
            number = 1 + sum(1 for name in found if name.partition(" ")[0] == role)
            found[role if number == 1 else f"{role} {number}"] = self._peaks[role, pid]
        return found


def peaks(pid: int) -> dict[str, int]:
    """The peaks so far of a process that runs, and of its descendants, by role."""
    found = Peaks(pid)
    found.look()
    return found.by_role()


@contextlib.contextmanager
def costs(pid: int, sample: Sample) -> Iterator[None]:
    """Add what a running process spends in the block to a sample: seconds, CPU seconds, peak memory."""
    before, started = cpu_seconds(pid), time.perf_counter()
    yield
    sample.seconds = time.perf_counter() - started
    sample.cpu_s = cpu_seconds(pid) - before
    sample.peak_rss = peaks(pid)


class Command(NamedTuple):
    """A program's command line, and its environment."""

    argv: Sequence[str | Path]
    env: Mapping[str, str]

    def run(self) -> Sample:
        """As :func:`run_program`."""
        return run_program(self.argv, env=self.env)


def run_program(argv: Sequence[str | Path], **options: Any) -> Sample:
    """Run a program to its end, with its output thrown away.

    Raises:
        RuntimeError: it failed; the message holds the end of what it wrote to standard error.
    """
    options.setdefault("stdout", subprocess.DEVNULL)
    started = time.perf_counter()
    with subprocess.Popen(
        list(map(str, argv)), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options
    ) as process:
        watched, ended = Peaks(process.pid), threading.Event()

        def watch() -> None:
            while not ended.wait(_EVERY_S):
                watched.look()
                if time.perf_counter() - started > TIMEOUT_S:
                    process.kill()

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            assert process.stderr
            complaint = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            ended.set()
            watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
    sample = Sample(time.perf_counter() - started, cpu_s=usage.ru_utime + usage.ru_stime, peak_rss=watched.by_role())
    if process.returncode:
        raise RuntimeError(f"{os.path.basename(str(argv[0]))} exited {process.returncode}: {complaint[-400:].strip()}")
    return sample
