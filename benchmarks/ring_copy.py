"""The plain ring to a device, by the very code of the compute process, without the rest of the pipeline.

A producer stands in for smpd: it fills slots, hands them to :class:`smpd.compute.feed.Feed`, and takes a slot again
only when the event that came with it has passed. So a copy that is still under way when its slot is reused shows as
wrong bytes on the device.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator

import torch

from smpd.compute.device import Device
from smpd.compute.feed import Clock, Feed
from smpd.compute.run import POLL_S
from smpd.links.computing import Chunk

CANARY = 0xA5
CANARY_BYTES = 4096

Fill = Callable[[torch.Tensor, int], None]


class Producer(threading.Thread):
    """Feeds ``total`` bytes through the slots, in order.

    Args:
        slots: uint8 on the host.
        fill: writes the plaintext at an offset into (a part of) a slot; None leaves what is there.
    """

    def __init__(self, device: Device, slots: list[torch.Tensor], total: int, fill: Fill | None) -> None:
        super().__init__(daemon=True)
        self._device, self._slots, self._total, self._fill = device, slots, total, fill
        self.chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        self._back: queue.SimpleQueue[tuple[int, torch.Event | None] | None] = queue.SimpleQueue()
        self.fences = 0

    def free(self, slot: int, fence: "torch.Event | None") -> None:
        """What :class:`Feed` calls once a slot has been read."""
        self.fences += fence is not None
        self._back.put((slot, fence))

    def run(self) -> None:
        """Fill and hand over, slot after slot."""
        slots = iter(range(len(self._slots)))
        length = self._slots[0].numel()
        for offset in range(0, self._total, length):
            slot = next(slots, None)
            slot = self._reclaimed() if slot is None else slot
            if slot is None:
                return
            part = self._slots[slot][: min(length, self._total - offset)]
            if self._fill is not None:
                self._fill(part, offset)
            self.chunks.put(Chunk(slot, offset, part.numel()))

    def close(self) -> None:
        """End the thread, also when not everything was taken."""
        self._back.put(None)
        self.join()

    def _reclaimed(self) -> int | None:
        back = self._back.get()
        if back is None:
            return None
        slot, fence = back
        if fence is not None:
            while not fence.query():
                time.sleep(POLL_S)  # as the compute process does: without a pause it takes the interpreter lock away
            self._device.recycle(fence)
        return slot


def copy_windows(device: Device, slots: list[torch.Tensor], total: int) -> float:
    """Seconds for ``total`` bytes as windows, until all of them are on the device."""
    producer = Producer(device, slots, total, None)
    feed = Feed(slots, producer.chunks, producer.free, device, Clock())
    with device.current(), contextlib.closing(producer):
        started = time.perf_counter()
        producer.start()
        for _ in feed.windows(0, total):
            pass
        _wait(device)
        return time.perf_counter() - started


def check(device: Device, slots: list[torch.Tensor], sizes: list[int]) -> Iterator[str]:
    """Copy entries of these sizes, one after the other, and yield all that is wrong with what arrived.

    Every byte is compared, the bytes on both sides of each entry on the device are canaries, and with pinned slots
    every slot must have come back with an event.
    """
    producer = Producer(device, slots, sum(sizes), pattern)
    feed = Feed(slots, producer.chunks, producer.free, device, Clock())
    producer.start()
    offset = 0
    with device.current(), contextlib.closing(producer):
        for number, size in enumerate(sizes):
            whole = torch.full((size + 2 * CANARY_BYTES,), CANARY, dtype=torch.uint8, device=device.torch_device)
            feed.load(offset, whole[CANARY_BYTES : CANARY_BYTES + size])
            _wait(device)
            expected = torch.empty(size, dtype=torch.uint8)
            pattern(expected, offset)
            if not torch.equal(whole[CANARY_BYTES : CANARY_BYTES + size].cpu(), expected):
                yield f"entry {number} of {size} bytes is not what was in the slots"
            for name, side in (("before", whole[:CANARY_BYTES]), ("after", whole[CANARY_BYTES + size :])):
                if not bool((side == CANARY).all()):
                    yield f"the canary {name} entry {number} was written over"
            offset += size
    slots_used = -(-offset // slots[0].numel())
    if device.stream is not None and producer.fences not in {0, slots_used}:
        yield f"{producer.fences} of {slots_used} slots came back with an event"


def check_windows(device: Device, slots: list[torch.Tensor], total: int, hold_up: Callable[[], None]) -> Iterator[str]:
    """Take ``total`` bytes as windows, each read only after a delay, and yield all that is wrong with what was read.

    A window or a slot that is written to again before it has been read shows as wrong bytes. The producer must be
    faster than the delay, so the slots should be small.

    Args:
        hold_up: queues work on the current stream that takes longer than a slot takes to be filled.
    """
    producer = Producer(device, slots, total, pattern)
    feed = Feed(slots, producer.chunks, producer.free, device, Clock())
    producer.start()
    read: list[torch.Tensor] = []
    with device.current(), contextlib.closing(producer):
        for window in feed.windows(0, total):
            hold_up()
            read.append(window.clone())
        _wait(device)
    offset = 0
    for number, found in enumerate(read):
        expected = torch.empty(found.numel(), dtype=torch.uint8)
        pattern(expected, offset)
        if not torch.equal(found.cpu(), expected):
            yield f"window {number} of {found.numel()} bytes is not what was in its slot"
        offset += found.numel()
    if offset != total:
        yield f"the windows hold {offset} bytes of {total}"


def pattern(target: torch.Tensor, offset: int) -> None:
    """Bytes that differ from slot to slot and from place to place."""
    place = torch.arange(offset, offset + target.numel(), dtype=torch.int64)
    target.copy_(((place * 2654435761) >> 13).to(torch.uint8))


def _wait(device: Device) -> None:
    if device.stream is not None:
        device.stream.synchronize()
