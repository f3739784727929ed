"""The vault: what is kept on the box, sealed."""

import sys

import click

from smp_proto.control import EntryView, VaultItem
from smp_proto.errors import UsageError
from smpctl.render import ago, plain, size, table
from smpctl.session import Session, VerbGroup, on_terminal, shortest


@click.group(cls=VerbGroup)
def vault() -> None:
    """What is kept on the box, sealed; an ID may be cut short."""


@vault.command()
@click.argument("id", required=False)
@click.option("--job", default="", metavar="JOB", help="Only what this job brought.")
def ls(session: Session, id: str | None, job: str) -> None:  # noqa: A002 - the argument's name on the command line
    """List the items; with an ID the names inside it, which is audited."""
    if id is None:
        items = session.client.vault(session.job_id(job) if job else "")
        session.show(items, lambda: _items(items))
    else:
        entries = session.client.vault_entries(session.vault_id(id))
        session.show(entries, lambda: entry_table(entries))


def _items(items: list[VaultItem]) -> None:
    if not items:
        click.echo("The vault is empty. Fill it with: smpctl get REMOTE:PATH")
        return
    short = shortest([item.id for item in items])
    rows = [
        (short[item.id], size(item.size), str(item.entries), item.sender, ago(item.created), item.job[:8])
        for item in items
    ]
    table(("id", "size", "entries", "sender", "made", "job"), rows, right=(1, 2))


def entry_table(entries: list[EntryView]) -> None:
    """Entries as a table."""
    rows = [(size(entry.size), entry.media_type, entry.sha256[:16], entry.name) for entry in entries]
    table(("size", "type", "sha-256", "name"), rows, right=(0,))


@vault.command("open")
@click.argument("id")
@click.option("-o", "--output", "dest", required=True, metavar="DIR", help="Where the files go.")
@click.option("--name", "names", multiple=True, metavar="ENTRY", help="Only this entry; may be repeated.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
def open_(session: Session, id: str, dest: str, names: tuple[str, ...], force: bool) -> None:  # noqa: A002
    """Open an item in the clear into files below DIR, which is audited."""
    entries = session.client.vault_open(session.vault_id(id), dest, names=names or None, overwrite=force)
    total = size(sum(entry.size for entry in entries))
    session.show(entries, lambda: click.echo(plain(f"{len(entries)} files, {total}, in the clear, in {dest}")))


@vault.command()
@click.argument("id")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(session: Session, id: str, yes: bool) -> None:  # noqa: A002
    """Delete an item, which is audited."""
    item = session.vault_id(id)
    if not yes:
        if not on_terminal(sys.stdin.fileno()):
            raise UsageError("bad_request", "deleting asks first, and there is no terminal", hint="add --yes")
        click.confirm(f"Delete {item} for good?", abort=True, err=True)
    session.client.vault_remove(item)
    session.show({"removed": item}, lambda: click.echo(f"{item} is deleted"))
