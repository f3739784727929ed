"""Sealing to memory and reading from it."""

from collections.abc import Callable, Iterable, Sequence

from sealed.forge import trusting

from smp_proto.sealed.bundle import BundleReader, BundleWriter
from smp_proto.sealed.keys import Identity


def seal(contents: Iterable[tuple[str, bytes]], sender: Identity, recipients: Sequence[Identity]) -> bytes:
    """An object of these entries."""
    out = bytearray()
    writer = BundleWriter(out.extend, sender=sender, recipients=[each.public for each in recipients])
    for name, content in contents:
        writer.begin(name)
        writer.write(content)
        writer.end()
    writer.finish()
    return bytes(out)


def reads(data: bytes) -> Callable[[int, memoryview], None]:
    """An exact reader over bytes."""

    def read_into(offset: int, view: memoryview) -> None:
        view[:] = data[offset : offset + len(view)]

    return read_into


def reader(data: bytes, identities: Sequence[Identity], trusted: Sequence[Identity]) -> BundleReader:
    """A reader over bytes."""
    return BundleReader(reads(data), len(data), identities=identities, trust=trusting(*trusted))


def extract(data: bytes, identities: Sequence[Identity], trusted: Sequence[Identity]) -> dict[str, bytes]:
    """All entries of an object."""
    got: dict[str, bytearray] = {}
    with reader(data, identities, trusted) as r:
        r.extract(lambda entry, offset, view: got.setdefault(entry.name, bytearray()).extend(view))
    return {name: bytes(content) for name, content in got.items()}
