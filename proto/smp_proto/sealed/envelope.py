"""The envelope: what the sender signed, for whom the file key is wrapped, and the sealed index.

Canonical msgpack ``{signed, signature, recipients, recipients_mac, index}``, every value a byte string, so
that all checks run over the bytes as they lie in the object. ``recipients`` is one fixed-size row for each.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from traceback import clear_frames
from typing import Annotated, Self

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from smp_proto.errors import IntegrityError, UsageError
from smp_proto.sealed.canonical import decode
from smp_proto.sealed.entries import (
    Entry,
    check_entries,
    pack_entries,
    packed_entries,
    unpack_entries,
    valid_entry_name,
)
from smp_proto.sealed.filekey import FileKey, wipe
from smp_proto.sealed.keys import KEY_ID_BYTES, WRAPPED_BYTES, Identity, PublicIdentity
from smp_proto.sealed.layout import ENVELOPE_MAX_BYTES, SEGMENT_BYTES, Layout, Trailer
from smp_proto.sealed.payload import PayloadOpener, check_header

__all__ = [
    "CheckedEnvelope", "Entry", "Envelope", "OpenedEnvelope", "Signed", "Trust", "Wire", "open_envelope",
    "rewrap_envelope", "seal_envelope", "valid_entry_name",
]  # fmt: skip

SUITE = "hybrid"
RECIPIENTS_MAX = 1024
CREATED_MAX = 253402300799  # the last second of the year 9999
_ROW_BYTES = KEY_ID_BYTES + WRAPPED_BYTES
_NONCE_BYTES = 12
_SIGN_LABEL = b"smp1/signed\0"
_WRAP_LABEL = b"smp1/file-key\0"

Bytes16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Bytes64 = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Trust = Callable[[bytes], PublicIdentity | None]


class Signed(msgspec.Struct, frozen=True):
    """What the sender vouches for. Lengths in bytes, ``created`` in seconds since 1970."""

    suite: str
    object_id: Bytes16
    header: Annotated[bytes, msgspec.Meta(min_length=40, max_length=40)]
    segment_bytes: Natural
    payload_bytes: Natural
    segments: Natural
    plain_bytes: Natural
    content_digest: Bytes32
    index_digest: Bytes32
    sender: Bytes16
    created: Annotated[int, msgspec.Meta(ge=0, le=CREATED_MAX)]


class Wire(msgspec.Struct, frozen=True):
    """The envelope as it lies in the object."""

    signed: bytes
    signature: Bytes64
    recipients: bytes
    recipients_mac: Bytes32
    index: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope that is well formed; nothing else about it is known to be true.

    Attributes:
        wire: its parts, byte for byte.
        signed: what the sender is said to vouch for.
        recipients: wrapped file keys by key id, in order.
        layout: where the segments lie.
    """

    wire: Wire
    signed: Signed
    recipients: dict[bytes, bytes]
    layout: Layout

    @classmethod
    def parse(cls, data: bytes) -> "Envelope":
        """Read the structure; needs no key.

        Raises:
            IntegrityError: ``corrupt`` for a malformed envelope, ``unsupported`` for a suite or segment size
                that this release does not know.
        """
        try:
            wire = decode(Wire, data)
            signed = decode(Signed, wire.signed)
        except ValueError:
            raise _corrupt("the envelope is malformed") from None
        if signed.suite != SUITE or signed.segment_bytes != SEGMENT_BYTES:
            message = f"suite {signed.suite[:40]!r} with segments of {signed.segment_bytes} bytes"
            raise IntegrityError("unsupported", message, hint="a newer release may read it")
        check_header(signed.header)
        layout = Layout.from_payload_bytes(signed.payload_bytes)
        if (layout.segments, layout.plain_bytes) != (signed.segments, signed.plain_bytes):
            raise _corrupt("the signed lengths contradict each other")
        rows = wire.recipients
        count, rest = divmod(len(rows), _ROW_BYTES)
        if rest or not 0 < count <= RECIPIENTS_MAX:
            raise _corrupt("the recipients are malformed")
        recipients = {
            rows[i : i + KEY_ID_BYTES]: rows[i + KEY_ID_BYTES : i + _ROW_BYTES] for i in range(0, len(rows), _ROW_BYTES)
        }
        if len(recipients) != count:
            raise _corrupt("a recipient is there twice")
        return cls(wire, signed, recipients, layout)


