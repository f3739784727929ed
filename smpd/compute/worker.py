"""What a compute process has once torch is there: the device, the slots as tensors, the processors and their thread."""

import ctypes
import gc
import os
import queue
import threading
from collections.abc import Callable

import torch

from smpd.compute.device import Device, choose
from smpd.links.ring import Ring
from smpd.processors import Processor


class Worker:
    """The device and the one thread that processors run on.

    One thread for the life of the process, since OpenMP keeps a pool of threads for each thread that asks it.

    Args:
        wanted: as :func:`~smpd.compute.device.choose` takes it, or a device that is open already.

    Raises:
        UsageError: ``bad_config``, the device is not here.
    """

    def __init__(self, wanted: str | Device, plain: Ring, result: Ring) -> None:
        self.device, self.notes = (wanted, []) if isinstance(wanted, Device) else choose(wanted)
        # One core is left: decryption, fetching and this process's own event loop run on the same box.
        torch.set_num_threads(max(1, min(torch.get_num_threads(), len(os.sched_getaffinity(0)) - 1)))
        self._rings = plain, result  # whose memory the tensors are
        self._whole = _as_tensor(plain)
        self.plain = list(torch.split(self._whole, plain.slot_bytes))
        self.result = list(torch.split(_as_tensor(result), result.slot_bytes))
        refused = self.device.pin(self._whole)
        self.pinned = not refused
        if refused and self.device.stream is not None:
            self.notes.append(f"the ring is not pinned: {refused}; copies go through a staging buffer")
        self.processors: dict[str, Processor] = {}
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    @property
    def has_gpu(self) -> bool:
        """Whether the device is something other than the CPU."""
        return self.device.torch_device.type != "cpu"

    def start(self) -> None:
        """Start the thread, once the sandbox is up."""
        gc.collect()
        gc.freeze()  # torch's own objects are not looked through again after each job
        gc.enable()
        threading.Thread(target=self._run, name="processor", daemon=True).start()

    def submit(self, work: Callable[[], None]) -> None:
        """Have the thread do something, after what it does now."""
        self._work.put(work)

    def _run(self) -> None:
        while True:
            self._work.get()()
            gc.collect()


def _as_tensor(ring: Ring) -> torch.Tensor:
    """All slots of a ring as one uint8 tensor over the same memory."""
    first = ring.slot(0)
    address = ctypes.addressof(ctypes.c_char.from_buffer(first))
    memory = (ctypes.c_ubyte * (ring.slots * ring.slot_bytes)).from_address(address)
    return torch.frombuffer(memory, dtype=torch.uint8)
