"""What a client may send that means harm, or has lost its mind: conversations of frames, drawn at random."""

import itertools
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from smp_proto.aio import encode
from smp_proto.control import Hello
from smp_proto.wire import BODY_MAX_BYTES, FrameType, encode_frame

HELLO = encode_frame(FrameType.HELLO, 0, encode(Hello(1, 1, "torture")))
_NUMBERS = (
    0,
    1,
    -1,
    5,
    1 << 31,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
    -(1 << 63),
    1e300,
    -1e300,
    float("nan"),
    float("inf"),
)
_TEXTS = (
    "",
    "\0",
    "../..",
    ":",
    "pacs:",
    "pacs:/etc/passwd",
    "a" * 70_000,
    "ä\u2028" * 40,
    "'; DROP TABLE jobs",
    "%s%n",
    "pacs:a/../b",
)
_DEPTHS = (10, 1100, 60_000)
_STREAMS = (0, 1, 2, 5, (1 << 32) - 1)


class Piece(NamedTuple):
    """Bytes to send at once, and how many descriptors go with them."""

    data: bytes
    fds: int = 0


def conversations(rng: random.Random, requests: list[Any], frames: int) -> Iterator[list[Piece]]:
    """Conversations of so many pieces together; most begin with a right HELLO, as others end at once."""
    left = frames
    talks = itertools.cycle(rng.sample(_TALKS, len(_TALKS)))
    while left > 0:
        pieces = [Piece(HELLO)] if rng.random() < 0.85 else []
        talk = next(talks)
        pieces += [talk(rng, requests) for _ in range(min(left, rng.randrange(1, 24)))]
        left -= len(pieces)
        yield pieces


def _noise(rng: random.Random, _requests: list[Any]) -> Piece:
    return Piece(rng.randbytes(rng.choice((1, 9, 10, 300))))


def _header(rng: random.Random, _requests: list[Any]) -> Piece:
    """A header that lies, or means something else than what follows it."""
    size = rng.choice((0, 1, 60, BODY_MAX_BYTES, BODY_MAX_BYTES + 1, (1 << 32) - 1))
    head = (
        size.to_bytes(4, "big")
        + rng.choice(_STREAMS).to_bytes(4, "big")
        + bytes([rng.randrange(8), rng.choice((0, 0, 1, 64, 65, 255))])
    )
    return Piece(head + rng.randbytes(min(size, rng.choice((0, 60)))))


def _descriptors(rng: random.Random, requests: list[Any]) -> Piece:
    """Descriptors where none, or others, are announced."""
    kind = rng.choice((FrameType.REQUEST, FrameType.DATA))
    data = encode_frame(kind, rng.choice((1, 7)), encode(rng.choice(requests)), rng.choice((0, 1, 3)))
    return Piece(data, rng.choice((0, 1, 3, 60)))


def _half(rng: random.Random, requests: list[Any]) -> Piece:
    """A message that may never be whole."""
    data = encode_frame(FrameType.REQUEST, rng.randrange(1, 9), encode(rng.choice(requests)))
    return Piece(data[: rng.randrange(1, len(data) + 1)])


def _cancels(rng: random.Random, _requests: list[Any]) -> Piece:
    return Piece(
        b"".join(encode_frame(FrameType.CANCEL, rng.randrange(1, 4)) for _ in range(rng.choice((1, 50, 2000))))
    )


def _again(_rng: random.Random, _requests: list[Any]) -> Piece:
    return Piece(HELLO)


def _deep(rng: random.Random, _requests: list[Any]) -> Piece:
    """Arrays in arrays, in a place where anything may be."""
    op, field = rng.choice(
        ((b"\xa6submit", b"\xa3job"), (b"\xa6status", b"\xa3new"), (b"\xaaremote-add", b"\xa6config"))
    )
    return _nested(op, field, rng.choice(_DEPTHS), rng.randrange(1, 1 << 20))


def _nested(op: bytes, field: bytes, depth: int, stream: int) -> Piece:
    body = b"\x82\xa2op" + op + field + b"\x91" * depth + b"\xc0"
    return Piece(encode_frame(FrameType.REQUEST, stream, body))


DEEPEST = [Piece(HELLO), _nested(b"\xa6status", b"\xa3new", max(_DEPTHS), 1)]  # what chance may leave out


def _values(rng: random.Random, requests: list[Any]) -> Piece:
    """A request whose fields hold what fits their type, and nothing that makes sense."""
    body = msgspec.msgpack.decode(encode(rng.choice(requests)))
    for _ in range(rng.choice((1, 1, 3))):
        _spoil(rng, body)
    return Piece(encode_frame(FrameType.REQUEST, rng.randrange(1, 1 << 20), _packed(body)))


def _spoil(rng: random.Random, body: dict[str, Any]) -> None:
    name = rng.choice([key for key in body if key != "op"] or ["more"])
    value = body.get(name)
    if isinstance(value, dict) and value and rng.random() < 0.8:
        _spoil(rng, value)
    elif isinstance(value, list):
        body[name] = [rng.choice(_TEXTS)] * rng.choice((0, 1, 50))
    elif isinstance(value, int | float) and rng.random() < 0.9:
        body[name] = rng.choice(_NUMBERS)
    elif isinstance(value, str) and rng.random() < 0.9:
        body[name] = rng.choice(_TEXTS) if rng.random() < 0.97 else "m" * (BODY_MAX_BYTES - 200)
    else:
        body[name] = rng.choice((None, {}, [], b"x", *_NUMBERS, *_TEXTS))


def _packed(body: Any) -> bytes:
    data = encode(body)
    return data if len(data) <= BODY_MAX_BYTES else data[:BODY_MAX_BYTES]


_TALKS = (_noise, _header, _descriptors, _half, _cancels, _again, _deep, _values, _values)
