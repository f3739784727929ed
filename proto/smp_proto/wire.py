"""The frame codec: bytes to frames and back, with no I/O.

A frame is a ten-byte header, ``>IIBB`` (body length, stream, type, descriptors), and a body. The last
header byte is the number of file descriptors that travel with the frame by SCM_RIGHTS, so that the
receiver can refuse any other number. One codec serves the control socket, the worker links and both
clients; ``proto/CONTROL.md`` is the page for people.

A stream is opened by REQUEST, carries DATA in either direction, may be told to stop by CANCEL, and is
closed by exactly one END, which only the answering side sends. Stream 0 belongs to HELLO.
"""

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct as PackedStruct
from typing import Any, NamedTuple

import msgspec

from smp_proto.errors import DaemonError
from smp_proto.memory import wipe

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1
BODY_MAX_BYTES = 1 << 20
FDS_MAX = 64
STREAM_MAX = 0xFFFF_FFFF
_HEADER = PackedStruct(">IIBB")
HEADER_BYTES = _HEADER.size


def encode_secret(body: Any) -> bytes:
    """Encode a body that holds a secret, for the caller to overwrite: there is no other copy of it then.

    An encoder whose buffer grows leaves the beginning of the message, secret and all, in each one that it gives up.
    """
    buffer = bytearray(BODY_MAX_BYTES)
    try:
        msgspec.msgpack.Encoder().encode_into(body, buffer)
        return bytes(buffer)
    finally:
        wipe(buffer)


class FrameType(IntEnum):
    """What a frame is for."""

    HELLO = 1
    REQUEST = 2
    DATA = 3
    END = 4
    CANCEL = 5


class Frame(NamedTuple):
    """One decoded frame; ``fds`` is the number of descriptors that came with it."""

    type: FrameType
    stream: int
    body: bytes
    fds: int = 0


def encode_frame(frame_type: FrameType, stream: int, body: bytes = b"", fds: int = 0) -> bytes:
    """Return one frame as bytes.

    Raises:
        DaemonError: ``protocol`` when the body, the stream or the number of descriptors is out of bounds.
    """
    _check_header(len(body), stream, frame_type, fds)
    return _HEADER.pack(len(body), stream, frame_type, fds) + body


class FrameDecoder:
    """Turns a byte stream into frames. The length is checked before anything of a body is buffered."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add received bytes."""
        self._buffer += data

    def frames(self) -> Iterator[Frame]:
        """Yield each whole frame received so far.

        Raises:
            DaemonError: ``protocol`` for a length over the cap, an unknown type, too many descriptors or a
                stream that does not fit the type. The connection is then of no further use.
        """
        buffer = self._buffer
        while len(buffer) >= HEADER_BYTES:
            length, stream, kind, fds = _HEADER.unpack_from(buffer)
            frame_type = _check_header(length, stream, kind, fds)
            if len(buffer) < HEADER_BYTES + length:
                return
            body = bytes(memoryview(buffer)[HEADER_BYTES : HEADER_BYTES + length])
            buffer[: HEADER_BYTES + length] = bytes(HEADER_BYTES + length)  # deleting alone leaves it in memory
            del buffer[: HEADER_BYTES + length]
            yield Frame(frame_type, stream, body, fds)

    @property
    def partial(self) -> bool:
        """Whether the bytes so far end inside a frame; at end of stream that means it was cut."""
        return bool(self._buffer)


def _check_header(length: int, stream: int, kind: int, fds: int) -> FrameType:
    if length > BODY_MAX_BYTES:
        raise _violation(f"a frame announces {length} bytes; the limit is {BODY_MAX_BYTES}")
    try:
        frame_type = FrameType(kind)
    except ValueError:
        raise _violation(f"unknown frame type {kind}") from None
    if not 0 <= fds <= FDS_MAX:
        raise _violation(f"a frame announces {fds} descriptors; the limit is {FDS_MAX}")
    if not 0 <= stream <= STREAM_MAX:
        raise _violation(f"no stream has the number {stream}")
    if (frame_type is FrameType.HELLO) != (stream == 0):
        raise _violation(f"{frame_type.name} on stream {stream}")
    if frame_type is FrameType.CANCEL and (length or fds):
        raise _violation("CANCEL carries nothing")
    return frame_type


def _violation(message: str) -> DaemonError:
    return DaemonError("protocol", message, hint="the two sides may be of different versions; run: smpctl status")
