"""What the service manager is told of a running daemon: that its pipeline moves, and in one line how it is.

systemd restarts a daemon that says nothing for ``WatchdogSec=``. So it is told only as long as jobs move, or there
are none: a loop that is blocked says nothing anyway, and a pipeline in which everybody waits ends the same way. What
moves beside jobs, as listings of syncs and what people ask, does not count. A disk that is full is no reason: jobs go
on once there is space, and a daemon that is restarted meanwhile could not write the record of its start.
"""

import time
from collections.abc import Iterable
from typing import NamedTuple

import anyio
import structlog

from smp_proto.errors import SmpError
from smpd.host.notify import Notifier
from smpd.host.program import was_replaced
from smpd.host.pulse import Pulse
from smpd.verbs.daemon import Daemon

_log = structlog.get_logger("smpd")
_LOOK_S = 5.0
_LOOK_ALONE_S = 15.0  # where no manager listens
_PROBE_S = 60.0
_MIB = 1 << 20
_CAME, _LEFT = "smp_fetched_bytes_total", "smp_put_bytes_total"


class Counts(NamedTuple):
    """Jobs that run, that could, and that wait for something."""

    running: int
    queued: int
    waiting: int


def status_line(counts: Counts, came: float, left: float, troubles: Iterable[str]) -> str:
    """One line for ``systemctl status``; ``came`` and ``left`` are bytes a second, from and to remotes."""
    parts = [f"{number} {name}" for name, number in counts._asdict().items() if number]
    line = ", ".join(parts) or "idle"
    if came >= 1 or left >= 1:
        line += f", {came / _MIB:.1f} MiB/s in, {left / _MIB:.1f} MiB/s out"
    return "; ".join([line, *troubles])


class Telling:
    """Tells the manager of a daemon, for as long as :meth:`run` runs."""

    def __init__(self, daemon: Daemon, notifier: Notifier) -> None:
        self._daemon = daemon
        self._notifier = notifier
        self._pulse = Pulse(time.monotonic)
        self._moved = (time.monotonic(), 0.0, 0.0)
        self._said = ""
        self._stuck = False

    async def run(self) -> None:
        """Look and tell, until cancelled."""
        notifier = self._notifier
        look_s = _LOOK_S if notifier.listens else _LOOK_ALONE_S
        if notifier.watchdog_s:
            look_s = min(look_s, notifier.watchdog_s / 2)
        while True:
            if self._lives():
                notifier.alive()
            if (line := self._line()) != self._said:
                notifier.status(line)
                self._said = line
            await anyio.sleep(look_s)

    def _lives(self) -> bool:
        """Whether something moves, or has nothing to do, or is entitled to be still for as long as it was."""
        daemon = self._daemon
        heard = [host.worker.caller.heard for host in daemon.hosts if host.worker and host.worker.caller.heard]
        counts = daemon.scheduler.counts()
        waits = daemon.limiter.waiting  # for its turn, as it was told to
        full = daemon.scheduler.full
        busy = not (waits or full) and bool(counts[0] or (counts[1] and not daemon.scheduler.draining))
        still_s = self._pulse.still_s((daemon.events.job_seq, heard), busy=busy)
        patience = [compute.patience_s for compute in daemon.box.compute.all]
        stuck = still_s > daemon.config.jobs.stuck_s + max(patience, default=0.0)
        if stuck and not self._stuck:
            _log.error("nothing moves although there are jobs: the service manager is told no more", seconds=still_s)
        self._stuck = stuck
        return not stuck

    def _line(self) -> str:
        daemon = self._daemon
        metrics = daemon.metrics
        now, came, left = time.monotonic(), metrics.total(_CAME), metrics.total(_LEFT)
        then, came_then, left_then = self._moved
        self._moved = now, came, left
        seconds = max(now - then, 1e-3)
        # A remote that was removed takes its figures along.
        rates = max(0.0, (came - came_then) / seconds), max(0.0, (left - left_then) / seconds)
        return status_line(Counts(*daemon.scheduler.counts()), *rates, self._troubles())

    def _troubles(self) -> list[str]:
        daemon = self._daemon
        limits = daemon.limiter.views()
        health = [pool.gate.health for pool in daemon.pools.open.values()]
        found = [f"remote {each.name} is {each.state}" for each in health if each.state != "up"]
        if daemon.scheduler.draining:
            found.append("stopping")
        found += [f"remote {each.name} is left alone" if each.name else "quiet hours" for each in limits if each.quiet]
        if waiting := daemon.limiter.waiting:
            found.append(f"{waiting} wait for a limit")
        if was_replaced():
            found.append("another version was installed: restart smpd")
        if self._stuck:
            found.append("NOTHING MOVES")
        if daemon.audit.failure:
            found.append("the audit log cannot be written")
        if daemon.reloading.refused:
            found.append("the configuration was refused: smpctl status")
        if daemon.reloading.restart:
            found.append(f"needs a restart: {', '.join(daemon.reloading.restart)}")
        return found


async def probe_device(daemon: Daemon) -> str:
    """Start each compute process and have it try the device; returns what came of it, for people.

    A device that fails stops nothing: much can be done without, and ``smpctl doctor`` tries again.
    """
    found = []
    for compute in daemon.box.compute.all:
        try:
            with anyio.fail_after(_PROBE_S):
                ready = await compute.describe()
            found.append(f"{compute.distribution} on {ready.device}")
        except (SmpError, TimeoutError) as error:
            code = error.code if isinstance(error, SmpError) else "worker_died"
            _log.error("device probe failed", distribution=compute.distribution, code=code)
            found.append(f"{compute.distribution} FAILED ({code}): smpctl doctor")
    return "; ".join(found) or "no processors"
