"""Telling somebody when something is wrong."""

import click

from smp_proto.errors import ResourceError
from smpctl.render import plain
from smpctl.session import Session, VerbGroup


@click.group(cls=VerbGroup)
def notify() -> None:
    """Tell somebody when something is wrong, by notify.command of the daemon's configuration."""


@notify.command()
def test(session: Session) -> None:
    """Run the command with a message that says it is a test."""
    try:
        found = session.client.notify_test()
    except ResourceError as error:
        if said := str(error.details.get("said", "")).strip():
            click.echo(plain(said), err=True)
        raise
    session.show(found, lambda: click.echo(f"told, in {found.seconds:.1f} s"))
