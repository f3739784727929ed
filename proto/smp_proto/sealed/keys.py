"""Identities: an encryption key (ML-KEM-768 with X25519) and a signing key (Ed25519) that belong together.

The encryption key is an X-Wing key (draft-connolly-cfrg-xwing-kem); HPKE calls it MLKEM768-X25519, 0x647a.
Secrets stay in ``bytearray`` and in OpenSSL's objects, which clear themselves; nothing here prints them.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nacl.bindings import crypto_core_ed25519_is_valid_point
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from smp_proto.errors import IntegrityError, KeyFileError, StateError
from smp_proto.sealed import keyfile
from smp_proto.sealed.filekey import FileKey, random_secret, take, wipe

__all__ = ["FileKey", "Identity", "PublicIdentity", "hpke_suite"]

MLKEM_BYTES = 1184
MLKEM_SEED_BYTES = 64
DECRYPTION_BYTES = MLKEM_SEED_BYTES + 32  # what opens, without what signs
ENC_KEY_BYTES = MLKEM_BYTES + 32
VERIFY_KEY_BYTES = 32
PUBLIC_BYTES = ENC_KEY_BYTES + VERIFY_KEY_BYTES
SECRET_BYTES = 64  # X-Wing seed[32], Ed25519 seed[32]
WRAPPED_BYTES = 1120 + 32 + 16  # HPKE enc, a sealed file key, its tag
KEY_ID_BYTES = 16
NAME_MAX = 64
_PREFIX = "smp1pub:"
_LABEL = b"smp1/identity\0"
_CHECK_BYTES = 4
_TEXT_MAX = 2048


def hpke_suite() -> Suite:
    """HPKE (RFC 9180, base mode) of the suite ``hybrid``."""
    return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclass(frozen=True, slots=True)
class PublicIdentity:
    """What others need to seal for someone and to check who sealed.

    Args:
        enc_key: 1216 bytes, ML-KEM-768 encapsulation key then X25519 key.
        verify_key: 32 bytes, Ed25519.
        name: a hint for people, up to 64 printable characters; never compared and never trusted.

    Attributes:
        key_id: 16 bytes that name this identity: the front of SHA-256 over the label and both keys.

    Raises:
        KeyFileError: ``key_invalid``; a length is wrong, or the bytes are no such key.
    """

    enc_key: bytes
    verify_key: bytes
    name: str = field(default="", compare=False)
    key_id: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.enc_key) != ENC_KEY_BYTES or len(self.verify_key) != VERIFY_KEY_BYTES:
            raise _invalid("the public key is too short or too long")
        if len(self.name) > NAME_MAX or not self.name.isprintable() or self.name != self.name.strip():
            raise _invalid("the name of a public key is up to 64 printable characters")
        try:
            self._hpke_key()
            # Points of small order pass until they are used; they must not reach an upload.
            X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(self.enc_key[MLKEM_BYTES:]))
        except ValueError:
            raise _invalid("the public key holds no ML-KEM-768 and X25519 key") from None
        # Also refuses the points of small order, with which anyone could sign.
        if not crypto_core_ed25519_is_valid_point(self.verify_key):
            raise _invalid("the public key holds no Ed25519 key")
        object.__setattr__(self, "key_id", _digest(self.blob)[:KEY_ID_BYTES])

    def _hpke_key(self) -> MLKEM768X25519PublicKey:
        return MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(self.enc_key[:MLKEM_BYTES]),
            X25519PublicKey.from_public_bytes(self.enc_key[MLKEM_BYTES:]),
        )

    @property
    def blob(self) -> bytes:
        """The 1248 bytes of both keys."""
        return self.enc_key + self.verify_key

    @classmethod
    def from_blob(cls, blob: bytes, name: str = "") -> "PublicIdentity":
        """Both keys, as :attr:`blob` joins them.

        Raises:
            KeyFileError: ``key_invalid``.
        """
        return cls(blob[:ENC_KEY_BYTES], blob[ENC_KEY_BYTES:], name)

    def fingerprint(self) -> str:
        """The key id for people to compare: eight groups of four hex digits."""
        return self.key_id.hex("-", 2)

    def text(self) -> str:
        """One printable line: prefix, base64url of both keys and a checksum, then the name, if any."""
        check = _digest(self.blob)[KEY_ID_BYTES : KEY_ID_BYTES + _CHECK_BYTES]
        encoded = base64.urlsafe_b64encode(self.blob + check).decode().rstrip("=")
        return f"{_PREFIX}{encoded} {self.name}".rstrip()

    @classmethod
    def parse(cls, text: str) -> "PublicIdentity":
        """Read what :meth:`text` wrote; white space around it is ignored.

        Raises:
            KeyFileError: ``key_invalid``; a typo anywhere in the key is refused.
        """
        line = text.strip()
        encoded, _, name = line.removeprefix(_PREFIX).partition(" ")
        if len(line) > _TEXT_MAX or not line.startswith(_PREFIX):
            raise _invalid("this is no public key")
        try:
            data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _invalid("the public key is cut short or has a typo") from None
        blob = data[:PUBLIC_BYTES]
        public = cls.from_blob(blob, name)
        # The text is compared, not the checksum alone: base64 has spare bits that decode to nothing.
        if public.text().split(" ")[0] != _PREFIX + encoded:
            raise _invalid("the public key has a typo: its checksum does not match")
        return public

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether this identity made the Ed25519 signature (RFC 8032, with libsodium's stricter checks)."""
        try:
            VerifyKey(self.verify_key).verify(message, signature)
        except (BadSignatureError, ValueError):
            return False
        return True

    def wrap(self, secret: bytearray, info: bytes) -> bytes:
        """HPKE in base mode for this identity: enc, then ciphertext and tag; 1136 bytes over the secret."""
        return hpke_suite().encrypt(secret, self._hpke_key(), info)


