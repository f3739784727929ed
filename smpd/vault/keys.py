"""The keys of this box: its identity, and what is derived to keep its own state sealed.

The identity is made at first start. It is sealed by a credential or a passphrase that the configuration names; a box
with neither gets a credential file of its own beside it, which protects against nothing but a lost copy of the key
file alone, and ``doctor`` says so.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from smp_proto import durable
from smp_proto.durable import write_file
from smp_proto.errors import KeyFileError, SmpError
from smp_proto.sealed.filekey import random_secret, wipe
from smp_proto.sealed.keys import Identity
from smpd.config import Keys
from smpd.host.credentials import read_secret
from smpd.host.process import lock_memory

IDENTITY = "identity.key"
STATE_KEY = "state.key"
CREDENTIAL = "credential"
COPIES = "copies"
_STATE_INFO = b"smpd state key"
_SECRET_BYTES = 32


@dataclass(slots=True)
class BoxKeys:
    """All keys of a running daemon. ``state`` seals the database, the two others belong to the audit log."""

    identity: Identity
    state: bytearray = field(repr=False)
    pseudonym: bytearray = field(repr=False)
    detail: bytearray = field(repr=False)
    created: bool
    protection: str
    protected: bool
    mended: list[str]

    def wipe(self) -> None:
        """Zero them all; nothing opens afterwards."""
        self.identity.wipe()
        for key in (self.state, self.pseudonym, self.detail):
            wipe(key)


def load_keys(folder: str, config: Keys) -> BoxKeys:
    """Open the keys of this box, or make them at first start.

    Each file is there twice. One that is damaged or missing is made again from the other, and what it was is kept.

    Raises:
        KeyFileError: ``key_locked`` for a wrong credential or passphrase, ``key_invalid`` for a damaged file.
        UsageError: ``bad_config`` for a secret file that others can read.
    """
    durable.sweep_path(folder)
    copies = os.path.join(folder, COPIES)
    durable.make_folder(copies, 0o700)
    durable.sweep_path(copies)
    found = {name: _read_both(folder, name) for name in (IDENTITY, STATE_KEY)}
    created = not found[IDENTITY]
    secrets, kind, protection = _secrets(folder, config)
    try:
        if created:
            identity, secret = Identity.generate(socket.gethostname()[:64]), secrets[0]
            found[STATE_KEY] = [identity.public.wrap(random_secret(_SECRET_BYTES), _STATE_INFO)]
            found[IDENTITY] = [identity.to_file(**{kind: secret})]
            good: dict[str, bytes | bytearray] = {IDENTITY: found[IDENTITY][0]}
        else:
            identity, secret, good = _open(found[IDENTITY], secrets, kind)
        root, good[STATE_KEY] = _state_key(folder, identity, found[STATE_KEY])
        if not (config.passphrase_file or config.credential_file):
            good[CREDENTIAL] = secret
        # The identity last: where it is there, all that it needs is.
        order = [name for name in (CREDENTIAL, STATE_KEY, IDENTITY) if name in good]
        mended = [note for name in order for note in _write_both(folder, name, good[name], created=created)]
    finally:
        for each in secrets:
            wipe(each)
    identity.forget_seed()  # what is in use is in OpenSSL's keys; the file has the rest
    try:
        keys = BoxKeys(
            identity,
            state=_expand(root, b"smpd state"),
            pseudonym=_expand(root, b"smpd pseudonym"),
            detail=_expand(root, b"smpd audit detail"),
            created=created,
            protection=protection,
            protected=bool(config.passphrase_file or config.credential_file),
            mended=mended,
        )
        for key in (keys.state, keys.pseudonym, keys.detail):
            lock_memory(key)
        return keys
    finally:
        wipe(root)


def _open(
    files: list[bytes], secrets: list[bytearray], kind: str
) -> tuple[Identity, bytearray, dict[str, bytes | bytearray]]:
    """Open the first of the files that opens, with the first of the secrets that fits."""
    failure: KeyFileError | None = None
    for data in files:
        for secret in secrets:
            try:
                return Identity.from_file(data, **{kind: secret}), secret, {IDENTITY: data}
            except KeyFileError as error:
                failure = failure or error
    assert failure is not None
    raise failure


def _read_both(folder: str, name: str) -> list[bytes]:
    """A file and its copy, as far as they are there."""
    found = []
    for path in (os.path.join(folder, name), os.path.join(folder, COPIES, name)):
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            found.append(file.read())
    return found


def _write_both(folder: str, name: str, data: bytes | bytearray, *, created: bool) -> Iterator[str]:
    """Make a file and its copy what they are to be; says of those that were not."""
    for where in (folder, os.path.join(folder, COPIES)):
        path = os.path.join(where, name)
        was = _read(path)
        try:
            if was == data:
                continue
            if was and not created:  # of a first start that was cut off it is of no use
                write_file(where, f"{name}.damaged", was)
                yield f"{path} was damaged, and made again from its other copy; what it was is {name}.damaged beside it"
            elif where == folder and not created:
                yield f"{path} was missing, and made again from its copy"
            write_file(where, name, data)
        finally:
            wipe(was)


def _read(path: str) -> bytearray:
    """A file's content, for the caller to wipe; empty when there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return bytearray()
    try:
        data = bytearray(os.fstat(fd).st_size)
        if data:
            os.readv(fd, [data])
        return data
    finally:
        os.close(fd)


def _secrets(folder: str, config: Keys) -> tuple[list[bytearray], str, str]:
    """What may unlock the identity, of which kind it is, and how the identity is protected."""
    if config.passphrase_file:
        shown = f"sealed by the passphrase in {config.passphrase_file}"
        return [read_secret(config.passphrase_file)], "passphrase", shown
    if config.credential_file:
        return [read_secret(config.credential_file)], "credential", f"sealed by {config.credential_file}"
    path = os.path.join(folder, CREDENTIAL)
    paths = [each for each in (path, os.path.join(folder, COPIES, CREDENTIAL)) if os.path.exists(each)]
    secrets = [read_secret(each) for each in paths] or [random_secret(_SECRET_BYTES)]
    return secrets, "credential", f"sealed by {path}, which lies beside it"


def _state_key(folder: str, identity: Identity, files: list[bytes]) -> tuple[bytearray, bytes]:
    """The root of the keys for this box's state, and the file that it came from."""
    hint = "restore the keys folder from a backup"
    for data in files:
        with contextlib.suppress(SmpError):
            return identity.unwrap(data, _STATE_INFO), data
    state = "is damaged" if files else "is missing"
    raise KeyFileError("key_invalid", f"{folder}/{STATE_KEY} {state}", hint=hint)


def _expand(root: bytearray, label: bytes) -> bytearray:
    derived = bytearray(_SECRET_BYTES)
    HKDFExpand(SHA256(), _SECRET_BYTES, label).derive_into(root, derived)
    return derived
