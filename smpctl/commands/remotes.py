"""Remotes: add, list, test, remove; and the listing of one."""

import os
from typing import Any, get_args

import click

from smp_proto.control import Mode, ObjectInfo, RemoteView, S3Config, SftpConfig
from smpctl.render import moment, plain, size, table
from smpctl.session import Session, VerbGroup, location, verb


@click.group(cls=VerbGroup)
def remote() -> None:
    """Storage servers that the daemon knows."""


@remote.command()
@click.argument("name")
@click.argument("url")
@click.option("--mode", type=click.Choice(get_args(Mode)), default="zero-knowledge", show_default=True)
@click.option("--endpoint", metavar="URL", help="S3: another server than AWS.")
@click.option("--region", help="S3: the region.")
@click.option("--addressing", type=click.Choice(["auto", "path", "virtual"]), help="S3: where the bucket is named.")
@click.option("--profile", help="S3: an AWS profile of the daemon's user instead of a secret.")
@click.option("--ca-file", metavar="FILE", help="S3: certificates to trust besides the usual.")
@click.option("--known-hosts", metavar="FILE", help="SFTP: by default ~/.ssh/known_hosts.")
@click.option("--identity-file", metavar="FILE", help="SFTP: the private key to log in with.")
@click.option("--use-agent", is_flag=True, help="SFTP: the SSH agent of the daemon's user.")
@click.option("--secret-file", metavar="FILE", help="The credentials, as docs/reference/commands.md says.")
@click.option("--secret-stdin", is_flag=True, help="The same, from standard input.")
@click.option("--no-secret", is_flag=True, help="None is needed.")
@click.option("--replace", is_flag=True, help="It is kept already: other credentials and settings, at the same place.")
def add(session: Session, name: str, url: str, *, mode: Mode, replace: bool, **options: Any) -> None:
    """Keep a remote: s3://BUCKET[/PREFIX], sftp://USER@HOST[:PORT]/FOLDER, file:///FOLDER.

    Credentials come from a file, standard input or the terminal; they are sealed at rest and never shown.
    """
    from smpctl.remote_url import RemoteOptions, parse_url, secret_for  # noqa: PLC0415 - ls does not need it

    chosen = RemoteOptions(**{option: value for option, value in options.items() if value})
    config = parse_url(url, chosen)
    secret = secret_for(config, chosen)
    if chosen.secret_file and os.stat(chosen.secret_file).st_mode & 0o077:
        session.note(f"smpctl: others can read {chosen.secret_file}; hint: chmod 600 {chosen.secret_file}")
    found = session.client.remote_add(name, config, mode=mode, secret=secret, replace=replace)
    session.show(found, lambda: click.echo(f"{found.name} is kept; try it with: smpctl remote test {found.name}"))


@remote.command("list")
def list_(session: Session) -> None:
    """All remotes."""
    remotes = session.client.remotes()
    session.show(remotes, lambda: _table(remotes))


def _table(remotes: list[RemoteView]) -> None:
    if not remotes:
        click.echo("No remotes. Add one with: smpctl remote add NAME s3://BUCKET")
        return
    rows = [(each.name, url_of(each), each.mode, "kept" if each.has_secret else "none") for each in remotes]
    table(("name", "where", "mode", "secret"), rows)


def url_of(view: RemoteView) -> str:
    """A remote as a URL."""
    config = view.config
    if isinstance(config, S3Config):
        at = f" at {config.endpoint}" if config.endpoint else ""
        return f"s3://{config.bucket}/{config.prefix}{at}"
    if isinstance(config, SftpConfig):
        port = f":{config.port}" if config.port != 22 else ""
        return f"sftp://{config.user}@{config.host}{port}/{config.root.lstrip('/')}"
    return f"file://{config.root}"


@remote.command()
@click.argument("name")
def test(session: Session, name: str) -> None:
    """Connect, log in and list."""
    found = session.client.remote_test(name)
    facts = ", ".join(f"{key} {value}" for key, value in found.facts.items())
    text = f"{found.name} works, {found.milliseconds:.0f} ms{', ' + facts if facts else ''}"
    session.show(found, lambda: click.echo(plain(text)))


@remote.command()
@click.argument("name")
def remove(session: Session, name: str) -> None:
    """Forget a remote and its credentials; its objects stay."""
    session.client.remote_remove(name)
    session.show({"removed": name}, lambda: click.echo(f"{name} is forgotten"))


@verb()
@click.argument("where", metavar="REMOTE:PREFIX")
@click.option("--flat", is_flag=True, help="Only this folder, not those below it.")
def ls(session: Session, where: str, flat: bool) -> None:
    """List the objects of a remote."""
    where = location(where if ":" in where else f"{where}:")
    for found in session.client.ls(where, recursive=not flat):
        session.show(found, lambda each=found: _object(each))  # type: ignore[misc]


def _object(found: ObjectInfo) -> None:
    click.echo(f"{size(found.size):>10}  {moment(found.modified):19}  {plain(found.path)}")
