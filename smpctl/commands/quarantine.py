"""The quarantine: what was refused, and why."""

import sys

import click

from smp_proto.control import JobView, QuarantineItem
from smp_proto.errors import UsageError
from smpctl.render import ago, facts, moment, size, table
from smpctl.session import Session, VerbGroup, on_terminal, shortest


@click.group(cls=VerbGroup)
def quarantine() -> None:
    """What was refused, and why; an ID may be cut short."""


@quarantine.command()
@click.option("--job", default="", metavar="JOB", help="Only what this job refused.")
def ls(session: Session, job: str) -> None:
    """List what was refused, newest first."""
    items = session.client.quarantine(session.job_id(job) if job else "")
    session.show(items, lambda: _items(items))


def _items(items: list[QuarantineItem]) -> None:
    if not items:
        click.echo("Nothing is in quarantine.")
        return
    short = shortest([item.id for item in items])
    rows = [
        (
            short[item.id],
            item.code if item.state == "quarantined" else f"{item.code} ({item.state})",
            size(item.size) if item.size else "",
            size(item.kept_bytes) if item.kept_bytes else "",
            ago(item.updated),
            item.job[:8],
            item.location,
        )
        for item in items
    ]
    table(("id", "why", "size", "kept", "refused", "job", "what"), rows, right=(2, 3))


@quarantine.command()
@click.argument("id")
def show(session: Session, id: str) -> None:  # noqa: A002 - the argument's name on the command line
    """Everything about an item. What it says of itself was not verified."""
    item = session.client.quarantine_show(session.quarantine_id(id))
    session.show(item, lambda: _facts(item))


def _facts(item: QuarantineItem) -> None:
    whole = ", all of it" if item.whole else ""
    facts(
        [
            ("id", item.id),
            ("what", item.location),
            ("why", f"{item.code}: {item.message}"),
            ("hint", item.hint),
            ("segment", str(item.segment) if item.segment >= 0 else ""),
            ("size", size(item.size)),
            ("version", item.pin),
            ("sender", f"{item.sender} (not verified)" if item.sender else ""),
            ("object", f"{item.object_id} (not verified)" if item.object_id else ""),
            ("kept", f"{size(item.kept_bytes)} of ciphertext{whole}" if item.kept_bytes else ""),
            ("not kept", item.left_out),
            ("refused", f"{moment(item.updated)}, {item.times} times since {moment(item.created)}"),
            ("job", f"{item.job}, {item.state}"),
        ]
    )


@quarantine.command()
@click.argument("id")
@click.option("--accept-older", is_flag=True, help="Take this very object although a newer one was accepted there.")
def retry(session: Session, id: str, accept_older: bool) -> None:  # noqa: A002
    """Resume the job that refused it: it fetches and verifies again whatever it refused."""
    job = session.client.quarantine_retry(session.quarantine_id(id), accept_older=accept_older)
    session.show(job, lambda: click.echo(f"job {job.id} is {job.state}; see: smpctl job wait {job.id}"))


@quarantine.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(session: Session, ids: tuple[str, ...], yes: bool) -> None:
    """Delete items. A job whose last item goes is cancelled."""
    items = [session.quarantine_id(each) for each in ids]
    if not yes:
        if not on_terminal(sys.stdin.fileno()):
            raise UsageError("bad_request", "deleting asks first, and there is no terminal", hint="add --yes")
        click.confirm(f"Delete {', '.join(items)} for good?", abort=True, err=True)
    for item in items:
        _removed(session, item, session.client.quarantine_remove(item))


def _removed(session: Session, item: str, job: JobView) -> None:
    shown = {"removed": item, "job": job.id, "state": job.state}
    session.show(shown, lambda: click.echo(f"{item} is deleted; job {job.id} is {job.state}"))
