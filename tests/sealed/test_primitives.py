"""Others' vectors through the very calls this room makes, and Tink on the other side of our HPKE."""

import json
from collections.abc import Iterator

import cryptography_vectors
import nacl.bindings
import pytest
import tink
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.bindings._rust import (
    openssl,
)  # HPKE vectors carry associated data, the public call does not
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from tink import hybrid, secret_key_access
from tink.proto import hpke_pb2, tink_pb2

from smp_proto.errors import IntegrityError
from smp_proto.sealed.filekey import hkdf
from smp_proto.sealed.keys import Identity


def blocks(path: str) -> Iterator[dict[str, str]]:
    """The ``key = value`` blocks of a NIST-style file; a lone word (FAIL) becomes a key."""
    block: dict[str, str] = {}
    with cryptography_vectors.open_vector_file(path, "r") as f:
        for line in [*f.read().splitlines(), "count = end"]:
            key, _, value = (part.strip() for part in line.partition("="))
            if key.lower() == "count" and block:
                yield block
                block = {}
            if key and key[0] not in "#[":
                block[key.lower()] = value


def hpke_vectors(path: str, kem: int, aead: int) -> list[dict[str, object]]:
    with cryptography_vectors.open_vector_file(f"HPKE/{path}", "r") as f:
        wanted = (0, kem, 1, aead)
        return [v for v in json.load(f) if (v["mode"], v["kem_id"], v["kdf_id"], v["aead_id"]) == wanted]


def test_hpke_x_wing_vectors() -> None:
    """HPKE-PQ: our expansion of the 32-byte seed gives pkRm, and the KEM with our KDF opens its text."""
    (vector,) = hpke_vectors("hpke-pq-test-vectors.json", 0x647A, 3)
    identity = Identity(bytearray.fromhex(vector["skRm"]) + bytearray(32))
    assert bytes.fromhex(vector["pkRm"]) == identity.public.enc_key
    suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
    first = {k: bytes.fromhex(v) for k, v in vector["encryptions"][0].items()}
    sealed = bytes.fromhex(vector["enc"]) + first["ct"]
    opened = openssl.hpke._decrypt_with_aad(suite, sealed, identity._hpke, bytes.fromhex(vector["info"]), first["aad"])
    assert first["pt"] == opened


def test_hpke_rfc9180_vectors() -> None:
    """RFC 9180: our KDF and our AEAD under HPKE, with the KEM that the RFC has vectors for."""
    (vector,) = hpke_vectors("test-vectors.json", 0x20, 2)
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["skRm"]))
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    first = {k: bytes.fromhex(v) for k, v in vector["encryptions"][0].items()}
    sealed = bytes.fromhex(vector["enc"]) + first["ct"]
    assert first["pt"] == openssl.hpke._decrypt_with_aad(
        suite, sealed, private, bytes.fromhex(vector["info"]), first["aad"]
    )


def tink_keyset(kind: str, value: bytes, material: int) -> bytes:
    keyset = tink_pb2.Keyset(primary_key_id=1)
    key = keyset.key.add(key_id=1, status=tink_pb2.ENABLED, output_prefix_type=tink_pb2.RAW)
    key.key_data.type_url = f"type.googleapis.com/google.crypto.tink.{kind}"
    key.key_data.value = value
    key.key_data.key_material_type = material
    return keyset.SerializeToString()


def test_x_wing_with_tink_both_ways(bob: Identity) -> None:
    """Tink wraps for our public key and opens what we wrapped, from the same 32-byte seed."""
    hybrid.register()
    params = hpke_pb2.HpkeParams(kem=hpke_pb2.X_WING, kdf=hpke_pb2.HKDF_SHA256, aead=hpke_pb2.AES_256_GCM)
    public = hpke_pb2.HpkePublicKey(params=params, public_key=bob.public.enc_key)
    private = hpke_pb2.HpkePrivateKey(public_key=public, private_key=bytes(bob._secret[:32]))
    wrapper = tink.proto_keyset_format.parse_without_secret(
        tink_keyset("HpkePublicKey", public.SerializeToString(), tink_pb2.KeyData.ASYMMETRIC_PUBLIC)
    ).primitive(hybrid.HybridEncrypt)
    opener = tink.proto_keyset_format.parse(
        tink_keyset("HpkePrivateKey", private.SerializeToString(), tink_pb2.KeyData.ASYMMETRIC_PRIVATE),
        secret_key_access.TOKEN,
    ).primitive(hybrid.HybridDecrypt)
    assert bytearray(range(32)) == bob.unwrap(wrapper.encrypt(bytes(range(32)), b"info"), b"info")
    assert bytes(range(32)) == opener.decrypt(bob.public.wrap(bytearray(range(32)), b"info"), b"info")
    with pytest.raises(IntegrityError):
        bob.unwrap(wrapper.encrypt(bytes(32), b"other info"), b"info")


