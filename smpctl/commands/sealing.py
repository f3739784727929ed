"""Sealed files on this machine, without a daemon: seal, open, inspect, rewrap."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from smp_proto.control import EntryView
from smp_proto.errors import IntegrityError
from smp_proto.sealed.entries import Entry
from smp_proto.sealed.envelope import open_envelope
from smp_proto.sealed.keys import Identity
from smpctl.commands.keys import unlock_of, unlocking
from smpctl.commands.vault import entry_table
from smpctl.files import collect
from smpctl.keyring import Key, Keyring, Unlock
from smpctl.progress import bar
from smpctl.render import facts, moment, plain, size
from smpctl.sealing import Sealed, check_place, open_file, rewrap_file, seal_files, sealed_file
from smpctl.session import Session, verb

_AS = click.option("--as", "name", metavar="NAME", help="Which of your keys; by default the one it is sealed for.")


@verb()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-o", "--output", required=True, metavar="FILE", help="The sealed file.")
@click.option("--to", "keys", multiple=True, required=True, metavar="KEY", help="Who can open it; may be repeated.")
@click.option("--from", "sender", metavar="NAME", help="Which of your keys signs; by default the only one.")
@click.option("--place", metavar="PATH", help="Where it is to lie; a box refuses it anywhere else.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@unlocking
def seal(
    session: Session,
    paths: tuple[str, ...],
    output: str,
    *,
    keys: tuple[str, ...],
    sender: str | None,
    place: str | None,
    force: bool,
    passphrase_file: str | None,
    credential_file: str | None,
) -> None:
    """Seal files for someone, into one file. Folders are walked; links are not followed.

    A KEY is a name in your keyring, a file with a public key, or "box" for the daemon's. You cannot open the
    result yourself unless you are named too.
    """
    if place is not None:
        check_place(place)  # before a passphrase is asked for
    keyring, unlock = Keyring(), unlock_of(passphrase_file, credential_file)
    recipients = [keyring.recipient(key, session.client) for key in keys]
    files = collect(paths, skipped=lambda path: session.note(f"smpctl: left out {path}: a link or no file"))
    identity = keyring.unlock(keyring.own(sender), unlock)
    try:
        with bar(output, quiet=session.as_json) as shown:
            info = seal_files(
                files,
                output,
                sender=identity,
                recipients=recipients,
                overwrite=force,
                place=place or "",
                progress=lambda done, total: shown.update("sealing", done, total),
            )
    finally:
        identity.wipe()
    found = {
        "file": output,
        "object_id": info.object_id.hex(),
        "entries": len(info.entries),
        "plain_bytes": info.plain_bytes,
        "sealed_bytes": info.object_bytes,
        "content_digest": info.content_digest.hex(),
        "recipients": [key.fingerprint() for key in recipients],
    }
    session.show(found, lambda: click.echo(plain(f"{output}: {len(info.entries)} files, {size(info.plain_bytes)}")))


@verb("open")
@click.argument("file")
@click.option("-o", "--output", "dest", required=True, metavar="DIR", help="Where the files go.")
@click.option("--name", "names", multiple=True, metavar="ENTRY", help="Only this entry; may be repeated.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@_AS
@unlocking
def open_(
    session: Session,
    file: str,
    dest: str,
    *,
    names: tuple[str, ...],
    force: bool,
    name: str | None,
    passphrase_file: str | None,
    credential_file: str | None,
) -> None:
    """Open a sealed file into files below DIR.

    Nothing gets its name before everything is verified. Senders are believed whose key is in your keyring:
    your own, and those you imported.
    """
    keyring, unlock = Keyring(), unlock_of(passphrase_file, credential_file)
    with (
        sealed_file(file) as sealed,
        _recipient(keyring, sealed, file, name, unlock) as identity,
        bar(file, quiet=session.as_json) as shown,
    ):
        entries = open_file(
            sealed,
            dest,
            identity=identity,
            trust=keyring.trusted,
            names=names or None,
            overwrite=force,
            progress=lambda done, total: shown.update("opening", done, total),
        )
    total = size(sum(entry.size for entry in entries))
    session.show(_views(entries), lambda: click.echo(plain(f"{len(entries)} files, {total}, in the clear, in {dest}")))


@verb()
@click.argument("file")
@_AS
@unlocking
def inspect(
    session: Session, file: str, *, name: str | None, passphrase_file: str | None, credential_file: str | None
) -> None:
    """What a sealed file says of itself; with a key (--as, or a passphrase or credential file) also its names.

    Without one, nothing of it is checked: it is what the file claims.
    """
    keyring, unlock = Keyring(), unlock_of(passphrase_file, credential_file)
    with sealed_file(file) as sealed:
        known = {key.public.key_id: key.name for key in keyring.all_keys()}
        entries: tuple[Entry, ...] | None = None
        if name or unlock.given:
            with _recipient(keyring, sealed, file, name, unlock) as identity:
                # Of the bytes that are shown: the file may be another one by now.
                opened = open_envelope(sealed.envelope_bytes, sealed.trailer, [identity], keyring.trusted)
                opened.file_key.wipe()
                entries = opened.entries
        found = _claims(sealed, known, checked=entries is not None)
        if entries is not None:
            found["entries"] = _views(entries)
        session.show(found, lambda: _inspected(found, entries))


def _claims(sealed: Sealed, known: dict[bytes, str], *, checked: bool) -> dict[str, Any]:
    signed = sealed.envelope.signed

    def shown(key_id: bytes) -> dict[str, str]:
        return {"fingerprint": key_id.hex("-", 2), "name": known.get(key_id, "")}

    return {
        "object_id": signed.object_id.hex(),
        "suite": signed.suite,
        "created": signed.created,
        "sender": shown(signed.sender),
        "signature_checked": checked,
        "recipients": [shown(key_id) for key_id in sealed.envelope.recipients],
        "plain_bytes": signed.plain_bytes,
        "sealed_bytes": sealed.trailer.object_bytes,
        "segments": signed.segments,
        "content_digest": signed.content_digest.hex(),
    }


def _inspected(found: dict[str, Any], entries: tuple[Entry, ...] | None) -> None:
    def shown(key: dict[str, str]) -> str:
        return f"{key['fingerprint']} {key['name']}".rstrip()

    facts(
        [
            ("object", found["object_id"]),
            ("suite", found["suite"]),
            ("made", moment(found["created"])),
            ("sender", f"{shown(found['sender'])}{'' if found['signature_checked'] else ' (not checked)'}"),
            *[("for", shown(key)) for key in found["recipients"]],
            ("content", f"{size(found['plain_bytes'])} in {found['segments']} segments"),
            ("sealed", size(found["sealed_bytes"])),
            ("digest", found["content_digest"]),
        ]
    )
    if entries is not None:
        click.echo()
        entry_table(_views(entries))
    elif any(key["name"] for key in found["recipients"]):
        click.echo("\nThe names inside show with: --as NAME")


@verb()
@click.argument("file")
@click.option("--to", "keys", multiple=True, required=True, metavar="KEY", help="Who can open it from now on.")
@click.option("-o", "--output", metavar="FILE", help="Leave FILE alone and write another.")
@click.option("--force", is_flag=True, help="Replace the other file if it is there.")
@_AS
@unlocking
def rewrap(
    session: Session,
    file: str,
    *,
    keys: tuple[str, ...],
    output: str | None,
    force: bool,
    name: str | None,
    passphrase_file: str | None,
    credential_file: str | None,
) -> None:
    """Seal a file for other recipients, without touching its content or its signature.

    The recipients are exactly those named: name yourself to stay one. Who had the file before can still open
    their copy.
    """
    keyring, unlock = Keyring(), unlock_of(passphrase_file, credential_file)
    recipients = [keyring.recipient(key, session.client) for key in keys]
    with sealed_file(file) as sealed, _recipient(keyring, sealed, file, name, unlock) as identity:
        rewrap_file(
            sealed,
            output or os.path.realpath(file),
            identity=identity,
            trust=keyring.trusted,
            recipients=recipients,
            overwrite=force or output is None,
        )
    found = {"file": output or file, "recipients": [key.fingerprint() for key in recipients]}
    session.show(found, lambda: click.echo(plain(f"{output or file} is now for {', '.join(keys)}")))


@contextmanager
def _recipient(keyring: Keyring, sealed: Sealed, file: str, name: str | None, unlock: Unlock) -> Iterator[Identity]:
    """The person's key that the file is sealed for, opened; nobody types a passphrase for a stranger's file."""
    keyring.trusted(sealed.envelope.signed.sender)
    key_ids = set(sealed.envelope.recipients)
    mine = [
        key for key in keyring.all_keys() if key.private and key.public.key_id in key_ids and name in (None, key.name)
    ]
    if not mine:
        if name:
            keyring.own(name)  # which is none of yours is told as that
        hint = f"ask its sender to seal it for you; they need: smpctl keys export {name or 'NAME'}"
        message = f"{file} is not sealed for {name or 'any key of yours'}"
        raise IntegrityError("wrong_recipient", message, hint=hint)
    identity = keyring.unlock(_first(mine), unlock)
    try:
        yield identity
    finally:
        identity.wipe()


def _first(keys: list[Key]) -> Key:
    return min(keys, key=lambda key: key.name)


def _views(entries: tuple[Entry, ...]) -> list[EntryView]:
    return [
        EntryView(entry.name, entry.size, entry.sha256.hex(), entry.media_type, dict(entry.attributes))
        for entry in entries
    ]
