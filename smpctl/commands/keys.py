"""The person's keys: make, list, export, import."""

import sys
from collections.abc import Callable
from typing import Any

import click

from smp_proto.errors import UsageError
from smp_proto.sealed.filekey import wipe
from smp_proto.sealed.keyfile import BEGIN
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpctl.keyring import Key, Keyring, Unlock, credential_from, passphrase_from, public_key_in, read_key_file
from smpctl.render import table
from smpctl.session import Session, VerbGroup
from smpctl.terminal import ask_twice


def unlocking(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a verb that opens or seals a private key; see :func:`unlock_of`."""
    credential = click.option("--credential-file", metavar="FILE", help="Key material of 32 bytes or more.")
    passphrase = click.option("--passphrase-file", metavar="FILE", help="Its first line is the passphrase.")
    return credential(passphrase(function))


def unlock_of(passphrase_file: str | None, credential_file: str | None) -> Unlock:
    """What the two options say."""
    if passphrase_file and credential_file:
        raise UsageError("bad_request", "a key has a passphrase or a credential", hint="give one of the two")
    return Unlock(passphrase_file, credential_file)


@click.group(cls=VerbGroup)
def keys() -> None:
    """Your keys, and those of others that you believe."""


def _shown(key: Key) -> dict[str, Any]:
    return {
        "name": key.name,
        "private": key.private,
        "fingerprint": key.public.fingerprint(),
        "key_id": key.public.key_id.hex(),
        "text": key.public.text(),
    }


@keys.command()
@click.argument("name")
@unlocking
def new(session: Session, name: str, passphrase_file: str | None, credential_file: str | None) -> None:
    """Make a private key, sealed by a passphrase (asked for, unless a file is given)."""
    keyring, unlock = Keyring(), unlock_of(passphrase_file, credential_file)
    keyring.check_free(name)  # before a passphrase is asked for
    passphrase = credential = None
    if unlock.credential_file:
        credential = credential_from(unlock.credential_file)
    elif unlock.passphrase_file:
        passphrase = passphrase_from(unlock.passphrase_file)
    else:
        passphrase = ask_twice(f"New passphrase for {name}", otherwise="give it in a file: --passphrase-file FILE")
    identity = Identity.generate(name)
    try:
        key = keyring.add(name, identity.to_file(passphrase=passphrase, credential=credential), private=True)
    finally:
        identity.wipe()
        for secret in (passphrase, credential):
            wipe(secret or bytearray())
    session.show(_shown(key), lambda: click.echo(f"{key.name}  {key.public.fingerprint()}"))
    session.note(f"hint: give your public key to those who seal for you: smpctl keys export {name}")


@keys.command("list")
def list_(session: Session) -> None:
    """Your keys and the imported ones."""
    found = Keyring().all_keys()
    rows = [(key.name, "private" if key.private else "public", key.public.fingerprint()) for key in found]
    session.show(
        [_shown(key) for key in found],
        lambda: (
            table(("name", "kind", "fingerprint"), rows)
            if rows
            else click.echo("No keys. Make one with: smpctl keys new NAME")
        ),
    )


@keys.command()
@click.argument("name", required=False)
@click.option("--box", is_flag=True, help="The key of the daemon's box.")
def export(session: Session, name: str | None, box: bool) -> None:
    """Print a public key: yours, another's, or the box's."""
    if bool(name) == box:
        raise UsageError("bad_request", "name a key, or --box", hint="see them with: smpctl keys list")
    public = Keyring().recipient(name) if name else PublicIdentity.parse(session.client.box_key().text)
    session.show(_shown(Key(name or "box", False, public)), lambda: click.echo(public.text()))
    session.note(f"fingerprint {public.fingerprint()}")


@keys.command()
@click.option("--box", is_flag=True, help="The key of the daemon's box. Of your own make another: smpctl keys new.")
@click.option("--reason", default="", metavar="TEXT", help="Why; it goes into the audit log.")
def rotate(session: Session, box: bool, reason: str) -> None:
    """Give the box a new key. Its present one stays there to open what was sealed for it, and never signs again.

    Give the new one to everybody who seals for the box or opens what it sealed.
    """
    if not box:
        raise UsageError("bad_request", "only the box's key is changed so: --box", hint="yours: smpctl keys new NAME")
    found = session.client.box_rotate(reason)
    session.show(found, lambda: click.echo(f"box  {found.fingerprint}, in place of {found.retired[0]}"))
    session.note("hint: give the new key to senders, and to those who open results: smpctl keys export --box")


@keys.command("import")
@click.argument("file")
@click.option("--name", required=True, metavar="NAME", help="What you will call it.")
def import_(session: Session, file: str, name: str) -> None:
    """Keep a key from FILE, or from standard input when it is "-".

    Importing someone's public key means that you believe what they sealed: compare the fingerprint with its
    owner first. A private key file is kept as one of yours, still sealed.
    """
    data = sys.stdin.buffer.read(1 << 16) if file == "-" else read_key_file(file)
    private = data.startswith(BEGIN)
    public = public_key_in(data, "standard input" if file == "-" else file)
    key = Keyring().add(name, data if private else public.text().encode() + b"\n", private=private)
    session.show(_shown(key), lambda: click.echo(f"{key.name}  {key.public.fingerprint()}"))
    if not private:
        session.note(f"hint: what {name} sealed is believed from now on; compare the fingerprint with them")
