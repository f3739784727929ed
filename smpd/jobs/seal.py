"""Small secrets at rest: names, configurations and credentials are sealed before they reach the database.

AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce, so at most 2³² blobs under one key. The context is the
associated data: a blob moved to another row or column does not open.
"""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from smp_proto.errors import IntegrityError, StateError
from smp_proto.memory import wipe

KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16


class StateSeal:
    """Seals blobs under the daemon's state key.

    Args:
        key: 32 uniform bytes. Two subkeys are derived from it; it stays the caller's to wipe.
    """

    def __init__(self, key: bytearray) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError("a state key has 32 bytes")
        self._cipher_key = bytearray(KEY_BYTES)
        digest_key = bytearray(KEY_BYTES)
        HKDFExpand(SHA256(), KEY_BYTES, b"smp state cipher").derive_into(key, self._cipher_key)
        HKDFExpand(SHA256(), KEY_BYTES, b"smp state digest").derive_into(key, digest_key)
        self._digests: HMAC | None = HMAC(digest_key, SHA256())
        wipe(digest_key)

    def __repr__(self) -> str:
        return "<StateSeal>"

    def seal(self, plain: bytes | bytearray, context: str) -> bytes:
        """Return nonce ‖ ciphertext ‖ tag, 28 bytes longer than ``plain``."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + AESGCM(self._cipher_key).encrypt(nonce, plain, context.encode())

    def open(self, blob: bytes, context: str) -> bytes:
        """Return what was sealed.

        Raises:
            IntegrityError: ``corrupt``, when the blob was changed, moved, or sealed under another key.
        """
        plain = bytearray()
        try:
            # A damaged cell may have become one of another type.
            if not isinstance(blob, bytes) or len(blob) < _NONCE_BYTES + _TAG_BYTES:
                raise InvalidTag
            plain = bytearray(len(blob) - _NONCE_BYTES - _TAG_BYTES)
            AESGCM(self._cipher_key).decrypt_into(blob[:_NONCE_BYTES], blob[_NONCE_BYTES:], context.encode(), plain)
            return bytes(plain)
        except InvalidTag:  # the plaintext is there all the same, and would be in an object that nobody could reach
            raise IntegrityError(
                "corrupt",
                f"the stored record {context} does not open",
                hint="the state directory was changed or damaged, or belongs to another key; restore it from a backup",
            ) from None
        finally:
            wipe(plain)

    def digest(self, *parts: str) -> bytes:
        """Return a keyed digest of 32 bytes, to look something up by without storing it.

        Raises:
            StateError: the keys were wiped.
        """
        if self._digests is None:
            raise StateError("wrong_state", "the state key was wiped")
        mac = self._digests.copy()
        # In one go: a listing of a hundred thousand objects makes two of these for each.
        mac.update(b"".join([len(data).to_bytes(8, "big") + data for data in map(str.encode, parts)]))
        return mac.finalize()

    def wipe(self) -> None:
        """Zero the keys; nothing opens afterwards."""
        wipe(self._cipher_key)
        self._digests = None
