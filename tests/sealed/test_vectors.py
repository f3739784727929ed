"""The committed vectors, read by this project's reader and by the one written from the page alone."""

import ast
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from sealed import independent_reader
from sealed.helpers import reader

from smp_proto.errors import SmpError
from smp_proto.sealed.keys import Identity, PublicIdentity

ROOT = Path(__file__).parents[2] / "proto" / "vectors"
IDENTITIES = json.loads((ROOT / "identities.json").read_text())
VECTORS = sorted(p.stem for p in ROOT.glob("*.json") if p.stem != "identities")


def patched(vector: dict[str, Any]) -> bytes:
    data = bytearray((ROOT / vector["object"]).read_bytes())
    for patch in vector["patch"]:
        new = bytes.fromhex(patch.get("hex", ""))
        at = patch.get("at", 0) % (len(data) + 1) if patch.get("at", 0) >= 0 else len(data) + patch["at"]
        match patch["op"]:
            case "write":
                data[at : at + len(new)] = new
            case "xor":
                data[at : at + len(new)] = bytes(a ^ b for a, b in zip(data[at:], new, strict=False))
            case "cut":
                del data[patch["from"] : patch["to"]]
            case "insert":
                data[at:at] = new
            case "copy":
                part = data[patch["from"] : patch["to"]]
                data[at : at + len(part)] = part
    return bytes(data)


def load(name: str) -> tuple[dict[str, Any], bytes]:
    vector = json.loads((ROOT / f"{name}.json").read_text())
    return vector, patched(vector)


def described(entry: dict[str, Any], content: bytes) -> dict[str, Any]:
    return {
        "name": entry["name"],
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "media_type": entry["media_type"],
        "attributes": entry["attributes"],
    }


@pytest.mark.parametrize("name", VECTORS)
def test_our_reader(name: str) -> None:
    """Every vector opens to its entries or is refused with its code."""
    vector, data = load(name)
    ours = [Identity(bytearray.fromhex(IDENTITIES[each]["secret"])) for each in vector["identities"]]
    trusted = [Identity(bytearray.fromhex(IDENTITIES[each]["secret"])) for each in vector["trusted"]]
    got: dict[str, bytearray] = {}
    try:
        with reader(data, ours, trusted) as r:
            r.extract(lambda entry, offset, view: got.setdefault(entry.name, bytearray()).extend(view))
            outcome: Any = {
                "entries": [
                    described({f: getattr(e, f) for f in e.__struct_fields__}, bytes(got[e.name])) for e in r.entries
                ]
            }
    except SmpError as error:
        outcome = {"error": error.code}
    assert vector["expect"] == outcome, vector["about"]


@pytest.mark.parametrize("name", VECTORS)
def test_independent_reader(name: str) -> None:
    """The page alone leads to the same outcome for every vector."""
    vector, data = load(name)
    ours = [independent_reader.Secret(bytes.fromhex(IDENTITIES[n]["secret"])) for n in vector["identities"]]
    trusted = [independent_reader.Secret(bytes.fromhex(IDENTITIES[n]["secret"])).blob for n in vector["trusted"]]
    try:
        read = independent_reader.read_object(data, ours, trusted)
        outcome: Any = {"entries": [described(entry, content) for entry, content in read]}
    except independent_reader.Refused as refused:
        outcome = {"error": refused.args[0]}
    assert vector["expect"] == outcome, vector["about"]


def test_the_independent_reader_is_independent() -> None:
    """It imports neither the project nor anything that does."""
    tree = ast.parse(Path(independent_reader.__file__).read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    allowed = {
        "ast",
        "blake3",
        "cryptography",
        "dataclasses",
        "hashlib",
        "hmac",
        "msgspec",
        "struct",
        "sys",
        "unicodedata",
    }
    assert {each.partition(".")[0] for each in imported} <= allowed


def test_every_code_has_a_vector() -> None:
    """Each code of section 9 is expected at least once, and so is success."""
    expected = [json.loads((ROOT / f"{name}.json").read_text())["expect"] for name in VECTORS]
    codes = {each.get("error", "success") for each in expected}
    wanted = {
        "corrupt",
        "not_sealed",
        "success",
        "truncated",
        "unsupported",
        "untrusted_sender",
        "wrong_recipient",
    }
    assert wanted == codes


@pytest.mark.parametrize("name", sorted(IDENTITIES))
def test_identities(name: str) -> None:
    """The fixed secrets give the fixed public keys and key ids, by our code and by the page's."""
    fixed = IDENTITIES[name]
    identity = Identity(bytearray.fromhex(fixed["secret"]), name)
    assert fixed["public"] == identity.public.text()
    assert fixed["key_id"] == identity.public.key_id.hex()
    assert PublicIdentity.parse(fixed["public"]).name == name
    blob = independent_reader.Secret(bytes.fromhex(fixed["secret"])).blob
    assert fixed["key_id"] == independent_reader.key_id(blob).hex()


def test_key_files() -> None:
    """The committed key files open with the secrets that the page of the vectors names."""
    by_phrase = (ROOT / "bob.passphrase.key").read_bytes()
    by_credential = (ROOT / "bob.credential.key").read_bytes()
    for opened in (
        Identity.from_file(by_phrase, passphrase=bytearray("pässphrase".encode())),
        Identity.from_file(by_credential, credential=bytearray(range(32))),
    ):
        assert IDENTITIES["bob"]["public"] == opened.public.text()