def test_aes_256_gcm_vectors() -> None:
    """NIST: 96-bit nonces and 128-bit tags, opened and sealed into buffers; the bad ones are refused."""
    tried = 0
    for block in blocks("ciphers/AES/GCM/gcmDecrypt256.rsp"):
        iv, tag = bytes.fromhex(block["iv"]), bytes.fromhex(block["tag"])
        if len(iv) != 12 or len(tag) != 16:
            continue
        tried += 1
        cipher, sealed = AESGCM(bytearray.fromhex(block["key"])), bytes.fromhex(block["ct"]) + tag
        out, aad = bytearray(len(sealed) - 16), bytes.fromhex(block["aad"])
        if "fail" in block:
            with pytest.raises(InvalidTag):
                cipher.decrypt_into(iv, sealed, aad, out)
            continue
        cipher.decrypt_into(iv, sealed, aad, out)
        assert bytes.fromhex(block["pt"]) == out
        again = bytearray(len(sealed))
        cipher.encrypt_into(iv, out, aad, again)
        assert sealed == again
    assert tried == 375


def test_hkdf_vectors() -> None:
    """RFC 5869 with SHA-256, including the absent salt that our subkeys use."""
    for block in blocks("KDF/rfc-5869-HKDF-SHA256.txt"):
        if not block.get("l"):
            continue
        out = bytearray(int(block["l"]))
        salt, info = bytes.fromhex(block["salt"]), bytes.fromhex(block["info"])
        HKDF(SHA256(), len(out), salt or None, info).derive_into(bytes.fromhex(block["ikm"]), out)
        assert bytes.fromhex(block["okm"]) == out
        assert out[:32] == hkdf(bytearray.fromhex(block["ikm"]), salt=salt or None, info=info)


def test_argon2id_agrees_with_openssl() -> None:
    """libsodium's Argon2id is OpenSSL's with one lane."""
    out = bytearray(32)
    Argon2id(salt=bytes(range(16)), length=32, iterations=2, lanes=1, memory_cost=64).derive_into(
        bytearray(b"passphrase"), out
    )
    algorithm = nacl.bindings.crypto_pwhash_ALG_ARGON2ID13
    assert out == nacl.bindings.crypto_pwhash_alg(32, b"passphrase", bytes(range(16)), 2, 64 << 10, algorithm)


def test_ml_kem_vectors() -> None:
    """FIPS 203 known answers for ML-KEM-768 from seeds, first twenty."""
    for block, _ in zip(blocks("asymmetric/MLKEM/kat_MLKEM_768.rsp"), range(20), strict=False):
        private = MLKEM768PrivateKey.from_seed_bytes(bytearray.fromhex(block["d"] + block["z"]))
        assert bytes.fromhex(block["pk"]) == private.public_key().public_bytes_raw()
        assert bytes.fromhex(block["ss"]) == private.decapsulate(bytes.fromhex(block["ct"]))


def test_ed25519_vectors() -> None:
    """The Ed25519 authors' vectors: OpenSSL signs, libsodium verifies, as an identity does."""
    with cryptography_vectors.open_vector_file("asymmetric/Ed25519/sign.input", "r") as f:
        lines = f.read().split("\n")[:64]
    for line in lines:
        secret, public, message, signature = (bytes.fromhex(part) for part in line.split(":")[:4])
        identity = Identity(bytearray(32) + bytearray(secret[:32]))
        signed = signature[:64]
        assert (public, signed) == (identity.public.verify_key, identity.sign(message))
        assert identity.public.verify(signed, message)
        assert not identity.public.verify(signed, message + b"!")


def test_blake3_known_answer() -> None:
    """The empty input of BLAKE3's official vectors."""
    assert blake3(b"").hexdigest() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
