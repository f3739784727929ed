"""Answers of any length, in parts that each fit a frame."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from smp_proto.aio import Exchange, encode

_BATCH_BYTES = 512 << 10  # half a frame, so that there is room for whatever stands round the items

T = TypeVar("T")
R = TypeVar("R")


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Items in batches of half a frame, or of one item that is larger; one empty batch where there are none."""
    batch: list[T] = []
    filled = 0
    for item in items:
        length = len(encode(item))
        if batch and filled + length > _BATCH_BYTES:
            yield batch
            batch, filled = [], 0
        batch.append(item)
        filled += length
    yield batch


async def in_parts(exchange: Exchange, items: Iterable[T], answer: Callable[[list[T]], R]) -> R:
    """The answer with the last items; those that do not fit are sent before it, as DATA of the same kind."""
    *before, last = batches(items)
    for batch in before:
        await exchange.send(answer(batch))
    return answer(last)
