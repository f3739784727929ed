"""The key file: 64 secret bytes sealed by a passphrase or a credential, and the public part beside them.

Text between two marker lines, base64 of canonical msgpack ``{header: bin, sealed: bin}``. ``header`` says how
the key is derived and holds the public part; it is the associated data of the seal, so it cannot be changed.
"""

import base64
import binascii
import os
from typing import Annotated

import msgspec
import nacl.exceptions
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nacl.bindings import crypto_pwhash_alg, crypto_pwhash_ALG_ARGON2ID13

from smp_proto.errors import KeyFileError, ResourceError, UsageError
from smp_proto.sealed.canonical import decode
from smp_proto.sealed.filekey import hkdf, take, wipe

BEGIN = b"-----BEGIN SMP IDENTITY-----\n"
END = b"-----END SMP IDENTITY-----\n"
FILE_MAX_BYTES = 1 << 16
CREDENTIAL_MIN_BYTES = 32
ARGON2_PASSES = 3
ARGON2_MEMORY_KIB = 256 << 10
# What a file may ask of its reader: enough for any sane writer, not enough to take the machine down.
ARGON2_PASSES_MAX = 16
ARGON2_MEMORY_KIB_MAX = 1 << 20
_LABEL = b"smp1/key-file"


class _Header(msgspec.Struct, frozen=True):
    version: int
    kdf: str
    salt: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    passes: Annotated[int, msgspec.Meta(ge=0, le=ARGON2_PASSES_MAX)]
    memory_kib: Annotated[int, msgspec.Meta(ge=0, le=ARGON2_MEMORY_KIB_MAX)]
    nonce: Annotated[bytes, msgspec.Meta(min_length=12, max_length=12)]
    public: Annotated[bytes, msgspec.Meta(min_length=1248, max_length=1248)]
    name: str


class _File(msgspec.Struct, frozen=True):
    header: bytes
    sealed: Annotated[bytes, msgspec.Meta(min_length=80, max_length=80)]


def seal(
    secret: bytearray, public: bytes, name: str, *, passphrase: bytearray | None, credential: bytearray | None
) -> bytes:
    """Make a key file; see :meth:`smp_proto.sealed.keys.Identity.to_file`."""
    if (passphrase is None) == (credential is None):
        raise UsageError("bad_request", "a key file is sealed by a passphrase or by a credential")
    if passphrase is not None and not passphrase:
        raise UsageError("bad_request", "the passphrase is empty")
    if credential is not None and len(credential) < CREDENTIAL_MIN_BYTES:
        raise UsageError("bad_request", "a credential is at least 32 bytes of key material")
    header = _Header(
        version=1,
        kdf="argon2id" if passphrase is not None else "hkdf-sha256",
        salt=os.urandom(16),
        passes=ARGON2_PASSES if passphrase is not None else 0,
        memory_kib=ARGON2_MEMORY_KIB if passphrase is not None else 0,
        nonce=os.urandom(12),
        public=public,
        name=name,
    )
    key = _key(header, passphrase, credential)
    encoded = msgspec.msgpack.encode(header)
    try:
        sealed = AESGCM(key).encrypt(header.nonce, secret, _LABEL + encoded)
    finally:
        wipe(key)
    return BEGIN + base64.encodebytes(msgspec.msgpack.encode(_File(encoded, sealed))) + END


def open_(data: bytes, *, passphrase: bytearray | None, credential: bytearray | None) -> bytearray:
    """The secret bytes of a key file; see :meth:`smp_proto.sealed.keys.Identity.from_file`."""
    file, header = _parse(data)
    key = _key(header, passphrase, credential)
    secret = bytearray(len(file.sealed) - 16)
    try:
        AESGCM(key).decrypt_into(header.nonce, file.sealed, _LABEL + file.header, secret)
    except InvalidTag:
        wipe(secret)
    else:
        return secret
    finally:
        wipe(key)
    hint = "try again; there is no way round a forgotten passphrase"
    raise KeyFileError("key_locked", "the passphrase or credential is wrong, or the file was changed", hint=hint)


def peek(data: bytes) -> tuple[bytes, str]:
    """The public keys and the name, not yet authenticated."""
    _, header = _parse(data)
    return header.public, header.name


def _parse(data: bytes) -> tuple[_File, _Header]:
    body = bytes(data).strip() + b"\n"
    if len(data) > FILE_MAX_BYTES or not (body.startswith(BEGIN) and body.endswith(END)):
        raise _malformed()
    try:
        packed = base64.b64decode(body[len(BEGIN) : -len(END)].replace(b"\n", b""), validate=True)
        file = decode(_File, packed)
        header = decode(_Header, file.header)
    except (binascii.Error, ValueError):
        raise _malformed() from None
    if header.version != 1 or header.kdf not in ("argon2id", "hkdf-sha256"):
        hint = "a newer release may read it"
        raise KeyFileError("key_invalid", "the key file is of an unknown version", hint=hint)
    if header.kdf == "argon2id" and (header.passes < 1 or header.memory_kib < 8):
        raise _malformed()
    if header.kdf == "hkdf-sha256" and (header.passes or header.memory_kib):
        raise _malformed()
    return file, header


def _key(header: _Header, passphrase: bytearray | None, credential: bytearray | None) -> bytearray:
    if header.kdf == "argon2id" and passphrase is not None:
        # OpenSSL's leaves the passphrase in freed memory. This one takes bytes: a copy, overwritten.
        phrase = bytes(passphrase)
        try:
            memory = header.memory_kib << 10
            algorithm = crypto_pwhash_ALG_ARGON2ID13
            return take(crypto_pwhash_alg(32, phrase, header.salt, header.passes, memory, algorithm))
        except nacl.exceptions.RuntimeError:  # the one way it fails
            message = f"no memory for a key file's passphrase: Argon2id takes {memory >> 20} MiB"
            hint = "free memory, or raise the limit on it (ulimit -v, MemoryMax)"
            raise ResourceError("no_memory", message, hint=hint) from None
        finally:
            wipe(take(phrase))
    if header.kdf == "hkdf-sha256" and credential is not None:
        return hkdf(credential, salt=header.salt, info=_LABEL)
    wanted = "passphrase" if header.kdf == "argon2id" else "credential"
    raise KeyFileError("key_locked", f"the key file needs a {wanted}", hint=f"give its {wanted}")


def _malformed() -> KeyFileError:
    return KeyFileError("key_invalid", "this is no key file, or a damaged one", hint="restore it from a backup")
