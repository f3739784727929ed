"""The keys of this box: its identity, and what is derived to keep its own state sealed.

The identity is made at first start. It is sealed by a credential or a passphrase that the configuration names; a box
with neither gets a credential file of its own beside it, which protects against nothing but a lost copy of the key
file alone, and ``doctor`` says so.
"""

import os
import socket
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from smp_proto import durable
from smp_proto.durable import write_file
from smp_proto.errors import KeyFileError
from smp_proto.sealed.filekey import random_secret, wipe
from smp_proto.sealed.keys import Identity
from smpd.config import Keys
from smpd.host.credentials import read_secret

IDENTITY = "identity.key"
STATE_KEY = "state.key"
CREDENTIAL = "credential"
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


def load_keys(folder: str, config: Keys) -> BoxKeys:
    """Open the keys of this box, or make them at first start.

    Raises:
        KeyFileError: ``key_locked`` for a wrong credential or passphrase, ``key_invalid`` for a damaged file.
        UsageError: ``bad_config`` for a secret file that others can read.
    """
    _sweep(folder)
    secret, kind, protection = _secret(folder, config)
    path = os.path.join(folder, IDENTITY)
    created = not os.path.exists(path)
    try:
        options = {kind: secret}
        if created:
            identity = Identity.generate(socket.gethostname()[:64])
            write_file(folder, STATE_KEY, identity.public.wrap(random_secret(_SECRET_BYTES), _STATE_INFO))
            write_file(folder, IDENTITY, identity.to_file(**options))
        else:
            with open(path, "rb") as file:
                identity = Identity.from_file(file.read(), **options)
    finally:
        wipe(secret)
    root = _state_key(folder, identity)
    try:
        return BoxKeys(
            identity,
            state=_expand(root, b"smpd state"),
            pseudonym=_expand(root, b"smpd pseudonym"),
            detail=_expand(root, b"smpd audit detail"),
            created=created,
            protection=protection,
            protected=bool(config.passphrase_file or config.credential_file),
        )
    finally:
        wipe(root)


def _sweep(folder: str) -> None:
    """Remove what a first start that was cut off left."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        durable.sweep(fd)
    finally:
        os.close(fd)


def _secret(folder: str, config: Keys) -> tuple[bytearray, str, str]:
    if config.passphrase_file:
        return (
            read_secret(config.passphrase_file),
            "passphrase",
            f"sealed by the passphrase in {config.passphrase_file}",
        )
    if config.credential_file:
        return read_secret(config.credential_file), "credential", f"sealed by {config.credential_file}"
    path = os.path.join(folder, CREDENTIAL)
    if not os.path.exists(path):
        fresh = random_secret(_SECRET_BYTES)
        write_file(folder, CREDENTIAL, fresh)
        wipe(fresh)
    return read_secret(path), "credential", f"sealed by {path}, which lies beside it"


def _state_key(folder: str, identity: Identity) -> bytearray:
    try:
        with open(os.path.join(folder, STATE_KEY), "rb") as file:
            return identity.unwrap(file.read(), _STATE_INFO)
    except FileNotFoundError:
        raise KeyFileError(
            "key_invalid", f"{folder}/{STATE_KEY} is missing", hint="restore the keys folder from a backup"
        ) from None


def _expand(root: bytearray, label: bytes) -> bytearray:
    derived = bytearray(_SECRET_BYTES)
    HKDFExpand(SHA256(), _SECRET_BYTES, label).derive_into(root, derived)
    return derived
