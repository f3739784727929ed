"""Remotes by name, with their configuration and credentials sealed at rest; and the one parser of ``REMOTE:PATH``.

A name goes into audit records and file names, a path to a storage server, so both are checked here before anything
else sees them. All calls block.
"""

import contextlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from smp_proto.control import (
    AnyRemoteConfig,
    AnyRemoteSecret,
    LocalConfig,
    Mode,
    RemoteView,
    S3Config,
    S3Secret,
    SftpConfig,
    SftpSecret,
)
from smp_proto.durable import is_part
from smp_proto.errors import IntegrityError, NotFoundError, StateError, UsageError
from smp_proto.memory import wipe_bytes, wipe_text
from smp_proto.names import has_controls
from smp_proto.wire import encode_secret
from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal

NAME_RULE = "a name has 1 to 64 of a-z 0-9 . _ - and begins with a letter or a digit"
PATH_MAX_BYTES = 1024  # the longest key of S3

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Location(NamedTuple):
    """A place of a remote. ``path`` is relative to the remote's root."""

    remote: str
    path: str

    def holds(self, other: "Location") -> bool:
        """Whether the other place is this one, or below this prefix."""
        below = is_prefix(self.path) and other.path.startswith(self.path)
        return self.remote == other.remote and (below or other.path == self.path)


class Remote(msgspec.Struct, frozen=True):
    """A remote as kept. Its repr does not show the secret."""

    name: str
    mode: Mode
    config: AnyRemoteConfig
    secret: AnyRemoteSecret | None = None

    def view(self) -> RemoteView:
        """Return what may be shown."""
        return RemoteView(self.name, self.mode, self.config, self.secret is not None)

    def wipe(self) -> None:
        """Overwrite the secret, which nothing else may refer to."""
        for value in msgspec.structs.astuple(self.secret) if self.secret is not None else ():
            if isinstance(value, str):
                wipe_text(value)


_decode = msgspec.msgpack.Decoder(Remote).decode


def is_prefix(path: str) -> bool:
    """Whether a remote's path stands for what lies below it."""
    return not path or path.endswith("/")


def check_name(name: str, what: str = "remote") -> str:
    """Return the name of a remote or sender.

    Raises:
        UsageError: ``bad_name``.
    """
    if not _NAME.fullmatch(name):
        raise UsageError("bad_name", f"{name[:80]!r} cannot name a {what}", hint=NAME_RULE)
    return name


def check_path(path: str, remote: str) -> str:
    """Return a path as it may be given to a remote: relative, no ``.`` or ``..`` step, printable, not too long.

    Raises:
        UsageError: ``bad_name``. The message does not repeat the path: a file name can be patient data.
    """
    wrong = ""
    if path.startswith("/"):
        wrong = "is absolute"
    elif has_controls(path):
        wrong = "has a control character"
    elif any(step in (".", "..") for step in path.split("/")):
        wrong = "has a '.' or '..' step"
    elif any(map(is_part, path.split("/"))):
        wrong = "is what unfinished files are called, which are not listed"
    elif len(path.encode()) > PATH_MAX_BYTES:
        wrong = f"is longer than {PATH_MAX_BYTES} bytes"
    if wrong:
        hint = "give the path below the remote's root, e.g. scans/one.smp"
        raise UsageError("bad_name", f"a path of remote {remote} {wrong}", hint=hint)
    return path


def parse_location(text: str, *, prefix: bool = False) -> Location:
    """Split ``REMOTE:PATH``.

    Args:
        text: what a person gave.
        prefix: whether an empty path, the whole remote, is allowed.

    Raises:
        UsageError: ``bad_name``.
    """
    remote, colon, path = text.partition(":")
    if not colon:
        raise UsageError("bad_name", "a location needs a remote and a path", hint="write it as REMOTE:PATH")
    check_name(remote)
    check_path(path, remote)
    if not path and not prefix:
        raise UsageError("bad_name", f"{remote}: names no object", hint=f"write it as {remote}:PATH")
    return Location(remote, path)


