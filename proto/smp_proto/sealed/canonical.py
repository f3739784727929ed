"""Messages with exactly one encoding: decode, encode again, compare.

So an unknown, missing, doubled or misplaced key, a long form of a number and trailing bytes are all refused
by one rule, and two readers cannot see two meanings in the same signed bytes.
"""

from typing import TypeVar

import msgspec

from smp_proto.structs import decoder

T = TypeVar("T")


def decode(kind: type[T], data: bytes) -> T:
    """Decode msgpack strictly.

    Raises:
        ValueError: the bytes are not the one encoding of a ``kind``. It does not quote them.
    """
    try:
        value: T = decoder(kind).decode(data)
        if msgspec.msgpack.encode(value) == data:
            return value
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError):
        pass
    raise ValueError("not a canonical encoding")
