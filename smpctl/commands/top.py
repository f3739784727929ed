"""``smpctl top``: what goes on, once a second, with the rates that two looks give."""

import contextlib
import math
import time
from collections.abc import Iterator
from functools import partial

import click
import msgspec

from smp_proto.control import JobView, RemoteLoad, Status, SyncView
from smp_proto.errors import DaemonError, UsageError
from smpctl.client import Client
from smpctl.render import duration, plain, remote_health, size, sync_line
from smpctl.session import Session, on_terminal, verb

JOBS_SHOWN = 20
_STDOUT = 1
_ORDER = {"running": 0, "waiting": 1, "queued": 2, "paused": 3}


class JobRate(msgspec.Struct):
    """A job that has not ended, and bytes per second since the last look."""

    job: JobView
    bytes_per_s: float = 0.0


class RemoteRate(msgspec.Struct):
    """A remote in use, and what came per second since the last look."""

    remote: RemoteLoad
    ranges_per_s: float = 0.0
    bytes_per_s: float = 0.0


class Look(msgspec.Struct):
    """One look; ``at`` is seconds since the epoch."""

    at: float
    status: Status
    jobs: list[JobRate]
    remotes: list[RemoteRate]
    syncs: list[SyncView] = []

    def listed(self) -> list[JobRate]:
        """The jobs, those that run first."""
        return sorted(self.jobs, key=lambda each: _ORDER.get(each.job.state, 4))


class Away(msgspec.Struct):
    """The daemon does not answer: since when, and what was seen last."""

    since: float
    last: Look


@verb()
@click.option("--once", is_flag=True, help="Look once and end.")
@click.option("--interval", default=1.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Seconds.")
def top(session: Session, once: bool, interval: float) -> None:
    """Jobs, workers, remotes and syncs, as they go, until Ctrl-C."""
    if math.isnan(interval):  # which no range refuses
        raise UsageError("bad_request", "--interval nan is no time", hint="give seconds, as in: --interval 2")
    if once:
        found = look(session.client, None)
        session.show(found, partial(_print, found))
    elif session.as_json or not on_terminal(_STDOUT):
        _follow(session, interval)
    else:
        _screen(session, interval)


def _print(found: Look) -> None:
    click.echo("\n".join(lines(found)))


def _follow(session: Session, interval: float) -> None:
    """Look after look, as objects or as lines."""
    boot = ""
    away = False
    for each in _looks(session, interval):
        if isinstance(each, Away):
            if not away:
                session.note("smpctl: smpd is away; waiting for it to come back")
            away = True
            continue
        if boot and each.status.boot_id != boot:
            session.note("smpctl: smpd was started again")
        boot, away = each.status.boot_id, False
        session.show(each, partial(_print, each))


def _screen(session: Session, interval: float) -> None:
    from rich.live import Live  # noqa: PLC0415 - only a terminal pays for it

    from smpctl.screen import drawn  # noqa: PLC0415

    with Live(screen=True, auto_refresh=False) as live, contextlib.suppress(KeyboardInterrupt):
        for each in _looks(session, interval):
            live.update(drawn(each, live.console.height), refresh=True)


def _looks(session: Session, interval: float) -> Iterator[Look | Away]:
    """Look again and again; a daemon that goes away is waited for."""
    last: Look | None = None
    since = 0.0
    while True:
        try:
            found = look(session.client, last)
        except DaemonError as error:
            if error.code != "daemon_down" or last is None:
                raise
            since = since or time.time()
            yield Away(since, last)
        else:
            last, since = found, 0.0
            yield found
        time.sleep(interval)


def look(client: Client, before: Look | None) -> Look:
    """Look now; rates are since the look ``before``."""
    status = client.status()
    jobs = client.jobs(("running", "waiting", "queued", "paused"), limit=1000)
    syncs = client.syncs()
    now = time.time()
    if before is None or before.status.boot_id != status.boot_id:
        return Look(now, status, [JobRate(job) for job in jobs], [RemoteRate(load) for load in status.loads], syncs)
    passed = max(now - before.at, 1e-3)
    done = {each.job.id: each.job for each in before.jobs}
    came = {each.remote.name: each.remote for each in before.remotes}
    return Look(
        now,
        status,
        [JobRate(job, _grown(job, done.get(job.id)) / passed) for job in jobs],
        [
            RemoteRate(
                load,
                max(0, load.ranges - came[load.name].ranges) / passed if load.name in came else 0.0,
                max(0, load.bytes - came[load.name].bytes) / passed if load.name in came else 0.0,
            )
            for load in status.loads
        ],
        syncs,
    )


def _grown(job: JobView, before: JobView | None) -> int:
    """Bytes done since; a new phase counts from its start."""
    if before is None:
        return 0
    return max(0, job.done_bytes - (before.done_bytes if before.phase == job.phase else 0))


def lines(found: Look) -> list[str]:
    """A look in lines, without anything that only a terminal understands."""
    status = found.status
    said = [headline(status), second_line(status)]
    said += [
        f"{worker.role} {worker.label}: process {worker.pid}, {size(worker.rss_bytes)}, {worker.restarts} restarts"
        + (f", {worker.device}" if worker.device else "")
        if worker.pid
        else f"{worker.role} {worker.label}: idle"
        for worker in status.workers
    ]
    said += [
        f"remote {each.remote.name}: {each.remote.in_use} of {each.remote.lanes} lanes, window {each.remote.window}, "
        f"ranges of {size(each.remote.range_bytes)}, {each.ranges_per_s:.0f} ranges/s, {size(each.bytes_per_s)}/s"
        for each in found.remotes
    ]
    said += [f"remote {remote_health(each)}" for each in status.health if each.state != "up"]
    said += [f"sync {sync_line(each)}" for each in found.syncs]
    listed = found.listed()
    said += [_job(each) for each in listed[:JOBS_SHOWN]]
    if len(listed) > JOBS_SHOWN:
        said.append(f"and {len(listed) - JOBS_SHOWN} more")
    return [plain(line) for line in said]


def headline(status: Status) -> str:
    """The daemon, and how many jobs there are."""
    jobs = ", ".join(f"{count} {name}" for name, count in status.jobs.items() if count) or "no jobs"
    return f"smpd {status.version}, process {status.pid}, up {duration(status.uptime_s)}: {jobs}"


def second_line(status: Status) -> str:
    """Memory, disk, audit log, journal, quarantine."""
    return (
        f"memory {size(status.rss_bytes)}, rings {size(status.ring_bytes)}, free {size(status.free_bytes)}; "
        f"audit {'ok' if status.audit_ok else 'BROKEN'}, {status.audit_unsigned} unsigned; "
        f"journal {status.journal_waiting} waiting"
        + (f"; {status.quarantine_items} in quarantine" if status.quarantine_items else "")
    )


def what(job: JobView) -> str:
    """Processor, source and target."""
    return " ".join(word for word in (job.processor, job.source, job.target) if word)


def stage(job: JobView) -> str:
    """What a running job is at."""
    return job.stages[-1].name if job.state == "running" and job.stages else job.phase


def _job(each: JobRate) -> str:
    job = each.job
    part = f" {job.done_bytes * 100 // job.total_bytes} % of {size(job.total_bytes)}" if job.total_bytes else ""
    rate = f", {size(each.bytes_per_s)}/s" if job.state == "running" else ""
    return f"{job.id[:8]} {job.kind} {job.priority} {job.state} {stage(job)}{part}{rate}  {what(job)}"
