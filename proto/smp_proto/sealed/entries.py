"""The entries of a bundle: their names, their places and their digests."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, cast

import msgspec

from smp_proto.errors import UsageError
from smp_proto.memory import wipe_bytes
from smp_proto.names import folded, has_controls
from smp_proto.sealed.canonical import decode

NAME_MAX_BYTES = 1024
_HEAD_BYTES = 132
COMPONENT_MAX_BYTES = 255
ATTRIBUTES_MAX_BYTES = 65_536  # of one entry, encoded: any entry fits a frame of the control protocol
VALUES_MAX = 1_000_000  # of all entries' attributes: three bytes of an index may take seventy of memory

# Some of the names that are valid, and nearly all there are: up to three components of plain characters. And names of
# one such component, a line each. Neither looks back, which would take memory: an index may have a million lines.
_COMPONENT = r"[\w-][\w.-]{0,254}+"
_USUAL = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT}){{0,2}}+", re.ASCII)
_FLAT = re.compile(rf"(?:{_COMPONENT}\n)*+{_COMPONENT}", re.ASCII)
_MEDIA_TYPE = re.compile(r"[ -~]*")

PLACE = "smp.place"  # attribute of the first entry: where its sender means the object to lie

Scalar = str | int | float | bool
Attributes = dict[str, Scalar | list[Scalar]]
_NO_ATTRIBUTES = msgspec.Raw(msgspec.msgpack.encode({}))


class Entry(msgspec.Struct, frozen=True, gc=False):  # no cycle can lead through one, and there may be a million
    """One file of a bundle.

    Attributes:
        name: relative POSIX path, see :func:`valid_entry_name`.
        offset: where it begins in the bundle's plaintext.
        size: bytes; 0 is allowed.
        sha256: of its plaintext, 32 bytes.
        media_type: such as ``application/dicom``, up to 255 printable ASCII characters; may be empty.
        attributes: facts for a processor, such as a shape; values are scalars or lists of them, 65,536 bytes in all.
    """

    name: str
    offset: Annotated[int, msgspec.Meta(ge=0)]
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    media_type: Annotated[str, msgspec.Meta(max_length=255)] = ""
    attributes: Attributes = {}


class _Row(msgspec.Struct, gc=False):
    """An :class:`Entry` whose attributes are still encoded."""

    name: str
    offset: Annotated[int, msgspec.Meta(ge=0)]
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    media_type: Annotated[str, msgspec.Meta(max_length=255)]
    attributes: msgspec.Raw


def valid_entry_name(name: str) -> bool:
    """Whether a name is a relative path that stays below where it is put, on any file system.

    Refused: absolute, an empty, ``.`` or ``..`` component, a backslash, control characters, over 1024 bytes
    of UTF-8 or 255 in one component.
    """
    if _USUAL.fullmatch(name):
        return True
    if "\\" in name or has_controls(name):
        return False
    encoded = name.encode()
    if len(encoded) > NAME_MAX_BYTES:
        return False
    parts = encoded.split(b"/")
    return all(part not in (b"", b".", b"..") and len(part) <= COMPONENT_MAX_BYTES for part in parts)


class NameSet:
    """Names that can all be made into files at once, also where case and Unicode normal form do not count.

    They are kept as a tree: each name once, under the shortest beginning, of whole components, that no name before it
    has. Folders are not kept, since a name of 1024 bytes may bring 511 of them.
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._folder, self._other = "", ""  # where the last one parted from which: the next is mostly beside it

    def add(self, name: str) -> None:
        """Take one more name.

        Raises:
            ValueError: it is not valid, there already, or one of the two would be the other's folder.
        """
        folded = _folded(name)
        folder = folded.rpartition("/")[0]
        if folder == self._folder and folded not in self._names and not self._other.startswith(folded):
            self._names[folded] = folded
            return
        own, before = _through(folded, 0), ""
        while (other := self._names.get(own)) is not None:
            before = other
            parted = _parted(folded, other, len(own))
            if parted == len(folded):
                raise ValueError("its name is there already")
            if parted == len(other):
                raise ValueError("its folder has the name of another entry")
            own = _through(folded, parted + 1)
        self._names[own] = folded
        if own == folded:
            self._folder, self._other = folder, before


def _folded(name: str) -> str:
    """A valid name as it is compared.

    Raises:
        ValueError: it is not valid.
    """
    if not valid_entry_name(name):
        raise ValueError("its name is no relative path, or has characters that are not allowed")
    return folded(name)


def _through(name: str, start: int) -> str:
    """A name as far as the component that begins at ``start``."""
    end = name.find("/", start)
    return name if end < 0 else name[:end]


def _parted(name: str, other: str, start: int) -> int:
    """Where two names part that have the same components until ``start``: behind the last that they share."""
    while start < len(name):
        end = name.find("/", start + 1)
        step = name[start : len(name) if end < 0 else end]
        if not other.startswith(step, start) or other[start + len(step) : start + len(step) + 1] not in ("", "/"):
            return start
        start += len(step)
    return start


def _are_flat(names: Sequence[str]) -> bool:
    """Whether these are plain names without folders, each once: then nothing has to be looked at one by one."""
    joined = "\n".join(names)
    lines = joined.lower().split("\n")
    return len(lines) == len(names) == len(set(lines)) and _FLAT.fullmatch(joined) is not None


