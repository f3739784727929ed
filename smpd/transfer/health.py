"""Whether a compute process that has done a run should do the next one: by what it keeps, and how that grows.

Pure arithmetic over what is measured between runs, when no data of a job is there: memory of the host as the kernel
counts it, memory of the device as the process says. Libraries take memory at first use and keep it, so the first runs
do not count; allocators take it in steps, so a leak need not show at every run.
"""

from collections import deque
from itertools import pairwise
from typing import Literal, NamedTuple

WARM_RUNS = 2
RISING = 0.75  # of the steps from run to run, the part that must go up where memory leaks

Verdict = Literal["", "kept", "leak", "device leak"]


class HealthSettings(NamedTuple):
    """When a process is replaced.

    Args:
        kept_bytes: it keeps more than this beyond what it started with; 0 for never.
        leak_bytes: over ``leak_runs`` runs it grew by so much, and at most of them; 0 for never.
        leak_runs: how many runs are looked at, 2 at least.
    """

    kept_bytes: int = 0
    leak_bytes: int = 64 << 20
    leak_runs: int = 16


class Trend:
    """How something grows from run to run.

    Args:
        runs: how many steps are looked at.
    """

    def __init__(self, runs: int) -> None:
        self._seen: deque[int] = deque(maxlen=runs + 1)

    def add(self, value: int) -> None:
        """It is so much now."""
        self._seen.append(value)

    @property
    def slope(self) -> float:
        """By how much it grew from run to run: the least-squares line through what is looked at."""
        count = len(self._seen)
        if count < 2:
            return 0.0
        middle, mean = (count - 1) / 2, sum(self._seen) / count
        covariance = sum((index - middle) * (value - mean) for index, value in enumerate(self._seen))
        return covariance / sum((index - middle) ** 2 for index in range(count))

    def leaks(self, least: int) -> bool:
        """Whether over all runs that are looked at it grew by at least so much, and at most of them."""
        seen = list(self._seen)
        if len(seen) < (self._seen.maxlen or 0):
            return False
        if seen[-1] - seen[0] < least:
            return False
        return sum(after > before for before, after in pairwise(seen)) >= RISING * (len(seen) - 1)


class Health:
    """What one compute process keeps.

    Args:
        ready_bytes: memory of the host that it had when it was ready.
    """

    def __init__(self, ready_bytes: int, settings: HealthSettings) -> None:
        self._ready_bytes = ready_bytes
        self._settings = settings
        self._host, self._device = Trend(settings.leak_runs), Trend(settings.leak_runs)
        self.runs = 0
        self.kept_bytes = 0
        self.device_bytes = 0

    @property
    def growth_bytes(self) -> float:
        """By how much its memory of the host grows from run to run."""
        return self._host.slope

    def after_run(self, host_bytes: int, device_bytes: int) -> Verdict:
        """Note what it has after a run, and say why another process should do the next, if it should."""
        settings = self._settings
        self.runs += 1
        self.kept_bytes = max(0, host_bytes - self._ready_bytes)
        self.device_bytes = device_bytes
        if 0 < settings.kept_bytes < self.kept_bytes:
            return "kept"
        if self.runs > WARM_RUNS:
            self._host.add(host_bytes)
            self._device.add(device_bytes)
            if settings.leak_bytes and self._host.leaks(settings.leak_bytes):
                return "leak"
            if settings.leak_bytes and self._device.leaks(settings.leak_bytes):
                return "device leak"
        return ""
