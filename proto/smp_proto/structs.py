"""Decoders of msgspec's structs, for threads.

msgspec learns what a struct is made of when one is first decoded, and keeps the result with the class before it is
complete. Another thread that decodes the same struct meanwhile reads what is not there, and the process ends with
SIGSEGV (seen with msgspec 0.22, with a daemon on a busy machine, as it started). So no two threads may learn at once,
and none may decode what another is still learning: decoders are made under a lock, or all structs are learnt before
there are threads.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import msgspec

_learning = threading.Lock()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    """The decoder of one kind, made once: that takes a hundred times as long as to use it."""
    found = _decoders.get(kind)
    if found is None:
        with _learning:
            found = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    return found


def learn_all() -> frozenset[type]:
    """Learn all structs that are defined by now; returns them. Takes 25 µs for each that was not known."""
    with _learning:
        found = frozenset(_below(msgspec.Struct))
        for each in found:
            with contextlib.suppress(TypeError, NameError):  # of one that cannot be decoded there is nothing to learn
                msgspec.msgpack.Decoder(each)
        return found


def _below(kind: type) -> Iterator[type]:
    subclasses: list[type] = type.__subclasses__(kind)
    for each in subclasses:
        yield each
        yield from _below(each)
