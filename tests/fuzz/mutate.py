"""Small changes to seeds, for where atheris is not: no guidance, but the same seed gives the same inputs."""

import random
from collections.abc import Iterator, Sequence

_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFF, 0x0A, 0x5B, 0x91, 0xC1, 0xDD, 0xDF)
_LENGTH_MAX = 8192


def inputs(rng: random.Random, seeds: Sequence[bytes], count: int) -> Iterator[bytes]:
    """All seeds, then mutations of them."""
    yield from seeds
    for _ in range(count):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 2, 4))):
            _mutate(rng, data, seeds)
        yield bytes(data[:_LENGTH_MAX])


def _mutate(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    match rng.randrange(7):
        case 0 if at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        case 1 if at < len(data):
            data[at] = rng.choice(_BYTES)
        case 2:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
        case 3:
            del data[at : at + rng.choice((1, 2, 8, 64))]
        case 4:
            del data[at:]
        case 5:
            data[at:at] = bytes([rng.choice(_BYTES)]) * rng.choice((4, 300, 3000))
        case _:
            other = rng.choice(seeds)
            data[at:] = other[rng.randrange(len(other) + 1) :]
