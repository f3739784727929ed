"""Verbs that make jobs: put, get, run."""

import json
from collections.abc import Callable
from typing import Any, get_args

import click

from smp_proto.control import GetSpec, JobView, Priority, Result, RunSpec
from smp_proto.errors import SmpError, UsageError
from smpctl.following import Interrupted, closing, exit_code, follow, interrupted, report_failed
from smpctl.progress import bar
from smpctl.session import Session, location, verb

_accept_older = click.option(
    "--accept-older", is_flag=True, help="Also an object older than what was accepted at its place before."
)


def _job_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--detach", is_flag=True, help="Return once the job is accepted."),
        click.option("--priority", type=click.Choice(get_args(Priority)), default="normal", show_default=True),
        click.option("--key", metavar="TEXT", help="Makes it idempotent: the same again is the same job."),
    ):
        function = option(function)
    return function


@verb()
@click.argument("source", metavar="REMOTE:PATH")
@click.option("--export", metavar="DIR", help="Then open it in the clear into files below DIR.")
@click.option("--force", is_flag=True, help="Let --export replace files.")
@_accept_older
@_job_options
def get(
    session: Session,
    source: str,
    *,
    export: str | None,
    force: bool,
    accept_older: bool,
    detach: bool,
    priority: Priority,
    key: str | None,
) -> int:
    """Bring an object into the vault, sealed.

    A path that ends in / is all that lies below it: each sealed object there, or in a remote of mode standard the
    whole folder as one object.
    """
    _check_export(export, detach)
    job = session.client.submit(GetSpec(location(source), accept_older), key=key, priority=priority)
    return _finish(session, job, detach, export, force)


@verb()
@click.argument("processor")
@click.argument("source", metavar="REMOTE:PATH")
@click.option("-p", "--param", "params", multiple=True, metavar="K=V", help="A parameter; V as JSON or as text.")
@click.option("--to", "target", metavar="REMOTE:PATH", help="Where the sealed results go; the vault by default.")
@click.option("--export", metavar="DIR", help="Open the results in the clear into files below DIR.")
@click.option("--force", is_flag=True, help="Let --export replace files.")
@click.option("--for", "keys", multiple=True, metavar="KEY", help="Who can open the results; else sender and box.")
@_accept_older
@_job_options
def run(
    session: Session,
    processor: str,
    source: str,
    *,
    params: tuple[str, ...],
    target: str | None,
    export: str | None,
    force: bool,
    keys: tuple[str, ...],
    accept_older: bool,
    detach: bool,
    priority: Priority,
    key: str | None,
) -> int:
    """Run a processor over an object.

    A path that ends in / is all that lies below it. The results of all are one object, each named after its own.
    """
    _check_export(export, detach)
    if export and target:
        raise UsageError("bad_request", "--to and --export say two things", hint="use one of them")
    spec = RunSpec(
        location(source),
        processor,
        parameters(params),
        location(target) if target else "",
        recipients(session, keys),
        accept_older,
    )
    return _finish(session, session.client.submit(spec, key=key, priority=priority), detach, export, force)


@verb()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.argument("target", metavar="REMOTE:PATH")
@click.option("--to", "keys", multiple=True, required=True, metavar="KEY", help="Who can open it; may be repeated.")
@_job_options
def put(
    session: Session,
    paths: tuple[str, ...],
    target: str,
    *,
    keys: tuple[str, ...],
    detach: bool,
    priority: Priority,
    key: str | None,
) -> int:
    """Seal files and upload them as one object. Folders are walked; links are not followed."""
    from smpctl.files import collect  # noqa: PLC0415 - only a put pays for it

    target = location(target)
    readers = recipients(session, keys)
    files = collect(paths, skipped=lambda path: session.note(f"smpctl: left out {path}: a link or no file"))
    try:
        with bar(f"sealing {len(files)} files", quiet=session.as_json) as shown:
            job = session.client.put(
                files,
                target,
                readers,
                key=key,
                priority=priority,
                progress=lambda done, total: shown.update("sealing", done, total),
            )
    except KeyboardInterrupt:
        session.note("smpctl: nothing was kept: the files were not sealed yet")
        raise
    return _finish(session, job, detach, None, force=False)


def parameters(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``k=v`` pairs; a value that is JSON is taken as such, any other as text.

    Raises:
        UsageError: ``bad_parameter``.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name or name in found:
            raise UsageError("bad_parameter", f"-p {pair} is no new K=V", hint="for example: -p width=512")
        try:
            found[name] = json.loads(text)
        except (ValueError, RecursionError):
            found[name] = text
    return found


def recipients(session: Session, keys: tuple[str, ...]) -> list[str]:
    """The public keys named, as text."""
    if not keys:
        return []
    from smpctl.keyring import Keyring  # noqa: PLC0415 - brings the cryptography along

    keyring = Keyring()
    return [keyring.recipient(key, session.client).text() for key in keys]


def _check_export(export: str | None, detach: bool) -> None:
    if export and detach:
        hint = "leave --detach out, or later: smpctl vault open ID -o DIR"
        raise UsageError("bad_request", "an export has to wait for its job", hint=hint)


def _export(session: Session, job: JobView, result: Result, folder: str, force: bool) -> int:
    """Open what a job brought into a folder, all of it or nothing; how many files it was."""
    item = result.vault_id
    try:
        if item:
            return len(session.client.vault_open(item, folder, overwrite=force))
        items = [each.id for each in session.client.vault(job.id)]
        return sum(map(len, session.client.vault_open_all(items, folder, overwrite=force).values()))
    except SmpError as error:
        there = f"all is in the vault: smpctl vault ls --job {job.id}"
        if found := item or error.details.get("item"):
            there = f"it is in the vault: smpctl vault open {found} -o DIR"
        error.hint = f"{error.hint}; {there}".lstrip("; ")
        raise


def _finish(session: Session, job: JobView, detach: bool, export: str | None, force: bool) -> int:
    if detach:
        session.show(job, lambda: click.echo(job.id))
        return 0
    try:
        job = follow(session, job)
    except Interrupted as stopped:
        return interrupted(session, stopped)
    if job.state != "done":
        session.show(job, lambda: None)
        report_failed(session, job)
        return exit_code(job)
    if export and job.result:
        session.note(f"{_export(session, job, job.result, export, force)} files, in the clear, in {export}")
    session.show(job, lambda: click.echo(closing(job)))
    return 0
