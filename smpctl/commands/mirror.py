"""Keeping a folder sealed in buckets."""

import time
from typing import get_args

import click

from smp_proto.control import Priority
from smp_proto.errors import DaemonError, NotFoundError, ResourceError, SmpError, UsageError
from smpctl.commands.syncs import seconds
from smpctl.commands.transfer import recipients
from smpctl.session import Session, location, verb

_FIRST_S = 2.0  # until the second look: the first takes nothing, as no other agrees with it


@verb()
@click.argument("folder", metavar="LOCAL")
@click.argument("targets", nargs=-1, required=True, metavar="REMOTE:PREFIX...")
@click.option("--to", "keys", multiple=True, required=True, metavar="KEY", help="Who can open it; may be repeated.")
@click.option("--once", is_flag=True, help="Do it once, which is what it does without --watch.")
@click.option("--watch", is_flag=True, help="Do it again and again until Ctrl-C.")
@click.option("--every", default="30s", show_default=True, metavar="TIME", help="With --watch: between two looks.")
@click.option("--delete", is_flag=True, help="Remove the objects of files that are gone.")
@click.option("--names", "named", is_flag=True, help="Name objects after their files, which the storage then reads.")
@click.option("--priority", type=click.Choice(get_args(Priority)), default="normal", show_default=True)
def mirror(
    session: Session,
    folder: str,
    targets: tuple[str, ...],
    *,
    keys: tuple[str, ...],
    once: bool,
    watch: bool,
    every: str,
    delete: bool,
    named: bool,
    priority: Priority,
) -> int:
    """Keep a folder sealed in one or several remotes: a file is sealed once, and only when it changed."""
    from smpctl.mirroring import Mirror, Mirrored, State  # noqa: PLC0415 - only a mirror pays for it

    if once and watch:
        raise UsageError("bad_request", "--once and --watch say two things", hint="use one of them")
    once, pause_s, first = not watch, seconds(every), True

    def shown(found: Mirrored) -> None:
        kept = f", {found.gone} gone but kept there (--delete removes them)" if found.gone else ""
        click.echo(f"{found.sent} sent, {found.same} unchanged, {found.removed} removed, {found.failed} failed{kept}")

    def note(text: str) -> None:
        session.note(f"smpctl: {text}")

    with State(folder) as state:
        places = [location(each) for each in targets]
        found = Mirror(
            session.client, state, places, recipients(session, keys), named=named, priority=priority, note=note
        )
        while True:
            try:
                done = found.round(delete=delete, settled=watch)
            except SmpError as error:  # a folder went, a disk is full: it may pass
                passes = error.retryable or isinstance(error, DaemonError | NotFoundError | ResourceError)
                if once or not passes:
                    raise
                note(f"{error.message}; tried again in {pause_s:.0f} s")
            else:
                if once or done.sent or done.removed or done.failed:
                    session.show(done, lambda done=done: shown(done))  # type: ignore[misc]
                if once:
                    return done.exit_code
            time.sleep(min(pause_s, _FIRST_S) if first else pause_s)
            first = False