def pack_entries(entries: Sequence[Entry]) -> bytes:
    """The index's plaintext.

    Raises:
        UsageError: ``bad_request``; a media type or an attribute is none that a reader would take.
    """
    try:
        packed = msgspec.msgpack.encode(entries)
        unpack_entries(packed)
    except (OverflowError, TypeError, ValueError):
        hint = (
            "attributes are text, 64-bit integers, floats, booleans, or lists of these, "
            f"{ATTRIBUTES_MAX_BYTES} bytes for an entry and {VALUES_MAX} values for an object"
        )
        raise UsageError("bad_request", "a media type or an attribute cannot be stored", hint=hint) from None
    return packed


def unpack_entries(data: bytes) -> tuple[Entry, ...]:
    """The entries of an index's plaintext; whether they can be together says :func:`check_entries`.

    Raises:
        ValueError: it is not the one encoding of entries, or one has a media type that is not printable ASCII, or too
            many attributes, or all together have.
    """
    if len(data) <= ATTRIBUTES_MAX_BYTES:
        entries = decode(tuple[Entry, ...], data)
    else:
        entries = tuple(_counted(decode(tuple[_Row, ...], data)))
    if not all(map(_MEDIA_TYPE.fullmatch, {entry.media_type for entry in entries})):
        raise ValueError("a media type is not printable ASCII")
    return entries


def _counted(rows: Sequence[_Row]) -> Iterator[Entry]:
    """The entries of a long index, whose attributes are decoded one after the other, until there are too many."""
    values = 0
    for row in rows:
        if row.attributes == _NO_ATTRIBUTES:
            yield Entry(row.name, row.offset, row.size, row.sha256, row.media_type)
            continue
        packed = bytes(row.attributes)
        if len(packed) > ATTRIBUTES_MAX_BYTES:
            raise ValueError("an entry has too many attributes")
        attributes = decode(Attributes, packed)
        values += count_values(attributes)
        if values > VALUES_MAX:
            raise ValueError(f"its attributes have more than {VALUES_MAX} values")
        yield Entry(row.name, row.offset, row.size, row.sha256, row.media_type, attributes)


def count_values(attributes: Mapping[str, Scalar | list[Scalar]]) -> int:
    """How many values attributes have: a list is one, and each of its items is."""
    return len(attributes) + sum(len(value) for value in attributes.values() if isinstance(value, list))


def packed_entries(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The same for who only sends them on: attributes stay encoded, which takes a twentieth of the memory."""
    return tuple(
        Entry(each.name, each.offset, each.size, each.sha256, each.media_type, _packed(each.attributes))
        if each.attributes
        else each
        for each in entries
    )


def _packed(attributes: Attributes) -> Attributes:
    return cast("Attributes", msgspec.Raw(msgspec.msgpack.encode(attributes)))  # it is encoded as what it holds


def check_entries(entries: Sequence[Entry], plain_bytes: int) -> None:
    """Whether an index can be: names of a :class:`NameSet`, entries filling the plaintext in order, no gap.

    Raises:
        ValueError: saying what is wrong, without a name.
    """
    if not entries:
        raise ValueError("there is no entry")
    if not _are_flat([entry.name for entry in entries]):
        # What is below a name comes right behind it, since no character comes before this one.
        names = sorted(_folded(entry.name).replace("/", "\0") for entry in entries)
        for name, behind in pairwise(names):
            if behind == name or behind.startswith(name + "\0"):
                raise ValueError("two entries have one name, or one is named as the folder of the other")
    position = 0
    for entry in entries:
        if entry.offset != position:
            raise ValueError("an entry does not begin where the one before it ends")
        position += entry.size
    if position != plain_bytes:
        raise ValueError(f"the entries are {position} bytes in all, not {plain_bytes}")


def misplaced(entries: Sequence[Entry], path: str) -> bool:
    """Whether a sender bound the object to another place than this path: one that does not end so."""
    place = entries[0].attributes.get(PLACE)
    return place is not None and not (isinstance(place, str) and place and f"/{path}".endswith(f"/{place}"))


def guess_media_type(name: str, head: bytes | memoryview = b"") -> str:
    """A media type from the first bytes (132 are enough), else from the ending of the name.

    Of a view no copy is left behind.
    """
    if isinstance(head, bytes):
        return _guess(name, head)
    copied = bytes(head[:_HEAD_BYTES])
    try:
        return _guess(name, copied)
    finally:
        wipe_bytes(copied)


def _guess(name: str, head: bytes) -> str:
    if head[128:132] == b"DICM":
        return "application/dicom"
    for magic, media_type in _MAGICS.items():
        if head.startswith(magic):
            return media_type
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    return _ENDINGS.get(name.rpartition(".")[2].lower(), "application/octet-stream")


_MAGICS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
    b"GIF8": "image/gif",
    b"\x93NUMPY": "application/x-npy",
}
_ENDINGS = {
    "dcm": "application/dicom",
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "gif": "image/gif",
    "webp": "image/webp",
    "npy": "application/x-npy",
}
