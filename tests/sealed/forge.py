"""Makes sealed objects that no writer of ours would make, each signed properly, to see what a reader does."""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from smp_proto.sealed.filekey import FileKey
from smp_proto.sealed.keys import Identity, PublicIdentity
from smp_proto.sealed.layout import SEGMENT_BYTES, Layout, Trailer
from smp_proto.sealed.payload import PayloadSealer, content_digest, leaf

encode = msgspec.msgpack.encode


def identity(name: str) -> Identity:
    """A fixed identity: its secret is the SHA-512 of its name."""
    return Identity(bytearray(hashlib.sha512(b"smp test identity " + name.encode()).digest()), name)


def trusting(*senders: Identity) -> Callable[[bytes], PublicIdentity | None]:
    """A trust store of these."""
    known = {each.public.key_id: each.public for each in senders}
    return known.get


def entry(name: str = "a", content: bytes = b"", offset: int = 0, **over: Any) -> dict[str, Any]:
    """An entry as the index has it."""
    digest = hashlib.sha256(content).digest()
    made = {"name": name, "offset": offset, "size": len(content), "sha256": digest, "media_type": ""}
    return made | {"attributes": {}} | over


def payload(file_key: FileKey, object_id: bytes, plain: bytes) -> tuple[bytes, bytes]:
    """A payload, header included, and its content digest."""
    layout = Layout(len(plain))
    sealer = PayloadSealer(file_key.payload_key(), object_id)
    made = bytearray(sealer.header)
    leaves = []
    out = bytearray(SEGMENT_BYTES)
    for k in range(layout.segments):
        start, end = layout.plain_span(k)
        made += out[: sealer.seal_segment(k, plain[start:end], out, last=k == layout.segments - 1)]
        leaves.append(leaf(made[slice(*layout.leaf_span(k))]))
    return bytes(made), content_digest(leaves)


def forge(
    plain: bytes = b"",
    entries: Any = None,
    *,
    sender: Identity,
    recipients: Sequence[PublicIdentity],
    signed: dict[str, Any] | None = None,
    rows: Callable[[bytes], bytes] = bytes,
    wire: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    encode_index: Callable[[Any], bytes] = encode,
    encode_signed: Callable[[Any], bytes] = encode,
    wrapped: bytes | None = None,
) -> bytes:
    """A whole object with things replaced before they are signed.

    Args:
        plain: the plaintext.
        entries: of the index, one for all of it by default.
        signed: replaces fields of the signed map.
        rows: changes the recipients before their MAC is made.
        wire: changes the envelope's map last, after all is signed.
        encode_index: replaces the index's encoding.
        encode_signed: replaces the signed map's encoding.
        wrapped: what goes to the recipients instead of the file key.
    """
    file_key, object_id, layout = FileKey.generate(), os.urandom(16), Layout(len(plain))
    body, digest = payload(file_key, object_id, plain)
    nonce = os.urandom(12)
    index_plain = encode_index([entry("a", plain)] if entries is None else entries)
    index = nonce + AESGCM(file_key.index_key()).encrypt(nonce, index_plain, object_id)
    fields = {
        "suite": "hybrid",
        "object_id": object_id,
        "header": body[:40],
        "segment_bytes": SEGMENT_BYTES,
        "payload_bytes": layout.payload_bytes,
        "segments": layout.segments,
        "plain_bytes": layout.plain_bytes,
        "content_digest": digest,
        "index_digest": blake3(index).digest(),
        "sender": sender.public.key_id,
        "created": 1_790_000_000,
    }
    signed_bytes = encode_signed(fields | (signed or {}))
    bound = blake3(signed_bytes).digest()
    secret = file_key.material if wrapped is None else bytearray(wrapped)
    packed = rows(b"".join(r.key_id + r.wrap(secret, b"smp1/file-key\0" + bound) for r in recipients))
    mac = HMAC(file_key.mac_key(), SHA256())
    mac.update(bound + packed)
    envelope = encode(
        wire(
            {
                "signed": signed_bytes,
                "signature": sender.sign(b"smp1/signed\0" + signed_bytes),
                "recipients": packed,
                "recipients_mac": mac.finalize(),
                "index": index,
            }
        )
    )
    return body + envelope + Trailer(len(body), len(envelope)).pack()
