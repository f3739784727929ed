"""One segment in or out: AES256-GCM-HKDF streaming as Tink defines it, and the leaves over its ciphertext.

Source: developers.google.com/tink/streaming-aead/aes_gcm_hkdf_streaming. Header = 0x28, salt[32], prefix[7];
key = HKDF-SHA256(payload key, salt, info = associated data = object id); nonce = prefix, u32 k, u8 last.
"""

import os
import struct
import threading
from collections.abc import Iterable

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from smp_proto.errors import IntegrityError, StateError
from smp_proto.sealed.filekey import hkdf, wipe
from smp_proto.sealed.layout import HEADER_BYTES, SEGMENT_BYTES, TAG_BYTES, Layout

Buffer = bytes | bytearray | memoryview
HEADER_TYPE = HEADER_BYTES  # Tink's header begins with its own length
_SALT = slice(1, 33)
_PREFIX = slice(33, 40)


def check_header(header: bytes) -> None:
    """Raise ``corrupt`` unless this is a payload header."""
    if len(header) != HEADER_BYTES or header[0] != HEADER_TYPE:
        raise IntegrityError("corrupt", "the payload header is malformed")


def _cipher(subkey: bytearray, header: bytes, object_id: bytes) -> AESGCM:
    key = hkdf(subkey, salt=header[_SALT], info=object_id)
    try:
        return AESGCM(key)
    finally:
        wipe(key)


def _nonce(header: bytes, k: int, last: bool) -> bytes:
    return header[_PREFIX] + struct.pack(">IB", k, last)


class PayloadOpener:
    """Opens the segments of one payload, in any order and from several threads at once.

    Args:
        subkey: ``FileKey.payload_key()``; may be wiped when this returns.
        header: bytes 0..40 of the object.
        object_id: 16 bytes, the associated data.
        layout: where the segments lie.
    """

    def __init__(self, subkey: bytearray, header: bytes, object_id: bytes, layout: Layout) -> None:
        check_header(header)
        self._cipher: AESGCM | None = _cipher(subkey, header, object_id)
        self._header = header
        self._layout = layout

    def open_segment(self, k: int, ciphertext: Buffer, out: bytearray | memoryview) -> int:
        """Open segment ``k`` into the front of ``out`` and return how many bytes it holds.

        Args:
            k: the segment's number.
            ciphertext: the segment as it lies in the object, tag included, header not.
            out: writable, at least as long as the plaintext. Its rest is left alone.

        Raises:
            IntegrityError: ``truncated`` when the length is not the segment's, ``corrupt`` when the tag does
                not match; what was written to ``out`` is zero again by then.
            ValueError: ``out`` is too short.
        """
        start, end = self._layout.segment_span(k)
        if len(ciphertext) != end - start:
            message = f"segment {k} is {len(ciphertext)} bytes long, not {end - start}"
            raise IntegrityError("truncated", message, details={"segment": k})
        plain_bytes = end - start - TAG_BYTES
        with memoryview(out) as view, view[:plain_bytes] as target:
            if len(target) != plain_bytes:
                raise ValueError(f"segment {k} needs {plain_bytes} bytes")
            nonce = _nonce(self._header, k, k == self._layout.segments - 1)
            try:
                return _in_use(self._cipher).decrypt_into(nonce, ciphertext, None, target)
            except InvalidTag:
                target[:] = bytes(plain_bytes)  # the cipher has left the unverified plaintext there
        message = f"segment {k} is not what was sealed: its tag does not match"
        raise IntegrityError("corrupt", message, details={"segment": k})

    def wipe(self) -> None:
        """Let go of the key now, and not when the last reference to this object goes; opening afterwards raises."""
        self._cipher = None


class PayloadSealer:
    """Seals the segments of one payload, each once and in order, so that no nonce can serve twice.

    Args:
        subkey: ``FileKey.payload_key()``; may be wiped when this returns.
        object_id: 16 bytes, the associated data.
    """

    def __init__(self, subkey: bytearray, object_id: bytes, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.header = bytes([HEADER_TYPE]) + os.urandom(HEADER_BYTES - 1)
        self._cipher: AESGCM | None = _cipher(subkey, self.header, object_id)
        self._segment_bytes = segment_bytes
        self._next: int | None = 0
        self._lock = threading.Lock()

    def seal_segment(self, k: int, plain: Buffer, out: bytearray | memoryview, *, last: bool) -> int:
        """Seal segment ``k`` into the front of ``out`` and return its length, tag included.

        Raises:
            ValueError: not the next segment, a length that this segment cannot have, or ``out`` is too short.
        """
        full = self._segment_bytes - TAG_BYTES - (HEADER_BYTES if k == 0 else 0)
        least = full if not last else min(k, 1)  # only a payload without plaintext has an empty segment
        if not least <= len(plain) <= full:
            raise ValueError(f"segment {k} cannot hold {len(plain)} bytes")
        sealed_bytes = len(plain) + TAG_BYTES
        with memoryview(out) as view, view[:sealed_bytes] as target:
            if len(target) != sealed_bytes:
                raise ValueError(f"segment {k} needs {sealed_bytes} bytes")
            with self._lock:
                if k != self._next:
                    raise ValueError(f"segment {k} is not the next to seal")
                self._next = None if last else k + 1
            return _in_use(self._cipher).encrypt_into(_nonce(self.header, k, last), plain, None, target)

    def wipe(self) -> None:
        """Let go of the key now; sealing afterwards raises."""
        self._cipher = None


def _in_use(cipher: AESGCM | None) -> AESGCM:
    if cipher is None:
        raise StateError("wrong_state", "this key was wiped")
    return cipher


def leaf(ciphertext: Buffer) -> bytes:
    """BLAKE3-256 of the bytes of ``Layout.leaf_span``, without the interpreter lock, in one thread."""
    return blake3(ciphertext).digest()


def content_digest(leaves: Iterable[bytes]) -> bytes:
    """BLAKE3-256 of all leaves, joined in the order of their segments."""
    digest = blake3()
    for each in leaves:
        digest.update(each)
    return digest.digest()
