"""``tensor.stats``: shape, range, moments and histogram of NumPy arrays (``.npy``) and of raw bytes, on the device."""

import ast
import math
import struct
from typing import Annotated, Any

import msgspec
import torch

from smpd.processors.api import Context, Item, Output, Refused, processor
from smpd.processors.host import host_bytes

_MAGIC = b"\x93NUMPY"
_HEADER_MAX = 1 << 16
_BLOCK = 1 << 22
_DAMAGE = (ArithmeticError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError, struct.error)
_TYPES = {
    "b1": torch.bool,
    "u1": torch.uint8,
    "i1": torch.int8,
    "u2": torch.uint16,
    "i2": torch.int16,
    "u4": torch.uint32,
    "i4": torch.int32,
    "u8": torch.uint64,
    "i8": torch.int64,
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
}


class Stats(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of ``tensor.stats``."""

    bins: Annotated[int, msgspec.Meta(ge=1, le=4096, description="bins of the histogram, from minimum to maximum")] = 16


@processor("tensor.stats", accepts="*", params=Stats)
def stats(item: Item, context: Context[Stats]) -> Output:
    """Shape, type, minimum, maximum, mean, standard deviation and histogram, as JSON.

    An entry that starts like ``.npy`` is read as that, any other as uint8. What is not finite is
    left out of all but ``count``.
    """
    name, shape, values = _array(item.data)
    summary = {"shape": shape, "dtype": name, **_summarize(values, context.params.bins)}
    return Output(f"{item.name}.stats.json", msgspec.json.encode(summary), "application/json")


def _array(data: torch.Tensor) -> tuple[str, list[int], torch.Tensor]:
    """Type, shape and the elements, flat and in memory order."""
    head = bytes(host_bytes(data[: _HEADER_MAX + 12]))
    if not head.startswith(_MAGIC):
        return "uint8", [data.numel()], data
    try:
        width, code = (2, "<H") if head[6] == 1 else (4, "<I")
        start = 8 + width + struct.unpack_from(code, head, 8)[0]
        header = ast.literal_eval(head[8 + width : start].decode("latin-1").strip())
        descr, shape = str(header["descr"]), [int(size) for size in header["shape"]]
    except _DAMAGE:
        raise Refused("the entry begins like .npy, but its header is damaged") from None
    dtype = _TYPES.get(descr[1:])
    if dtype is None or descr[0] not in "<>|=":
        raise Refused("the array's type is not supported: only booleans, integers and real numbers are")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or data.numel() - start != count * dtype.itemsize:
        raise Refused("the array is shorter or longer than its header says")
    body = data[start:]
    if descr[0] == ">":
        body = body.view(count, dtype.itemsize).flip(1).reshape(-1)
    elif start % dtype.itemsize:
        body = body.clone()
    return str(dtype).removeprefix("torch."), shape, body.view(dtype)


def _summarize(values: torch.Tensor, bins: int) -> dict[str, Any]:
    """Two passes over blocks, so that what is held beside the entry is small: range and mean, then the rest."""
    wide = torch.float32 if values.device.type == "mps" else torch.float64  # MPS has no float64
    lowest, highest, total, count = math.inf, -math.inf, 0.0, 0
    for block in torch.split(values, _BLOCK):
        real = _finite(block.to(wide))
        if real.numel():
            lowest, highest = min(lowest, real.min().item()), max(highest, real.max().item())
            total, count = total + real.sum().item(), count + real.numel()
    summary: dict[str, Any] = {"count": values.numel(), "finite": count}
    if not count:
        return summary
    mean, squares = total / count, 0.0
    histogram = torch.zeros(bins, dtype=torch.int64)
    # As NumPy has it: a range of one value is widened by a half on both sides.
    low, high = (lowest, highest) if lowest < highest else (lowest - 0.5, highest + 0.5)
    for block in torch.split(values, _BLOCK):
        real = _finite(block.to(wide))
        distance = real - mean
        squares += distance.dot(distance).item()
        histogram += torch.histc(real.cpu(), bins, low, high).to(torch.int64)
    summary |= {"min": lowest, "max": highest, "mean": mean, "std": math.sqrt(squares / count)}
    return summary | {"histogram": {"low": low, "high": high, "counts": histogram.tolist()}}


def _finite(values: torch.Tensor) -> torch.Tensor:
    # A sum is finite only if all of it is, and costs a fiftieth of picking the finite ones out.
    return values if values.sum().isfinite() else values[values.isfinite()]
