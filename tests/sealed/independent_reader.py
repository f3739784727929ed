"""A reader of sealed objects written from ``proto/SEALED.md`` alone; it imports nothing of SMP.

It reads whole objects in memory and is the proof that the page says enough, so where the page speaks of
steps, so does this file. ``python independent_reader.py OBJECT SECRET_HEX SENDER_BLOB_HEX`` lists an object.
"""

import hashlib
import hmac
import struct
import sys
import unicodedata
from dataclasses import dataclass

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

S = 1048576


class Refused(Exception):
    """What the reader refuses; the argument is a code of the page."""


@dataclass
class Secret:
    """A recipient's 64 secret bytes, expanded as section 8 says."""

    seeds: bytes

    def __post_init__(self):
        expanded = hashlib.shake_256(self.seeds[:32]).digest(96)
        mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
        self.hpke_key = hpke.MLKEM768X25519PrivateKey(mlkem, x25519)
        signing = Ed25519PrivateKey.from_private_bytes(self.seeds[32:]).public_key()
        self.blob = (
            mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw() + signing.public_bytes_raw()
        )


def key_id(blob):
    return hashlib.sha256(b"smp1/identity\0" + blob).digest()[:16]


def h(data):
    return blake3(data).digest()


def hkdf(key, salt, info):
    return HKDF(hashes.SHA256(), 32, salt, info).derive(key)


def refuse_unless(condition, code="corrupt"):
    if not condition:
        raise Refused(code)


def canonical(data):
    try:
        value = msgspec.msgpack.decode(data)
        same = msgspec.msgpack.encode(value) == data
    except (msgspec.MsgspecError, RecursionError, ValueError, TypeError):
        raise Refused("corrupt") from None
    refuse_unless(same)
    return value


def table(value, **columns):
    """A map with exactly these keys in this order; a column is a size in bytes, or a check."""
    refuse_unless(isinstance(value, dict) and list(value) == list(columns))
    for key, column in columns.items():
        if isinstance(column, int):
            refuse_unless(isinstance(value[key], bytes) and len(value[key]) == column)
        else:
            refuse_unless(column(value[key]))
    return value


def natural(value):
    return type(value) is int and value >= 0


def text(value):
    return isinstance(value, str)


def blob(value):
    return isinstance(value, bytes)


def scalar(value):
    return isinstance(value, (str, int, float, bool))


def attributes(value):
    return isinstance(value, dict) and all(
        text(k) and (scalar(v) or (isinstance(v, list) and all(map(scalar, v)))) for k, v in value.items()
    )