class RemoteStore:
    """The remotes this box knows.

    Args:
        db: where they are kept.
        seal: seals each of them whole, bound to its name.
    """

    def __init__(self, db: Database, seal: StateSeal) -> None:
        self._db = db
        self._seal = seal

    def add(
        self,
        name: str,
        config: AnyRemoteConfig,
        *,
        mode: Mode = "zero-knowledge",
        secret: AnyRemoteSecret | None = None,
    ) -> RemoteView:
        """Keep a remote.

        Raises:
            UsageError: ``bad_name``; ``bad_request``, when the secret is of another kind than the configuration.
            StateError: ``exists``.
        """
        remote = Remote(check_name(name), mode, config, secret)
        body = self._sealed(remote)
        with self._db.transaction() as connection:
            if connection.execute("SELECT 1 FROM remotes WHERE name=?", (name,)).fetchone():
                hint = f"to change its credentials add --replace; smpctl remote remove {name} forgets it"
                raise StateError("exists", f"there is a remote {name} already", hint=hint)
            connection.execute("INSERT INTO remotes (name, body) VALUES (?, ?)", (name, body))
        return remote.view()

    def replace(
        self, name: str, config: AnyRemoteConfig, *, mode: Mode, secret: AnyRemoteSecret | None = None
    ) -> RemoteView:
        """Keep another secret, and other settings, of a remote at the same place. One that is damaged is made anew.

        Raises:
            UsageError: ``bad_request``, when the secret is of another kind than the configuration.
            NotFoundError: ``no_such_remote``.
            StateError: ``wrong_state``; it is another place, where what was done with its objects is not true.
        """
        with contextlib.suppress(IntegrityError):
            kept = self.view(name)
            if (kept.mode, _place(kept.config)) != (mode, _place(config)):
                message = f"remote {name} is kept as another place, or in another mode ({kept.mode})"
                hint = "see it with: smpctl remote list; add another place under another name"
                raise StateError("wrong_state", message, hint=hint)
        remote = Remote(name, mode, config, secret)
        body = self._sealed(remote)
        with self._db.transaction() as connection:
            if connection.execute("UPDATE remotes SET body=? WHERE name=?", (body, name)).rowcount == 0:
                raise _unknown(name)
        return remote.view()

    def _sealed(self, remote: Remote) -> bytes:
        _check_kinds(remote.config, remote.secret)
        plain = encode_secret(remote)
        body = self._seal.seal(plain, _context(remote.name))
        wipe_bytes(plain)
        return body

    def get(self, name: str) -> Remote:
        """Return a remote with its secret, for the caller to wipe.

        Raises:
            NotFoundError: ``no_such_remote``.
            IntegrityError: ``corrupt``, when its record is damaged.
        """
        rows = self._db.rows("SELECT body FROM remotes WHERE name=?", (name,))
        if not rows:
            raise _unknown(name)
        try:
            plain = self._seal.open(rows[0][0], _context(name))
            try:
                return _decode(plain)
            finally:
                wipe_bytes(plain)
        except (IntegrityError, msgspec.MsgspecError, ValueError, RecursionError) as error:
            hint = f"add it again: smpctl remote add {name} URL --replace"
            raise IntegrityError("corrupt", f"the record of remote {name} is damaged", hint=hint) from error

    def view(self, name: str) -> RemoteView:
        """Return what may be shown of a remote. Raises as :meth:`get`."""
        remote = self.get(name)
        try:
            return remote.view()
        finally:
            remote.wipe()

    def names(self) -> list[str]:
        """Return the names of all remotes, sorted, without opening their records."""
        return [name for (name,) in self._db.rows("SELECT name FROM remotes ORDER BY name")]

    def damaged(self) -> Sequence[str]:
        """The names of those whose record does not open."""
        shown = {view.name for view in self.list()}
        return [name for name in self.names() if name not in shown]

    def list(self) -> list[RemoteView]:
        """Return all remotes by name. One whose record is damaged is left out; :meth:`get` says so."""
        views = []
        for name in self.names():
            try:
                views.append(self.view(name))
            except (IntegrityError, NotFoundError):  # a name that is no text any more is not found again
                continue
        return views

    def remove(self, name: str) -> None:
        """Forget a remote and its secret.

        Raises:
            NotFoundError: ``no_such_remote``.
        """
        with self._db.transaction() as connection:
            if connection.execute("DELETE FROM remotes WHERE name=?", (name,)).rowcount == 0:
                raise _unknown(name)


def _check_kinds(config: AnyRemoteConfig, secret: AnyRemoteSecret | None) -> None:
    fits = {S3Secret: S3Config, SftpSecret: SftpConfig}
    if secret is not None and not isinstance(config, fits[type(secret)]):
        kind = "a local folder" if isinstance(config, LocalConfig) else type(config).__struct_config__.tag
        raise UsageError("bad_request", f"this secret is not one for {kind}", hint="give the kind that fits, or none")


def _place(config: AnyRemoteConfig) -> tuple[object, ...]:
    """Whose objects a remote's are: what else is said of it is how they are reached."""
    if isinstance(config, S3Config):
        return "s3", config.endpoint, config.bucket, config.prefix
    if isinstance(config, SftpConfig):
        return "sftp", config.host, config.port, config.user, config.root
    return "local", config.root


def _unknown(name: str) -> NotFoundError:
    return NotFoundError("no_such_remote", f"there is no remote {name[:80]!r}", hint="smpctl remote list")


def _context(name: str) -> str:
    return f"remote {name}"
