"""What is moved: the same plaintext as a sealed object and in the form of each peer, and the proof that it arrived."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity

MIB = 1 << 20
_NOISE = os.urandom(MIB)


def noise(size: int, seed: int = 0) -> Iterator[bytes]:
    """``size`` bytes that do not compress, a block of 1 MiB at a time, each block unlike the others."""
    for start in range(0, size, MIB):
        block = _NOISE[: min(MIB, size - start)]
        mark = (seed << 32 | start // MIB).to_bytes(8, "big")
        yield (mark + block[8:])[: len(block)]


def write_plain(path: Path, size: int, seed: int = 0) -> None:
    """A file of :func:`noise`."""
    with path.open("wb") as file:
        file.writelines(noise(size, seed))


def seal_object(
    path: Path, size: int, sender: Identity, *recipients: PublicIdentity, entries: int = 1, seed: int = 0
) -> str:
    """Seal ``entries`` entries of ``size`` bytes each into one object; the SHA-256 of all of it in order."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        writer = BundleWriter(file.write, sender=sender, recipients=list(recipients))
        for number in range(entries):
            writer.begin(f"{number:06}.raw")
            for block in noise(size, seed + number):
                digest.update(block)
                writer.write(block)
            writer.end()
        writer.finish()
    return digest.hexdigest()


def seal_many(folder: Path, count: int, size: int, sender: Identity, recipient: PublicIdentity) -> None:
    """``count`` objects of one entry of ``size`` bytes each, named ``000000.smp`` and so on."""
    folder.mkdir(parents=True)
    for number in range(count):
        seal_object(folder / f"{number:06}.smp", size, sender, recipient, seed=number)
