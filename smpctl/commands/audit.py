"""The audit log: read it, and verify it here, with nothing of the daemon's but its records."""

import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import click
import msgspec

from smp_proto.audit.note import VerifierKey, iter_notes
from smp_proto.audit.record import MAX_LINE_BYTES
from smp_proto.audit.verify import AuditReport, verify_log
from smp_proto.errors import AuditError, KeyFileError, NotFoundError, UsageError
from smpctl.render import facts, plain
from smpctl.session import Session, VerbGroup

LOG_NAME, NOTES_NAME = "audit.jsonl", "checkpoints"
_DAMAGED_MAX = 200  # characters shown of what is no record


@click.group(cls=VerbGroup)
def audit() -> None:
    """The audit log."""


@audit.command()
@click.option("-n", "count", default=20, show_default=True, type=click.IntRange(1), help="So many of the last.")
def tail(session: Session, count: int) -> None:
    """The last records."""
    count = min(count, sys.maxsize)
    for line in deque(session.client.audit_lines(last=count), count):  # of a broken log all come
        record = _shown(line)
        session.show(record, lambda each=record: click.echo(_line(each)))  # type: ignore[misc]


def _shown(line: bytes) -> dict[str, Any]:
    """A record as it is; what is none, as it may be in a broken log, as text."""
    with suppress(msgspec.MsgspecError, ValueError, RecursionError):
        record = msgspec.json.decode(line, type=dict[str, Any])
        if "seq" in record and isinstance(record.get("fields", {}), dict):
            return record
    return {"damaged": line.decode("utf-8", "replace").rstrip("\n")}


def _line(record: dict[str, Any]) -> str:
    if "damaged" in record:
        return plain(f"{'?':>8}  damaged: {record['damaged'][:_DAMAGED_MAX]}")
    parts = [f"{record.get('seq', ''):>8}", record.get("time", ""), record.get("event", ""), record.get("actor", "")]
    details = [f"{name}={value}" for name, value in record.get("fields", {}).items()]
    more = [str(record[name]) for name in ("job", "outcome") if record.get(name)]
    return plain("  ".join([*map(str, parts), " ".join([*more, *details])]).rstrip())


@audit.command()
def checkpoint(session: Session) -> None:
    """Sign a checkpoint over the log as it is now, and print it, to be kept where the box cannot change it."""
    _, proof = session.client.audit_read(session.client.status().audit_size, newest=True)
    _refuse(proof.broken)  # what came then is from before it broke
    note = proof.checkpoints[-1]
    session.show({"checkpoint": note}, lambda: click.echo(note, nl=False))


@audit.command()
@click.option("--dir", "folder", metavar="DIR", help="Verify the files of a log instead of asking a daemon.")
@click.option("--key", "key_file", metavar="FILE", help="The log's public keys, kept elsewhere, one a line.")
@click.option("--checkpoint", metavar="FILE", help="A checkpoint that was kept elsewhere.")
def verify(session: Session, folder: str | None, key_file: str | None, checkpoint: str | None) -> None:
    """Verify the whole log against its checkpoints, on this side of the socket.

    Without --key the log's own word for its key is taken. Only a --checkpoint kept where the log's keeper could
    not change it shows that the log was not rewritten and signed again.
    """
    outside = _read(checkpoint) if checkpoint else None
    keys = _keys(key_file) if key_file else []
    if folder:
        if not keys:
            hint = "smpctl audit verify prints it on the log's box; keep it in a file"
            raise UsageError("bad_request", "the files of a log do not hold its public key: add --key", hint=hint)
        notes = list(iter_notes(_read(os.path.join(folder, NOTES_NAME)).splitlines(keepends=True)))
        lines = _lines(os.path.join(folder, LOG_NAME))
        broken = ""
    else:
        lines, notes, own, broken = _from_daemon(session)
        keys = keys or own
    report = verify_log(lines, notes, keys, outside)
    _refuse(broken)  # which is in order by itself: it was rewritten with its checkpoints left out, say
    shown = list(dict.fromkeys([*map(str, keys), *report.signers]))
    session.show(report, lambda: _report(report, shown, outside=outside is not None))


@audit.command()
@click.option("--reason", required=True, metavar="TEXT", help="Why; it goes into the first record of the new log.")
def renew(session: Session, reason: str) -> None:
    """Set a log that is broken aside, as it is, and begin a new one that names it.

    First keep a copy of it, and find out what happened: until then nothing that needs a record is done.
    """
    found = session.client.audit_renew(reason)
    shown = [("set aside", found.path), ("signed", f"{found.signed} records"), ("root", found.root or "none")]
    session.show(found, lambda: facts(shown))


def _refuse(broken: str) -> None:
    """Fail for a log in which the daemon found something wrong, against the checkpoint that it keeps apart."""
    if broken:
        hint = "see docs/guides/operating.md, and smpctl doctor"
        raise AuditError("audit_broken", f"the daemon refuses this log: {broken}", hint=hint)


def _report(report: AuditReport, keys: list[str], *, outside: bool) -> None:
    against = "and against the checkpoint given" if outside else "not against one kept elsewhere: --checkpoint FILE"
    # Without a checkpoint anybody who could write the file may have written all of it.
    signed = report.checkpoints_ok or outside or not report.size
    how = "whole and in order" if signed else "in order, but no checkpoint says that they are those that were written"
    facts(
        [
            ("log", f"{report.size} records, {how}"),
            ("checked", f"against {report.checkpoints_ok} checkpoints of its own, {against}"),
            ("covered", f"{report.covered} records"),
            ("root", report.root.hex()),
            *[("key", key) for key in keys],
            *[("note", finding) for finding in report.findings],
        ]
    )


def _from_daemon(session: Session) -> tuple[Iterator[bytes], list[bytes], list[VerifierKey], str]:
    # Checkpoints first: what is written meanwhile is then only not yet covered by one.
    _, proof = session.client.audit_read(session.client.status().audit_size)
    lines = (line.removesuffix(b"\n") + b"\n" for line in session.client.audit_lines())
    keys = [VerifierKey(proof.origin, each) for each in (*reversed(proof.earlier_keys), proof.public_key)]
    return lines, [note.encode() for note in proof.checkpoints], keys, proof.broken


def _keys(path: str) -> list[VerifierKey]:
    """The keys in a file, at least one: without any the log's own word would be taken."""
    hint = "one a line, as smpctl audit verify prints it on the log's box: NAME+ID+KEY"
    try:
        keys = [VerifierKey.parse(line) for line in _read(path).decode("utf-8", "replace").split()]
    except KeyFileError as error:
        raise KeyFileError(error.code, f"{path}: {error.message}", hint=hint) from None
    if not keys:
        raise KeyFileError("key_invalid", f"{path} holds no public key of a log", hint=hint)
    if len({key.name for key in keys}) > 1:  # else who signs one of the logs could pass off theirs as another
        raise KeyFileError("key_invalid", f"{path} holds keys of several logs", hint="keep a file for each log")
    return keys


def _lines(path: str) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            # One that is longer is no record, however much of it there is.
            yield from iter(partial(file.readline, MAX_LINE_BYTES + 1), b"")
    except OSError as error:
        raise _unreadable(path, error) from None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: OSError) -> NotFoundError:
    reason = (error.strerror or str(error)).lower()
    return NotFoundError("no_such_file", f"{path} cannot be read: {reason}", hint="check the path")