@dataclass(frozen=True, slots=True)
class CheckedEnvelope:
    """What a checked envelope says."""

    signed: Signed
    sender: PublicIdentity
    entries: tuple[Entry, ...]

    def packed(self) -> Self:
        """The same with its entries as :func:`~smp_proto.sealed.entries.packed_entries` has them."""
        if not any(entry.attributes for entry in self.entries):
            return self
        return replace(self, entries=packed_entries(self.entries))


@dataclass(frozen=True, slots=True)
class OpenedEnvelope(CheckedEnvelope):
    """A checked envelope, and what opens the payload. The caller wipes ``file_key``."""

    file_key: FileKey
    layout: Layout

    def payload(self) -> PayloadOpener:
        """The opener of this object's segments; it outlives the file key."""
        subkey = self.file_key.payload_key()
        try:
            return PayloadOpener(subkey, self.signed.header, self.signed.object_id, self.layout)
        finally:
            wipe(subkey)


def seal_envelope(
    *,
    file_key: FileKey,
    object_id: bytes,
    header: bytes,
    layout: Layout,
    leaves_digest: bytes,
    entries: Sequence[Entry],
    sender: Identity,
    recipients: Sequence[PublicIdentity],
    created: int,
) -> bytes:
    """Seal the index, sign, wrap the file key for each recipient.

    Raises:
        UsageError: ``bad_name`` for entries that :func:`~smp_proto.sealed.entries.check_entries` refuses,
            ``bad_request`` for attributes that cannot be stored, and for no entry or recipient, or too many.
    """
    if not entries:
        raise UsageError("bad_request", "an object holds at least one entry")
    try:
        check_entries(entries, layout.plain_bytes)
    except ValueError as error:
        raise UsageError("bad_name", f"an entry cannot be sealed: {error}", hint="rename it") from None
    index = _seal_index(file_key, object_id, entries)
    signed = Signed(
        suite=SUITE,
        object_id=object_id,
        header=header,
        segment_bytes=layout.segment_bytes,
        payload_bytes=layout.payload_bytes,
        segments=layout.segments,
        plain_bytes=layout.plain_bytes,
        content_digest=leaves_digest,
        index_digest=blake3(index).digest(),
        sender=sender.public.key_id,
        created=created,
    )
    signed_bytes = msgspec.msgpack.encode(signed)
    return _encode(signed_bytes, sender.sign(_SIGN_LABEL + signed_bytes), index, file_key, recipients)


def open_envelope(data: bytes, trailer: Trailer, identities: Sequence[Identity], trust: Trust) -> OpenedEnvelope:
    """Check an envelope and open what is in it.

    Args:
        data: bytes C to C+E of the object.
        trailer: the object's trailer.
        identities: ours, in any order; the first row for one of them is used.
        trust: gives the public identity of a sender by key id, or None; may raise its own error.

    Raises:
        IntegrityError: ``corrupt``, ``unsupported``, ``untrusted_sender``, ``truncated`` or
            ``wrong_recipient``, tried in the order of ``SEALED.md``.
    """
    envelope = Envelope.parse(data)
    signed = envelope.signed
    sender = trust(signed.sender)
    if sender is None or sender.key_id != signed.sender:
        message = f"the sender {signed.sender.hex('-', 2)} is not trusted"
        raise IntegrityError("untrusted_sender", message, hint="add its public key if you know whose it is")
    if not sender.verify(envelope.wire.signature, _SIGN_LABEL + envelope.wire.signed):
        raise _corrupt("the sender's signature does not match")
    if (signed.payload_bytes, len(data)) != (trailer.payload_bytes, trailer.envelope_bytes):
        raise IntegrityError("truncated", "the object's lengths are not the signed ones")
    file_key = _unwrap(envelope, identities)
    try:
        mac = _recipients_mac(file_key, envelope.wire.signed, envelope.wire.recipients)
        try:
            mac.verify(envelope.wire.recipients_mac)
        except InvalidSignature:
            raise _corrupt("the recipients are not those of this file key") from None
        entries = _open_index(file_key, envelope)
    except BaseException:
        file_key.wipe()
        raise
    return OpenedEnvelope(signed, sender, entries, file_key, envelope.layout)


