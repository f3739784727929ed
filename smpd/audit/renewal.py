"""Beginning a new log after one that is broken: the old one is set aside as it is, and the new one names it.

A log that does not match its checkpoints is never gone on with: that would cover up what happened to it. An admin
sets it aside, and the first record of the next names it, with its last signed size and root and a digest of the file.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Sequence

import msgspec

from smp_proto import durable
from smp_proto.audit.note import VerifierKey, iter_notes, open_checkpoint
from smp_proto.errors import AuditError

from .files import read_lines

_PREFIX = "set-aside-"
_WHY = "why.json"


class SetAside(msgspec.Struct, frozen=True):
    """A log that was set aside: where, by whom and why, and what was last signed of it."""

    name: str
    actor: str
    reason: str
    found: str
    size: int
    root: str
    sha256: str


def set_aside(
    directory: str,
    names: Sequence[str],
    keys: Sequence[VerifierKey],
    last: bytes | None,
    *,
    actor: str,
    reason: str,
    found: str,
) -> SetAside:
    """Move the log and its checkpoints, in this order, into a folder of their own; ``last`` is the newest one.

    After a crash in between, checkpoints without their log are a broken log still.

    Raises:
        OSError: as it came; call again.
    """
    log, notes = (os.path.join(directory, name) for name in names)
    size, root = max(_last_signed(notes, keys), _signed([last] if last else [], keys))
    name = f"{_PREFIX}{len(_folders(directory)) + 1}"
    aside = SetAside(name, actor, reason[:200], found[:200], size, root, _digest(log))
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        durable.make_folder(name, 0o700, folder)
        durable.write_file(os.path.join(directory, name), _WHY, msgspec.json.encode(aside))
        for each in names:
            with contextlib.suppress(FileNotFoundError):
                durable.give_name(each, f"{name}/{each}", folder)
        durable.sync_folder(os.path.join(directory, name))
        durable.sync(folder)
    finally:
        os.close(folder)
    return aside


def last_set_aside(directory: str) -> SetAside | None:
    """The log that the present one comes after, if there is one."""
    folders = _folders(directory)
    if not folders:
        return None
    try:
        with open(os.path.join(directory, folders[-1], _WHY), "rb") as file:
            return msgspec.json.decode(file.read(), type=SetAside)
    except (OSError, msgspec.MsgspecError):
        return SetAside(folders[-1], "smpd", "", f"{_WHY} cannot be read", 0, "", "")


def _folders(directory: str) -> list[str]:
    names = [name for name in os.listdir(directory) if name.startswith(_PREFIX)]
    return sorted(names, key=lambda name: (len(name), name))


def _last_signed(path: str, keys: Sequence[VerifierKey]) -> tuple[int, str]:
    """Size and root, in hex, of the last checkpoint whose signature holds."""
    try:
        return _signed(iter_notes(read_lines(path)), keys)
    except FileNotFoundError:
        return 0, ""


def _signed(notes: Iterable[bytes], keys: Sequence[VerifierKey]) -> tuple[int, str]:
    size, root = 0, ""
    for note in notes:
        with contextlib.suppress(AuditError):
            checkpoint = open_checkpoint(note, keys)
            size, root = checkpoint.size, checkpoint.root.hex()
    return size, root


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""
