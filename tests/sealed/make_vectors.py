"""Writes ``proto/vectors``: ``PYTHONPATH=tests python -m sealed.make_vectors``.

Everything random is drawn from a fixed stream, except HPKE's own randomness, which OpenSSL draws itself: the
wrapped file keys, and so their MACs, differ from run to run. So the vectors are kept, and made again only
when the format changes.
"""

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

from sealed.forge import encode, entry, forge, identity

from smp_proto.sealed import keyfile
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.layout import SEGMENT_BYTES as S

ROOT = Path(__file__).parents[2] / "proto" / "vectors"
ALICE, BOB, CAROL = identity("alice"), identity("bob"), identity("carol")
TO_BOB: dict[str, Any] = {"sender": ALICE, "recipients": [BOB.public]}
CREATED = 1_790_000_000


class Stream:
    """Stands in for ``os.urandom``."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, length: int) -> bytes:
        self.count += 1
        return hashlib.shake_256(b"smp vectors %d" % self.count).digest(length)


def pattern(length: int) -> bytes:
    """Plaintext that is not all the same."""
    return hashlib.shake_256(b"plaintext").digest(length)


def bundle(contents: dict[str, bytes], recipients: list[Any], **begin: Any) -> bytes:
    out = bytearray()
    writer = BundleWriter(out.extend, sender=ALICE, recipients=recipients, created=CREATED)
    for name, content in contents.items():
        writer.begin(name, **begin)
        writer.write(content)
        writer.end()
    writer.finish()
    return bytes(out)


def save(name: str, about: str, expect: Any, data: bytes | str, patch: list[Any] | None = None, **who: Any) -> None:
    """One vector: a sidecar, and the object itself unless it is a patch of another."""
    if isinstance(data, bytes):
        (ROOT / f"{name}.smp").write_bytes(data)
    side = {
        "about": about,
        "object": f"{name}.smp" if isinstance(data, bytes) else f"{data}.smp",
        "patch": patch or [],
        "identities": who.get("identities", ["bob"]),
        "trusted": who.get("trusted", ["alice"]),
        "expect": {"error": expect} if isinstance(expect, str) else {"entries": expect},
    }
    (ROOT / f"{name}.json").write_text(json.dumps(side, indent=1) + "\n")


def expected(contents: dict[str, bytes], media_type: str = "", attributes: Any = None) -> list[Any]:
    return [
        {
            "name": name,
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "media_type": media_type,
            "attributes": attributes or {},
        }
        for name, content in contents.items()
    ]


def good() -> None:
    facts = {
        "rows": 512,
        "spacing": [0.5, 0.5, 1.25],
        "signed": False,
        "modality": "MR",
        "low": -1024,
        "axes": [],
    }
    for name, about, contents in [
        ("empty", "one entry of 0 bytes: one segment with only a tag", {"a": b""}),
        ("one-byte", "one byte", {"a": b"x"}),
        ("series", "several entries, some empty, folders, unicode", {
            "in/1.dcm": pattern(1000), "in/2.dcm": b"", "in/ünï/3.dcm": pattern(7), "z": b"",
        }),
    ]:  # fmt: skip
        save(name, about, expected(contents), bundle(contents, [BOB.public]))
    contents = {"a": pattern(20)}
    save("attributes", "every kind of attribute", expected(contents, "image/png", facts),
         bundle(contents, [BOB.public], media_type="image/png", attributes=facts))  # fmt: skip
    save("attributes-most", "as many bytes of attributes as an entry may have", expected(contents, attributes=most(0)),
         bundle(contents, [BOB.public], attributes=most(0)))  # fmt: skip
    data = bundle(contents, [CAROL.public, BOB.public])
    save("two-recipients", "the second row is ours", expected(contents), data)
    save(
        "two-recipients-first",
        "the first row is ours",
        expected(contents),
        "two-recipients",
        identities=["carol"],
    )
    contents = {"first": pattern(S - 56), "second": pattern(S - 16), "third": pattern(9)}
    save("three-segments", "entries as long as segments", expected(contents), bundle(contents, [BOB.public]))


def most(more: int) -> dict[str, str]:
    """Attributes that take 65,536 bytes, and so many more."""
    return {"a": "x" * (65_536 - 6 + more)}


def patched() -> None:
    """Refused objects made of good ones."""
    big = (ROOT / "three-segments.smp").stat().st_size
    c = 40 + (S - 56) + (S - 16) + 9 + 48
    size = (ROOT / "one-byte.smp").stat().st_size

    def xor(at: int) -> list[Any]:
        return [{"op": "xor", "at": at, "hex": "01"}]

    def write(at: int, data: bytes) -> list[Any]:
        return [{"op": "write", "at": at, "hex": data.hex()}]

    save("bad-header", "a bit of the payload header's salt", "corrupt", "one-byte", xor(5))
    save("bad-header-type", "the payload header's first byte", "corrupt", "one-byte", xor(0))
    save("bad-ciphertext", "a bit of the only ciphertext byte", "corrupt", "one-byte", xor(40))
    save("bad-tag", "a bit of the tag", "corrupt", "one-byte", xor(56))
    save("bad-middle-segment", "a bit of segment 1", "corrupt", "three-segments", xor(S + 100))
    save("bad-last-segment", "a bit of the last segment", "corrupt", "three-segments", xor(c - 20))
    save("segments-swapped", "segment 1 twice, instead of segment 2's beginning", "corrupt", "three-segments",
         [{"op": "copy", "from": S, "to": S + 25, "at": 2 * S}])  # fmt: skip
    save("no-magic", "another magic", "not_sealed", "one-byte", xor(-1))
    save(
        "no-trailer",
        "the end is missing",
        "not_sealed",
        "one-byte",
        [{"op": "cut", "from": size - 24, "to": size}],
    )
    save("nothing", "an empty object", "not_sealed", "one-byte", [{"op": "cut", "from": 0, "to": size}])
    save("half", "the first half", "not_sealed", "three-segments", [{"op": "cut", "from": big // 2, "to": big}])
    save("version-2", "a newer version", "unsupported", "one-byte", write(-8, b"\0\2"))
    save("flag", "an unknown flag", "unsupported", "one-byte", write(-6, b"\x80\0"))
    save(
        "byte-missing",
        "one byte of the payload is missing",
        "truncated",
        "one-byte",
        [{"op": "cut", "from": 40, "to": 41}],
    )
    save("byte-added", "one byte before the trailer is too many", "truncated", "one-byte",
         [{"op": "insert", "at": size - 24, "hex": "00"}])  # fmt: skip
    save(
        "segment-missing",
        "segment 1 is missing",
        "truncated",
        "three-segments",
        [{"op": "cut", "from": S, "to": 2 * S}],
    )
    save("segment-missing-fits", "segment 1 is missing and the trailer agrees", "truncated", "three-segments",
         [*write(-24, struct.pack(">Q", c - S)), {"op": "cut", "from": S, "to": 2 * S}])  # fmt: skip
    save("empty-last-segment", "a length that would leave an empty last segment", "corrupt", "three-segments",
         [*write(-24, struct.pack(">QQ", 2 * S + 16, big - 2 * S - 40))])  # fmt: skip
    save("no-envelope", "an envelope of 0 bytes", "corrupt", "one-byte",
         [*write(-24, struct.pack(">QQ", size - 24, 0))])  # fmt: skip
    save("huge-envelope", "lengths near 2**64", "truncated", "one-byte", write(-24, b"\xff" * 16))
    save("envelope-shifted", "the envelope starts a byte late", "corrupt", "one-byte",
         [*write(-24, struct.pack(">QQ", 58, size - 58 - 24))])  # fmt: skip
    save("not-for-us", "sealed for someone else", "wrong_recipient", "one-byte", identities=["carol"])
    save("nobody", "we hold no identity", "wrong_recipient", "one-byte", identities=[])
    save("unknown-sender", "nobody is trusted", "untrusted_sender", "one-byte", trusted=[])
    save("other-sender", "another sender is trusted", "untrusted_sender", "one-byte", trusted=["carol"])


def forged() -> None:
    """Refused objects that their sender signed, and one spliced of two."""

    def make(name: str, about: str, code: str, **over: Any) -> None:
        save(name, about, code, forge(**TO_BOB | over))

    def long_form(value: Any) -> bytes:
        return encode(value).replace(b"\xa7created\xce", b"\xa7created\xcf\0\0\0\0")

    first, second = forge(b"one", **TO_BOB), forge(b"two", **TO_BOB)
    save("spliced", "the payload of another object of the same sender", "corrupt", first[:59] + second[59:])
    make("suite-unknown", "another suite", "unsupported", signed={"suite": "fips"})
    make("segment-size", "another segment size", "unsupported", signed={"segment_bytes": S // 2})
    make("signed-extra-key", "an unknown key in signed", "corrupt", signed={"extra": 1})
    make("signed-long-integer", "an integer in a longer form than needed", "corrupt", encode_signed=long_form)
    make("signed-trailing", "a byte after signed", "corrupt", encode_signed=lambda v: encode(v) + b"\0")
    make("signed-lengths", "the lengths in signed contradict each other", "corrupt", signed={"plain_bytes": 1})
    make("signed-segments", "another number of segments in signed", "corrupt", signed={"segments": 2})
    make("signed-short-digest", "a digest of 31 bytes", "corrupt", signed={"content_digest": bytes(31)})
    make("signed-content-digest", "another content digest", "corrupt", signed={"content_digest": bytes(32)})
    make("signed-index-digest", "another index digest", "corrupt", signed={"index_digest": bytes(32)})
    make("signed-header", "a header of another type", "corrupt", signed={"header": b"\x29" + bytes(39)})
    make("signed-object-id", "another object id", "corrupt", signed={"object_id": bytes(16)})
    make("signed-length-other", "a payload longer than there is", "truncated",
         signed={"payload_bytes": 57, "plain_bytes": 1})  # fmt: skip
    make("envelope-extra-key", "an unknown key in the envelope", "corrupt", wire=lambda w: w | {"more": b""})
    make("envelope-order", "keys of the envelope in another order", "corrupt",
         wire=lambda w: dict(reversed(w.items())))  # fmt: skip
    make("bad-signature", "a signature by another key", "corrupt",
         wire=lambda w: w | {"signature": CAROL.sign(b"smp1/signed\0" + w["signed"])})  # fmt: skip
    make("bad-mac", "another recipients_mac", "corrupt", wire=lambda w: w | {"recipients_mac": bytes(32)})
    make("row-added", "a row added without the file key", "corrupt",
         wire=lambda w: w | {"recipients": w["recipients"] + bytes(1184)})  # fmt: skip
    make("row-twice", "a recipient twice", "corrupt", rows=lambda r: r + r)
    make("row-cut", "a row that is too short", "corrupt", rows=lambda r: r[:-1])
    make("no-rows", "no recipient", "corrupt", rows=lambda r: b"")
    make("row-broken", "the wrapped file key is damaged", "corrupt", rows=lambda r: r[:-1] + bytes([r[-1] ^ 1]))
    make("file-key-short", "a wrapped file key of 31 bytes", "corrupt", wrapped=bytes(31))
    make("file-key-other", "the wrapped file key is another object's", "corrupt", wrapped=bytes(32))
    make("index-none", "no entry", "corrupt", entries=[])
    make("index-trailing", "a byte after the index", "corrupt", encode_index=lambda v: encode(v) + b"\0")
    make("index-gap", "a gap before the entry", "corrupt", plain=b"xyz", entries=[entry("a", b"xyz", 1)])
    overlap = [entry("a", b"xy"), entry("b", b"y", 1)]
    make("index-overlap", "two entries share a byte", "corrupt", plain=b"xyz", entries=overlap)
    make("index-short", "entries do not reach the end", "corrupt", plain=b"xyz", entries=[entry("a", b"xy")])
    make("index-long", "an entry reaches past the end", "corrupt", plain=b"xyz", entries=[entry("a", b"xyz!")])
    make(
        "index-sha256",
        "the SHA-256 of an entry differs",
        "corrupt",
        plain=b"xyz",
        entries=[entry("a", b"abc")],
    )
    make(
        "index-deep",
        "attributes nested deeply",
        "corrupt",
        encode_index=lambda v: b"\x91" * 5_000 + b"\xc0",
    )
    make("index-nil", "an attribute that is nothing", "corrupt", entries=[entry(attributes={"a": None})])
    make("index-attributes", "a byte of attributes too many", "corrupt", entries=[entry(attributes=most(1))])
    make("index-media-type", "a media type with a line feed", "corrupt", entries=[entry(media_type="a\nb")])
    names = {
        "absolute": "/etc/passwd", "parent": "a/../b", "dot": "./a", "empty": "", "double-slash": "a//b",
        "slash-end": "a/", "nul": "a\0b",
        "newline": "a\nb", "c1": "a\x9bb", "line-separator": "a\u2028b", "backslash": "a\\b",
        "long-component": "x" * 256, "long": "x/" * 512 + "x",
    }  # fmt: skip
    for name, bad in names.items():
        make(f"name-{name}", f"an entry name that is refused: {bad[:20]!r}", "corrupt", entries=[entry(bad)])
    for name, pair in {
        "same": ("a", "a"), "case": ("Dir/A", "dir/a"), "sharp-s": ("straße", "STRASSE"),
        "normal-form": ("\u00e9", "e\u0301"), "folder": ("a/b", "a"), "folder-first": ("A", "a/b"),
    }.items():  # fmt: skip
        entries = [entry(each) for each in pair]
        make(f"names-{name}", f"two names that clash: {pair}", "corrupt", entries=entries)


def keys() -> None:
    """The identities, in the clear and as key files."""
    table = {
        each.public.name: {
            "secret": each._secret.hex(),
            "public": each.public.text(),
            "key_id": each.public.key_id.hex(),
        }
        for each in (ALICE, BOB, CAROL)
    }
    (ROOT / "identities.json").write_text(json.dumps(table, indent=1) + "\n")
    keyfile.ARGON2_MEMORY_KIB = 64
    (ROOT / "bob.passphrase.key").write_bytes(BOB.to_file(passphrase=bytearray("pässphrase".encode())))
    (ROOT / "bob.credential.key").write_bytes(BOB.to_file(credential=bytearray(range(32))))


def main() -> None:
    ROOT.mkdir(exist_ok=True)
    for old in [*ROOT.glob("*.smp"), *ROOT.glob("*.json"), *ROOT.glob("*.key")]:
        old.unlink()
    os.urandom = Stream()
    keys()
    good()
    patched()
    forged()


if __name__ == "__main__":
    main()
