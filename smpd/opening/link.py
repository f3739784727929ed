"""What smpd asks of an opening process.

First :class:`Setup`, then :class:`Keys`, which may come again. Rings are mapped by number before they are named.
Everything is answered in the order it came in, one at a time.
"""

from typing import Annotated

import msgspec

from smp_proto.errors import ErrorBody
from smp_proto.sealed.envelope import Entry, Signed

Number = Annotated[int, msgspec.Meta(ge=0)]


class Request(msgspec.Struct, tag_field="op"):
    """Base of the requests."""


class Setup(Request, tag="setup"):
    """Raise the walls. Reply: Walls. Errors: sandbox, bad_config."""

    sandbox: str = "auto"


class Walls(msgspec.Struct):
    """What keeps the process in: each wall, and ``on`` or why it is not up."""

    sandbox: dict[str, str]


class Keys(Request, tag="keys"):
    """Whose keys to open with from now on, and the keys, joined, as ``Identity.decryption_key`` gives each.

    They come last and at once, so that what is encoded is never copied, by growing, to another place.
    """

    publics: list[bytes]
    secrets: bytes


class Believe(Request, tag="believe"):
    """Public keys of more senders whose signatures are to be checked. Which count, and where, smpd decides."""

    senders: list[bytes]


class Map(Request, tag="map"):
    """A ring, to be known by its number. Descriptor: the ring."""

    number: Number
    slots: Number
    slot_bytes: Number


class Unmap(Request, tag="unmap"):
    """Let go of a ring."""

    number: Number


class Open(Request, tag="open"):
    """Check and open whole objects in a slot of a cipher ring, into a slot of a plain ring. Reply: Opened.

    ``objects`` are where each begins in its slot, and its size. The plaintext of those that are found good lies one
    after the other from the start of the plain slot; without ``plain`` they are only checked.
    """

    cipher: Number
    cipher_slot: Number
    objects: list[tuple[Number, Number]]
    plain: Number | None = None
    plain_slot: Number = 0


class Found(msgspec.Struct, tag_field="k", tag="found"):
    """An object that is what its sender signed."""

    signed: Signed
    entries: tuple[Entry, ...]


class Refused(msgspec.Struct, tag_field="k", tag="refused"):
    """An object that is not; ``sender`` is the key id of who is said to have signed it, as far as it came to that."""

    error: ErrorBody
    sender: bytes = b""


class Opened(msgspec.Struct):
    """One for each object. With ``too_long`` there are none: their indexes do not fit a message."""

    objects: list[Found | Refused]
    too_long: bool = False


AnyRequest = Setup | Keys | Believe | Map | Unmap | Open