class Identity:
    """Both secret keys of an identity.

    Args:
        secret: 64 bytes, X-Wing seed then Ed25519 seed; this object owns them from now on.
        name: a hint for people.
    """

    __slots__ = ("_halves", "_hpke", "_secret", "_signing", "public")

    def __init__(self, secret: bytearray, name: str = "") -> None:
        if len(secret) != SECRET_BYTES:
            raise _invalid("an identity is 64 secret bytes")
        # X-Wing, section 5.2: SHAKE256 makes the seeds of ML-KEM (d, z) and the X25519 key of one seed.
        view = memoryview(secret)  # its slices are no copies
        expanded = take(hashlib.shake_256(view[:32]).digest(96))
        try:
            mlkem = MLKEM768PrivateKey.from_seed_bytes(memoryview(expanded)[:64])
            x25519 = X25519PrivateKey.from_private_bytes(memoryview(expanded)[64:])
        finally:
            wipe(expanded)
        self._signing: Ed25519PrivateKey | None = Ed25519PrivateKey.from_private_bytes(view[32:])
        self._halves: tuple[MLKEM768PrivateKey, X25519PrivateKey] | None = (mlkem, x25519)
        self._hpke: MLKEM768X25519PrivateKey | None = MLKEM768X25519PrivateKey(mlkem, x25519)
        self._secret = secret
        self.public = PublicIdentity(
            mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw(),
            self._signing.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw),
            name,
        )

    @classmethod
    def generate(cls, name: str = "") -> "Identity":
        """A fresh identity."""
        return cls(random_secret(SECRET_BYTES), name)

    def sign(self, message: bytes) -> bytes:
        """64 bytes of Ed25519."""
        if self._signing is None:
            raise StateError("wrong_state", "this identity signs no more")
        return self._signing.sign(message)

    def unwrap(self, wrapped: bytes, info: bytes) -> bytearray:
        """Open what :meth:`PublicIdentity.wrap` made; the caller wipes it.

        Raises:
            IntegrityError: ``corrupt``; not made for this key and this ``info``, or changed since.
            StateError: the identity was wiped.
        """
        if self._hpke is None:
            raise _wiped()
        try:
            return take(hpke_suite().decrypt(wrapped, self._hpke, info))
        except (InvalidTag, ValueError):
            pass
        message = f"the file key wrapped for {self.public.fingerprint()} does not open"
        raise IntegrityError("corrupt", message)

    def wipe(self) -> None:
        """Overwrite the secrets and let go of OpenSSL's copies; using them afterwards raises."""
        wipe(self._secret)
        self._secret = bytearray()
        self._halves = self._hpke = self._signing = None

    def forget_seed(self) -> None:
        """Overwrite the seeds and keep only what opens and signs; :meth:`to_file` raises afterwards."""
        wipe(self._secret)
        self._secret = bytearray()

    def decrypt_only(self) -> "Identity":
        """This identity without its seeds and its signing key: it opens, and :meth:`sign` raises.

        The decryption key is the same object, so let go of this one, or forget its seed: nothing is copied.
        """
        other = object.__new__(Identity)
        other._hpke, other._signing, other._secret, other.public = self._hpke, None, bytearray(), self.public
        other._halves = self._halves
        return other

    def decryption_key(self) -> bytearray:
        """What :meth:`from_decryption_key` takes: the seed of ML-KEM, then the key of X25519; the caller wipes it.

        Raises:
            StateError: the identity was wiped.
        """
        if self._halves is None:
            raise _wiped()
        mlkem, x25519 = (take(each.private_bytes_raw()) for each in self._halves)
        try:
            key = bytearray(DECRYPTION_BYTES)
            key[:MLKEM_SEED_BYTES], key[MLKEM_SEED_BYTES:] = mlkem, x25519
            return key
        finally:
            wipe(mlkem)
            wipe(x25519)

    @classmethod
    def from_decryption_key(cls, key: bytearray | memoryview, public: PublicIdentity) -> "Identity":
        """An identity that opens and does not sign, as :meth:`decrypt_only` makes one; the key stays the caller's.

        Raises:
            KeyFileError: ``key_invalid``; it is not the key of that public key.
        """
        if len(key) != DECRYPTION_BYTES:
            raise _invalid(f"a decryption key has {DECRYPTION_BYTES} bytes")
        with memoryview(key) as view:
            mlkem = MLKEM768PrivateKey.from_seed_bytes(view[:MLKEM_SEED_BYTES])
            x25519 = X25519PrivateKey.from_private_bytes(view[MLKEM_SEED_BYTES:])
        if mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw() != public.enc_key:
            raise _invalid("the decryption key is that of another public key")
        identity = object.__new__(cls)
        identity._halves, identity._hpke = (mlkem, x25519), MLKEM768X25519PrivateKey(mlkem, x25519)
        identity._signing, identity._secret, identity.public = None, bytearray(), public
        return identity

    def to_file(self, *, passphrase: bytearray | None = None, credential: bytearray | None = None) -> bytes:
        """The key file, sealed by one of a passphrase (Argon2id) or key material of 32 bytes or more (HKDF).

        Raises:
            UsageError: ``bad_request``; none or both are given, or one is too short.
            ResourceError: ``no_memory``; Argon2id gets none.
        """
        if not self._secret:
            raise _wiped()
        return keyfile.seal(
            self._secret, self.public.blob, self.public.name, passphrase=passphrase, credential=credential
        )

    @classmethod
    def from_file(
        cls, data: bytes, *, passphrase: bytearray | None = None, credential: bytearray | None = None
    ) -> "Identity":
        """Open a key file.

        Raises:
            KeyFileError: ``key_locked`` for a wrong or missing secret, ``key_invalid`` for a damaged file.
            ResourceError: ``no_memory``; Argon2id gets none.
        """
        public = cls.peek(data)
        identity = cls(keyfile.open_(data, passphrase=passphrase, credential=credential), public.name)
        if identity.public != public:
            identity.wipe()
            raise _invalid("the key file holds the secrets of another public key")
        return identity

    @staticmethod
    def peek(data: bytes) -> PublicIdentity:
        """The public part of a key file. Only opening the file shows that nobody changed it.

        Raises:
            KeyFileError: ``key_invalid``.
        """
        blob, name = keyfile.peek(data)
        return PublicIdentity.from_blob(blob, name)

    def __repr__(self) -> str:
        return f"<Identity {self.public.fingerprint()}>"


def _digest(blob: bytes) -> bytes:
    return hashlib.sha256(_LABEL + blob).digest()


def _invalid(message: str) -> KeyFileError:
    return KeyFileError("key_invalid", message, hint="copy the whole key again from its owner")


def _wiped() -> StateError:
    return StateError("wrong_state", "this identity was wiped")
