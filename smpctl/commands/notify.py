"""Telling somebody when something is wrong."""

from collections.abc import Iterable

import click

from smp_proto.control import NotifyTried
from smp_proto.errors import SmpError
from smpctl.render import plain
from smpctl.session import Session, VerbGroup


@click.group(cls=VerbGroup)
def notify() -> None:
    """Tell somebody when something is wrong, by notify.command or notify.url of the daemon's configuration."""


@notify.command()
def test(session: Session) -> None:
    """Have the command and the webhook tell a message that says it is a test."""
    found = session.client.notify_test()
    session.show(found, lambda: _show(found.tried))
    for each in found.tried:
        if each.error is not None:
            raise SmpError.from_body(each.error)


def _show(tried: Iterable[NotifyTried]) -> None:
    for each in tried:
        if each.error is None:
            click.echo(f"{plain(each.by)}: told, in {each.seconds:.1f} s")
            continue
        click.echo(f"NOT told: {plain(each.error.message)}")
        if said := str(each.error.details.get("said", "")).strip():
            click.echo(plain(said), err=True)
