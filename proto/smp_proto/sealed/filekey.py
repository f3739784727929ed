"""Key material in memory: held in a ``bytearray``, hidden from ``repr``, wiped after use."""

import os

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from smp_proto.errors import StateError
from smp_proto.memory import take, wipe

__all__ = ["FILE_KEY_BYTES", "FileKey", "hkdf", "random_secret", "take", "wipe"]

FILE_KEY_BYTES = 32


def random_secret(length: int) -> bytearray:
    """Fresh bytes from the operating system."""
    return take(os.urandom(length))


def hkdf(material: bytearray, *, salt: bytes | None, info: bytes) -> bytearray:
    """32 bytes of HKDF-SHA256 (RFC 5869); an absent salt is 32 zero bytes, as section 2.2 says."""
    derived = bytearray(32)
    HKDF(SHA256(), len(derived), salt, info).derive_into(material, derived)
    return derived


class FileKey:
    """The key of one object: 32 random bytes that go to the recipients, never used except to derive subkeys.

    Args:
        material: 32 bytes; this object owns them from now on.
    """

    __slots__ = ("_material",)

    def __init__(self, material: bytearray) -> None:
        if len(material) != FILE_KEY_BYTES:
            raise ValueError("a file key is 32 bytes")
        self._material = material

    @classmethod
    def generate(cls) -> "FileKey":
        """A fresh one."""
        return cls(random_secret(FILE_KEY_BYTES))

    @property
    def material(self) -> bytearray:
        """The 32 bytes themselves, not a copy.

        Raises:
            StateError: the key was wiped.
        """
        if not self._material:
            raise StateError("wrong_state", "this file key was wiped")
        return self._material

    def payload_key(self) -> bytearray:
        """The key material of the payload; the caller wipes it."""
        return hkdf(self.material, salt=None, info=b"smp1/payload")

    def index_key(self) -> bytearray:
        """The AES-256-GCM key of the index; the caller wipes it."""
        return hkdf(self.material, salt=None, info=b"smp1/index")

    def mac_key(self) -> bytearray:
        """The HMAC-SHA256 key of the recipients; the caller wipes it."""
        return hkdf(self.material, salt=None, info=b"smp1/recipients")

    def wipe(self) -> None:
        """Overwrite the key; using it afterwards raises."""
        wipe(self._material)
        self._material = bytearray()

    def __repr__(self) -> str:
        return "<FileKey>"
