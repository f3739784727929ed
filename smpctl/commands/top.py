"""``smpctl top``: what goes on, once a second, with the rates that two looks give."""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial

import click
import msgspec

from smp_proto.control import JobView, RemoteLoad, Status
from smp_proto.errors import DaemonError
from smpctl.render import duration, plain, remote_health, size
from smpctl.session import Session, on_terminal, verb

_SHOWN = 20
_STDOUT = 1


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


@verb()
@click.option("--once", is_flag=True, help="Look once and end.")
@click.option("--interval", default=1.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Seconds.")
def top(session: Session, once: bool, interval: float) -> None:
    """Jobs, workers and remotes, as they go, until Ctrl-C."""
    if once:
        found = _look(session, None)
        session.show(found, partial(_print, found))
    elif session.as_json or not on_terminal(_STDOUT):
        for each in _looks(session, interval, session.note):
            session.show(each, partial(_print, each))
    else:
        _screen(session, interval)


def _print(found: Look) -> None:
    click.echo("\n".join(_lines(found)))


def _screen(session: Session, interval: float) -> None:
    from rich.live import Live  # noqa: PLC0415 - only a terminal pays for it
    from rich.text import Text  # noqa: PLC0415

    with Live(Text(""), screen=True, auto_refresh=False) as live, contextlib.suppress(KeyboardInterrupt):

        def say(text: str) -> None:
            live.update(Text(text), refresh=True)

        for each in _looks(session, interval, say):
            say("\n".join(_lines(each)))


def _looks(session: Session, interval: float, say: Callable[[str], None]) -> Iterator[Look]:
    """Look again and again; a daemon that is away is waited for, and that is said."""
    before: Look | None = None
    away = False
    while True:
        try:
            found = _look(session, before)
        except DaemonError as error:
            if error.code != "daemon_down" or before is None:
                raise
            if not away:
                say(f"smpctl: {error.message}; waiting for it to come back")
            away = True
        else:
            if before is not None and found.status.boot_id != before.status.boot_id:
                say("smpctl: smpd was started again")
            before, away = found, False
            yield found
        time.sleep(interval)


def _look(session: Session, before: Look | None) -> Look:
    status = session.client.status()
    jobs = session.client.jobs(("running", "waiting", "queued", "paused"), limit=1000)
    now = time.time()
    if before is None or before.status.boot_id != status.boot_id:
        return Look(now, status, [JobRate(job) for job in jobs], [RemoteRate(load) for load in status.loads])
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
    )


def _grown(job: JobView, before: JobView | None) -> int:
    """Bytes done since; a new phase counts from its start."""
    if before is None:
        return 0
    return max(0, job.done_bytes - (before.done_bytes if before.phase == job.phase else 0))


def _lines(found: Look) -> list[str]:
    status = found.status
    jobs = ", ".join(f"{count} {name}" for name, count in status.jobs.items() if count) or "no jobs"
    lines = [
        f"smpd {status.version}, process {status.pid}, up {duration(status.uptime_s)}: {jobs}",
        f"memory {size(status.rss_bytes)}, rings {size(status.ring_bytes)}, free {size(status.free_bytes)}; "
        f"audit {'ok' if status.audit_ok else 'BROKEN'}, {status.audit_unsigned} unsigned; "
        f"journal {status.journal_waiting} waiting",
    ]
    lines += [
        f"{worker.role} {worker.label}: process {worker.pid}, {size(worker.rss_bytes)}, {worker.restarts} restarts"
        if worker.pid
        else f"{worker.role} {worker.label}: idle"
        for worker in status.workers
    ]
    lines += [
        f"remote {each.remote.name}: {each.remote.in_use} of {each.remote.lanes} lanes, window {each.remote.window}, "
        f"{each.ranges_per_s:.0f} ranges/s, {size(each.bytes_per_s)}/s"
        for each in found.remotes
    ]
    lines += [f"remote {remote_health(each)}" for each in status.health if each.state != "up"]
    order = {"running": 0, "waiting": 1, "queued": 2, "paused": 3}
    listed = sorted(found.jobs, key=lambda each: order.get(each.job.state, 4))
    lines += [_job(each) for each in listed[:_SHOWN]]
    if len(listed) > _SHOWN:
        lines.append(f"and {len(listed) - _SHOWN} more")
    return [plain(line) for line in lines]


def _job(each: JobRate) -> str:
    job = each.job
    part = f" {job.done_bytes * 100 // job.total_bytes} % of {size(job.total_bytes)}" if job.total_bytes else ""
    rate = f", {size(each.bytes_per_s)}/s" if job.state == "running" else ""
    what = " ".join(word for word in (job.processor, job.source, job.target) if word)
    return f"{job.id[:8]} {job.kind} {job.priority} {job.state} {job.phase}{part}{rate}  {what}"