def rewrap_envelope(
    data: bytes,
    trailer: Trailer,
    identities: Sequence[Identity],
    trust: Trust,
    recipients: Sequence[PublicIdentity],
) -> bytes:
    """The same object for other recipients: signed bytes, signature and index stay, byte for byte.

    Raises:
        IntegrityError: as :func:`open_envelope`.
        UsageError: ``bad_request`` for no recipient or too many.
    """
    opened = open_envelope(data, trailer, identities, trust)
    try:
        wire = Envelope.parse(data).wire
        return _encode(wire.signed, wire.signature, wire.index, opened.file_key, recipients)
    finally:
        opened.file_key.wipe()


def _unwrap(envelope: Envelope, identities: Sequence[Identity]) -> FileKey:
    ours = {identity.public.key_id: identity for identity in identities}
    for key_id, wrapped in envelope.recipients.items():
        if key_id in ours:
            return FileKey(ours[key_id].unwrap(wrapped, _wrap_info(envelope.wire.signed)))
    hint = "ask the sender to seal it for this box's public key, or a recipient to rewrap it"
    raise IntegrityError("wrong_recipient", "the object was sealed for other recipients", hint=hint)


def _encode(
    signed: bytes, signature: bytes, index: bytes, file_key: FileKey, recipients: Sequence[PublicIdentity]
) -> bytes:
    distinct = {each.key_id: each for each in recipients}
    if not 0 < len(distinct) <= RECIPIENTS_MAX:
        raise UsageError("bad_request", f"an object has 1 to {RECIPIENTS_MAX} recipients, not {len(distinct)}")
    info = _wrap_info(signed)
    rows = b"".join(key_id + each.wrap(file_key.material, info) for key_id, each in distinct.items())
    mac = _recipients_mac(file_key, signed, rows).finalize()
    envelope = msgspec.msgpack.encode(Wire(signed, signature, rows, mac, index))
    if len(envelope) > ENVELOPE_MAX_BYTES:
        raise UsageError("bad_request", "the names and attributes are too long for one object", hint="split it")
    return envelope


def _wrap_info(signed: bytes) -> bytes:
    return _WRAP_LABEL + blake3(signed).digest()


def _recipients_mac(file_key: FileKey, signed: bytes, rows: bytes) -> HMAC:
    key = file_key.mac_key()
    mac = HMAC(key, SHA256())
    wipe(key)
    mac.update(blake3(signed).digest())
    mac.update(rows)
    return mac


def _seal_index(file_key: FileKey, object_id: bytes, entries: Sequence[Entry]) -> bytes:
    plain = pack_entries(entries)
    nonce = os.urandom(_NONCE_BYTES)
    key = file_key.index_key()
    try:
        return nonce + AESGCM(key).encrypt(nonce, plain, object_id)
    finally:
        wipe(key)


def _open_index(file_key: FileKey, envelope: Envelope) -> tuple[Entry, ...]:
    if blake3(envelope.wire.index).digest() != envelope.signed.index_digest:
        raise _corrupt("the index is not the one the sender signed")
    key = file_key.index_key()
    nonce, sealed = envelope.wire.index[:_NONCE_BYTES], memoryview(envelope.wire.index)[_NONCE_BYTES:]
    try:
        plain = AESGCM(key).decrypt(nonce, sealed, envelope.signed.object_id)
    except (InvalidTag, ValueError):
        raise _corrupt("the index does not open") from None
    finally:
        wipe(key)
    try:
        entries = unpack_entries(plain)
        check_entries(entries, envelope.signed.plain_bytes)
    except ValueError as error:
        clear_frames(error.__traceback__)  # they have the index, and so would have who keeps the error
        raise _corrupt(f"the index is wrong: {error}") from None
    return entries


def _corrupt(message: str) -> IntegrityError:
    return IntegrityError("corrupt", message)
