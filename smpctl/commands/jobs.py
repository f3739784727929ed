"""Jobs: list, watch, show, wait, pause, resume, cancel; and the stream of events."""

from functools import partial
from typing import Any, get_args

import click
import msgspec

from smp_proto.control import FINAL_STATES, Event, JobStage, JobState, JobView
from smpctl.commands.syncs import seconds
from smpctl.following import Interrupted, exit_code, follow, interrupted, report_failed
from smpctl.render import ago, duration, facts, moment, plain, size, state, table
from smpctl.session import Session, VerbGroup, shortest, verb
from smpctl.watching import job_of

_BAR = 32
_NUMBER_MAX = 100  # digits


@verb()
@click.option("--watch", "watching", is_flag=True, help="Go on and print each change.")
@click.option("--state", "states", multiple=True, type=click.Choice(get_args(JobState)), help="Only these.")
@click.option("-n", "--limit", default=100, show_default=True, type=click.IntRange(1), help="At most so many.")
def jobs(session: Session, watching: bool, states: tuple[JobState, ...], limit: int) -> None:
    """List the jobs, newest first."""
    if watching:
        for event in session.client.watch():
            found = job_of(event)
            if found is not None and (not states or found.state in states):
                session.show(found, partial(click.echo, _line(found)))
        return
    listed = session.client.jobs(states, limit=limit)
    session.show(listed, lambda: _table(listed))


def _line(job: JobView) -> str:
    done = f" {job.done_bytes * 100 // job.total_bytes} %" if job.total_bytes and job.state == "running" else ""
    why = f": {job.error.message}" if job.error and job.state not in ("done", "running") else ""
    return f"{moment(job.updated)}  {job.id[:8]}  {job.kind:<4} {state(job.state)}{done}  {plain(_what(job) + why)}"


def _what(job: JobView) -> str:
    parts = [job.processor, job.source, f"to {job.target}" if job.target else ""]
    return " ".join(part for part in parts if part)


def _table(found: list[JobView]) -> None:
    if not found:
        click.echo("No jobs. Make one with: smpctl get REMOTE:PATH")
        return
    short = shortest([job.id for job in found])
    rows = [
        (
            short[job.id],
            job.kind,
            job.state,
            job.priority,
            f"{job.done_bytes * 100 // job.total_bytes} %" if job.total_bytes else "",
            size(job.total_bytes) if job.total_bytes else "",
            ago(job.created),
            _what(job),
        )
        for job in found
    ]
    table(("id", "kind", "state", "priority", "done", "size", "made", "what"), rows, right=(4, 5))


@click.group(cls=VerbGroup)
def job() -> None:
    """One job; an ID may be cut short."""


@job.command()
@click.argument("id")
def show(session: Session, id: str) -> None:  # noqa: A002 - the argument's name on the command line
    """Everything about a job."""
    found = session.client.job(session.job_id(id))
    session.show(found, lambda: _facts(found))


def _facts(found: JobView) -> None:
    result, error = found.result, found.error
    rows = [
        ("id", found.id),
        ("kind", found.kind),
        ("state", f"{found.state}{', ' + found.phase if found.phase else ''}"),
        ("priority", found.priority),
        ("owner", found.owner),
        ("source", found.source),
        ("processor", found.processor),
        ("target", found.target),
        ("made", moment(found.created)),
        ("changed", moment(found.updated)),
        ("attempt", str(found.attempt) if found.attempt > 1 else ""),
        ("retry", moment(found.retry_at)),
        ("moved", f"{size(found.done_bytes)} of {size(found.total_bytes)}" if found.total_bytes else ""),
        ("error", f"{error.code}: {error.message}" if error else ""),
        ("hint", error.hint if error else ""),
    ]
    if result:
        rows += [
            ("vault", result.vault_id),
            ("object", result.object_id),
            ("entries", str(result.entries)),
            ("size", f"{size(result.plain_bytes)}, sealed {size(result.sealed_bytes)}"),
            ("digest", result.content_digest),
        ]
    facts([*rows, ("device", found.transfer.device)])
    if found.stages:
        click.echo()
        _timeline(found.stages)