def read_trailer(data):
    """Steps 1 to 4; C, E, the number of segments, the length of the plaintext."""
    refuse_unless(len(data) >= 24 and data[-4:] == b"SMP1", "not_sealed")
    c, e, version, flags = struct.unpack(">QQHH", data[-24:-4])
    refuse_unless((version, flags) == (1, 0), "unsupported")
    refuse_unless(c + e + 24 == len(data), "truncated")
    refuse_unless(1 <= e <= 67108864)
    n = -(-c // S)
    p = c - 40 - 16 * n
    refuse_unless(p >= 0)
    back = 1 if p <= S - 56 else 1 + -(-(p - (S - 56)) // (S - 16))
    refuse_unless(back == n and n <= 2**32)
    return c, e, n, p


def read_envelope(data, c, n, p, secrets, trusted):
    """Steps 5 to 13; the signed map, the file key, the index."""
    envelope = table(canonical(data), signed=blob, signature=64, recipients=blob, recipients_mac=32, index=blob)
    signed = table(
        canonical(envelope["signed"]),
        suite=text,
        object_id=16,
        header=40,
        segment_bytes=natural,
        payload_bytes=natural,
        segments=natural,
        plain_bytes=natural,
        content_digest=32,
        index_digest=32,
        sender=16,
        created=lambda v: natural(v) and v <= 253402300799,
    )
    refuse_unless(signed["suite"] == "hybrid" and signed["segment_bytes"] == S, "unsupported")
    refuse_unless(signed["header"][0] == 0x28)
    signed_c = signed["payload_bytes"]
    signed_n = -(-signed_c // S)
    refuse_unless((signed["segments"], signed["plain_bytes"]) == (signed_n, signed_c - 40 - 16 * signed_n))
    raw = envelope["recipients"]
    refuse_unless(len(raw) % 1184 == 0 and 1 <= len(raw) // 1184 <= 1024)
    rows = [(raw[i : i + 16], raw[i + 16 : i + 1184]) for i in range(0, len(raw), 1184)]
    refuse_unless(len({each for each, _ in rows}) == len(rows))

    sender = {key_id(each): each for each in trusted}.get(signed["sender"])
    refuse_unless(sender is not None, "untrusted_sender")
    try:
        signing = Ed25519PublicKey.from_public_bytes(sender[1216:])
        signing.verify(envelope["signature"], b"smp1/signed\0" + envelope["signed"])
    except InvalidSignature:
        raise Refused("corrupt") from None
    refuse_unless(signed_c == c, "truncated")
    assert (signed["segments"], signed["plain_bytes"]) == (n, p)

    file_key = unwrap(envelope, rows, secrets)
    index = envelope["index"]
    refuse_unless(h(index) == signed["index_digest"])
    try:
        opened = AESGCM(hkdf(file_key, None, b"smp1/index")).decrypt(index[:12], index[12:], signed["object_id"])
    except (InvalidTag, ValueError):
        raise Refused("corrupt") from None
    return signed, file_key, check_index(canonical(opened), p)


def unwrap(envelope, rows, secrets):
    ours = {key_id(each.blob): each for each in secrets}
    mine = [(ours[k], wrapped) for k, wrapped in rows if k in ours]
    refuse_unless(mine, "wrong_recipient")
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    try:
        file_key = suite.decrypt(mine[0][1], mine[0][0].hpke_key, b"smp1/file-key\0" + h(envelope["signed"]))
    except (InvalidTag, ValueError):
        raise Refused("corrupt") from None
    refuse_unless(len(file_key) == 32)
    mac_key = hkdf(file_key, None, b"smp1/recipients")
    mac = hmac.digest(mac_key, h(envelope["signed"]) + envelope["recipients"], "sha256")
    refuse_unless(hmac.compare_digest(mac, envelope["recipients_mac"]))
    return file_key


def check_index(index, p):
    refuse_unless(isinstance(index, list) and index)
    position, names, folders, values = 0, set(), set(), 0
    for entry in index:
        table(entry, name=text, offset=natural, size=natural, sha256=32, media_type=text, attributes=attributes)
        name = entry["name"]
        refuse_unless("\\" not in name and len(name.encode()) <= 1024)
        refuse_unless(not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name))
        parts = name.split("/")
        refuse_unless(all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts))
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        refuse_unless(folded not in names)
        names.add(folded)
        parts = folded.split("/")
        folders.update("/".join(parts[:i]) for i in range(1, len(parts)))
        media_type = entry["media_type"]
        refuse_unless(len(media_type) <= 255 and all(" " <= c <= "~" for c in media_type))
        refuse_unless(len(msgspec.msgpack.encode(entry["attributes"])) <= 65536)
        values += sum(1 + len(v) if isinstance(v, list) else 1 for v in entry["attributes"].values())
        refuse_unless(values <= 1000000)
        refuse_unless(entry["offset"] == position)
        position += entry["size"]
    refuse_unless(not names & folders)
    refuse_unless(position == p)
    return index


def read_object(data, secrets, trusted):
    """Read and check everything: a list of (entry, bytes).

    Args:
        data: the object.
        secrets: :class:`Secret` of each identity we hold.
        trusted: the 1248 public bytes of each sender we trust.
    """
    c, e, n, p = read_trailer(data)
    signed, file_key, index = read_envelope(data[c : c + e], c, n, p, secrets, trusted)
    header = signed["header"]
    refuse_unless(data[:40] == header)
    payload_key = hkdf(file_key, None, b"smp1/payload")
    cipher = AESGCM(hkdf(payload_key, header[1:33], signed["object_id"]))
    plain, leaves = [], []
    for k in range(n):
        end = min(c, (k + 1) * S)
        nonce = header[33:] + struct.pack(">IB", k, k == n - 1)
        try:
            plain.append(cipher.decrypt(nonce, data[max(40, k * S) : end], None))
        except InvalidTag:
            raise Refused("corrupt") from None
        leaves.append(h(data[k * S : end]))
    refuse_unless(h(b"".join(leaves)) == signed["content_digest"])
    whole = b"".join(plain)
    result = [(entry, whole[entry["offset"] : entry["offset"] + entry["size"]]) for entry in index]
    for entry, content in result:
        refuse_unless(hashlib.sha256(content).digest() == entry["sha256"])
    return result


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as f:
        for entry, content in read_object(f.read(), [Secret(bytes.fromhex(sys.argv[2]))], [bytes.fromhex(sys.argv[3])]):
            print(len(content), entry["name"])
