"""The processor API: the decorator, what a processor is given and what it returns."""

import dataclasses
import fnmatch
import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import msgspec

if TYPE_CHECKING:
    import torch

Attributes: TypeAlias = dict[str, Any]
P = TypeVar("P")


class Refused(Exception):  # noqa: N818 - it reads as what the processor says: raise Refused("...")
    """Raised by a processor to say in its own words why it cannot do this.

    The text reaches the operator and is kept with the job, so it must hold no data: no pixel, no name, no
    attribute's value. The text of any other exception is dropped for that reason.
    """


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One whole entry. ``data`` is uint8, shape ``(size,)``, on ``Context.device``; valid until the function ends."""

    name: str
    media_type: str
    attributes: Attributes
    data: "torch.Tensor"
    size: int


@dataclasses.dataclass(slots=True)  # not frozen: that makes it three times as dear, and there may be a million
class StreamItem:
    """One entry that need not fit into memory.

    Iterating yields windows: uint8 tensors on ``Context.device``, in order, none empty, which together are the
    entry. A window is valid until the next one is asked for. Windows can be read once, and what is not read is skipped.
    """

    name: str
    media_type: str
    attributes: Attributes
    size: int
    windows: "Iterable[torch.Tensor]"

    def __iter__(self) -> "Iterator[torch.Tensor]":
        return iter(self.windows)


@dataclasses.dataclass(frozen=True, slots=True)
class Context(Generic[P]):
    """What surrounds a call.

    Attributes:
        device: where the data is and where results may stay.
        params: the checked parameters, an instance of the processor's ``params``, else None.
        stream: the device's stream, already current; None where the device has none.
        job: tells jobs apart, for nothing else.
    """

    device: "torch.device"
    params: P
    stream: "torch.Stream | None" = None
    job: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """One result entry.

    Args:
        name: relative, ``/`` between parts, no ``..``; no two results of a job share one.
        data: bytes go out as they are. A tensor goes out as NumPy's ``.npy`` format 1.0 (bfloat16 widened to
            float32), or, when ``media_type`` is ``image/png``, as PNG: uint8, shape ``(H, W)`` or ``(C, H, W)`` with
            C of 1, 3 or 4, or uint16, shape ``(H, W)``.
        media_type: ``application/x-npy`` or ``application/octet-stream`` when empty.
        attributes: text, 64-bit integers, floats, booleans, and lists of these.
    """

    name: str
    data: "torch.Tensor | bytes | bytearray | memoryview"
    media_type: str = ""
    attributes: Attributes = dataclasses.field(default_factory=dict)


Result: TypeAlias = Output | Iterable[Output] | None
Function: TypeAlias = Callable[[Any, Context[Any]], Result]


@dataclasses.dataclass(frozen=True, slots=True)
class Processor:
    """A processor, as the decorator makes it. Calling it calls the function."""

    name: str
    function: Function
    accepts: str = "*"
    params: type[msgspec.Struct] | None = None
    group: bool = False
    stream: bool = False

    def __call__(self, item: Any, context: Context[Any]) -> Result:
        """Call the function."""
        return self.function(item, context)

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    def takes(self, media_type: str) -> bool:
        """Whether ``accepts`` matches a media type; its parameters (``; charset=``) do not count."""
        return _matches(self.accepts, media_type)


@lru_cache(64)  # most entries of an object are of one kind
def _matches(accepts: str, media_type: str) -> bool:
    kind = media_type.partition(";")[0].strip().lower() or "application/octet-stream"
    return any(fnmatch.fnmatchcase(kind, pattern.strip().lower()) for pattern in accepts.split(","))


def processor(
    name: str,
    *,
    accepts: str = "*",
    params: type[msgspec.Struct] | None = None,
    group: bool = False,
    stream: bool = False,
) -> Callable[[Function], Processor]:
    """Make a function a processor.

    Args:
        name: the name of its entry point in the group ``smpd.processors``.
        accepts: media types it takes, as shell patterns with commas between; other entries are skipped.
        params: a ``msgspec.Struct``; its constraints (``msgspec.Meta``) are checked before the function is called.
        group: False: called once for each entry, with an :class:`Item`. True: called once for all, with a list of them.
        stream: :class:`StreamItem` instead of :class:`Item`; with ``group``, an iterator of them in the bundle's order.

    Raises:
        TypeError: what is given is not of these types, or the function does not take what it is called with.
    """
    if not isinstance(name, str) or not isinstance(accepts, str):
        raise TypeError('write @processor(NAME, accepts="image/*"): name and accepts are strings')
    if params is not None and not (isinstance(params, type) and issubclass(params, msgspec.Struct)):
        raise TypeError(f"params of processor {name} is no class made of msgspec.Struct")

    def wrap(function: Function) -> Processor:
        try:
            inspect.signature(function).bind(None, None)
        except TypeError as error:
            raise TypeError(f"processor {name} is called with two arguments, item and context: {error}") from None
        return Processor(name, function, accepts, params, group, stream)

    return wrap