def _timeline(stages: list[JobStage]) -> None:
    """When each stage began, how long it took, and what part of all it was; and the same by name, where one repeats."""
    total = sum(each.seconds for each in stages) or 1.0
    rows = [
        (each.name, f"+{_seconds(each.at)}", _seconds(each.seconds), _part(each.seconds, total), _bar(each, stages))
        for each in stages
    ]
    table(("stage", "began", "took", "of all", ""), rows, right=(1, 2, 3))
    sums: dict[str, float] = {}
    for each in stages:
        sums[each.name] = sums.get(each.name, 0.0) + each.seconds
    if len(sums) < len(stages):
        ranked = sorted(sums.items(), key=lambda each: -each[1])
        click.echo()
        table(("in all", "took", "of all"), [(n, _seconds(s), _part(s, total)) for n, s in ranked], right=(1, 2))


def _seconds(count: float) -> str:
    return f"{count:.3f} s" if count < 60 else duration(count)


def _part(count: float, total: float) -> str:
    return f"{count * 100 / total:.0f} %"


def _bar(stage: JobStage, stages: list[JobStage]) -> str:
    """Where it lies between the first and the last."""
    first, last = stages[0].at, max(each.at + each.seconds for each in stages)
    scale = _BAR / ((last - first) or 1.0)
    begin = min(int((stage.at - first) * scale), _BAR - 1)
    return " " * begin + "━" * max(1, min(round(stage.seconds * scale), _BAR - begin))


@job.command()
@click.argument("id")
def wait(session: Session, id: str) -> int:  # noqa: A002
    """Wait until a job is done; exits with the code of its error."""
    try:
        found = follow(session, session.client.job(session.job_id(id)))
    except Interrupted as stopped:
        return interrupted(session, stopped)
    session.show(found, lambda: _facts(found))
    if found.state != "done" and found.state in FINAL_STATES:
        report_failed(session, found)
    return exit_code(found)


def _move(session: Session, found: JobView) -> None:
    session.show(found, lambda: click.echo(f"job {found.id} is {found.state}"))


@job.command()
@click.argument("id")
def pause(session: Session, id: str) -> None:  # noqa: A002
    """Pause a job; what was fetched is kept."""
    _move(session, session.client.pause(session.job_id(id)))


@job.command()
@click.argument("id")
def resume(session: Session, id: str) -> None:  # noqa: A002
    """Let a paused job go on."""
    _move(session, session.client.resume(session.job_id(id)))


@job.command()
@click.argument("id")
def cancel(session: Session, id: str) -> None:  # noqa: A002
    """Cancel a job."""
    _move(session, session.client.cancel(session.job_id(id)))


@verb()
@click.option("--since", default="0", metavar="WHEN", help="Go on after this number, or begin 10m ago, 2h ago.")
def events(session: Session, since: str) -> None:
    """Print events as they happen, until Ctrl-C.

    The daemon keeps the last 4,096 changes since it started.
    """
    number, ago_s = (int(since), 0.0) if since.isdecimal() and len(since) < _NUMBER_MAX else (0, seconds(since))
    for event in session.client.watch(number, ago_s=ago_s):
        session.show(_builtin(event), partial(click.echo, _event(event)))


def _builtin(event: Event) -> dict[str, Any]:
    return {"seq": event.seq, "at": event.at, "kind": event.kind, "body": msgspec.msgpack.decode(event.body)}


def _event(event: Event) -> str:
    found = job_of(event)
    text = _line(found) if found else f"{moment(event.at)}  {plain(str(msgspec.msgpack.decode(event.body)))}"
    return f"{event.seq:>8}  {plain(event.kind):<8}  {text}"
