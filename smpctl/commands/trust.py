"""Whom the daemon believes. The person's own keyring is ``smpctl keys``."""

import datetime

import click

from smp_proto.control import TrustView
from smp_proto.errors import UsageError
from smpctl.keyring import Keyring
from smpctl.render import moment, table
from smpctl.session import Session, VerbGroup, location


@click.group(cls=VerbGroup)
def trust() -> None:
    """The senders that the daemon believes. Each change is audited."""


@trust.command()
@click.argument("name")
@click.argument("key", required=False)
@click.option("--prefix", "prefixes", multiple=True, metavar="REMOTE:PREFIX", help="Only for objects below it.")
@click.option("--until", metavar="DATE", help="Only until then: 2027-01-31, or with a time.")
def add(session: Session, name: str, key: str | None, prefixes: tuple[str, ...], until: str | None) -> None:
    """Believe a sender from now on; KEY is a file or a name in your keyring, by default NAME."""
    public = Keyring().recipient(key or name)
    ends = _moment(until) if until else 0.0
    prefixes = tuple(location(prefix) for prefix in prefixes)
    found = session.client.trust_add(name, public.text(), prefixes=prefixes, until=ends)
    session.show(found, lambda: click.echo(f"{found.name}  {found.fingerprint}"))


@trust.command("list")
def list_(session: Session) -> None:
    """The senders, removed ones included."""
    senders = session.client.trusted()
    session.show(senders, lambda: _table(senders))


def _table(senders: list[TrustView]) -> None:
    if not senders:
        click.echo("Nobody is believed yet. Add a sender with: smpctl trust add NAME KEY")
        return
    rows = [
        (
            sender.name,
            sender.fingerprint,
            f"removed {moment(sender.removed)}" if sender.removed else "believed",
            moment(sender.until),
            " ".join(sender.prefixes) or "any",
        )
        for sender in senders
    ]
    table(("name", "fingerprint", "state", "until", "where"), rows)


@trust.command()
@click.argument("name")
def remove(session: Session, name: str) -> None:
    """Stop believing a sender."""
    found = session.client.trust_remove(name)
    session.show(found, lambda: click.echo(f"{found.name} is believed no more"))


def _moment(text: str) -> float:
    try:
        found = datetime.datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        found = 0.0
    if found > 0:  # the daemon takes 0 for no end
        return found
    raise UsageError("bad_request", f"{text} is no date that trust can end on", hint="for example: --until 2027-01-31")
