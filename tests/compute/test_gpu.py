"""What holds on a real GPU only: its faults cost one job, its memory comes back, its copies are in order."""

import contextlib
import json

import pytest
import torch
from compute.harness import HOSTILE, Entry, compute

from benchmarks import gpu
from benchmarks.ring_copy import check_windows
from smp_proto.errors import ResourceError
from smpd.compute.device import StreamDevice, _host_register
from smpd.walls.sandbox import WALLS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ONE = [Entry("a", b"x")]
REFUSING = """
import os, sys
from smpd.compute import device
from smpd.compute.__main__ import main
device._host_register = lambda ring: "refused by the test"
os._exit(main(sys.argv[1:]))
"""


async def _sums(worker):
    _, [result] = await worker.run("hostile.sums", [Entry("a", b"\x07" * 100_000)])
    assert result.data[-8:] == (700_000).to_bytes(8, "little")


async def test_all_walls_are_up(plugins):
    """None is left out for the driver."""
    async with compute(*HOSTILE, plugins=plugins, device="cuda") as worker:
        assert worker.ready.sandbox == dict.fromkeys(WALLS, "on")
        assert worker.ready.pinned
        await _sums(worker)


async def test_libraries_work_behind_the_walls(plugins):
    """cuBLAS, cuDNN, cuFFT, cuSOLVER, kernels made at run time, and pinned memory, with a limit of memory."""
    async with compute(*HOSTILE, plugins=plugins, device="cuda", memory_bytes=8 << 30) as worker:
        _, [result] = await worker.run("hostile.uses", ONE)
        assert set(json.loads(result.data).values()) == {"done: True"}
        await _sums(worker)


async def test_a_device_that_is_full(plugins):
    """Running out of the device's memory is ``device_memory``; the memory comes back, and the process goes on."""
    async with compute(*HOSTILE, plugins=plugins, device="cuda") as worker:
        for _ in range(2):
            error = await worker.error("hostile.allocates", ONE)
            assert isinstance(error, ResourceError)
            assert error.code == "device_memory"
            await _sums(worker)
        done, _ = await worker.run("hostile.nothing", ONE)
        assert done.device_bytes < 64 << 20


async def test_a_kernel_that_fails_costs_one_job(plugins):
    """After a fault on the device no call works any more: the run is told so, and the process ends for another."""
    async with compute(*HOSTILE, plugins=plugins, device="cuda") as worker:
        error = await worker.error("hostile.asserts", ONE)
        assert (error.code, "AcceleratorError" in error.message) == ("processor_failed", True)
        assert await worker.ended() == 75
    async with compute(*HOSTILE, plugins=plugins, device="cuda") as worker:
        await _sums(worker)


async def test_memory_of_another_process_is_not_seen(plugins):
    """Nothing of what a process left on the device is in the memory that the next one gets."""
    async with compute(*HOSTILE, plugins=plugins, device="cuda") as worker:
        await worker.run("hostile.leaves", ONE)
    async with compute(*HOSTILE, plugins=plugins, device="cuda") as worker:
        _, [found] = await worker.run("hostile.finds", ONE, timeout_s=60)
        assert int(found.data) < 1 << 20  # of 256 MiB; a few bytes are there by chance


async def test_a_device_that_others_fill(plugins):
    """A process that finds no room on the device says so, and that trying again later may help."""
    held = []
    with contextlib.suppress(torch.OutOfMemoryError):
        while True:
            held.append(torch.empty(256 << 20, dtype=torch.uint8, device="cuda"))
    with contextlib.suppress(torch.OutOfMemoryError):
        while True:
            held.append(torch.empty(2 << 20, dtype=torch.uint8, device="cuda"))
    try:
        with pytest.raises(ResourceError) as caught:
            async with compute("hostile.sums", plugins=plugins, device="cuda"):
                pass
        assert (caught.value.code, "in use" in caught.value.message) == ("no_memory", True)
    finally:
        held.clear()
        torch.cuda.empty_cache()


async def test_staging(plugins):
    """Where memory cannot be registered, copies by way of staging buffers bring the same bytes, and it is said."""
    async with compute(*HOSTILE, plugins=plugins, device="cuda", code=REFUSING, sandbox="off") as worker:
        assert not worker.ready.pinned
        assert any("refused by the test" in note for note in worker.ready.notes)
        await _sums(worker)


def test_copies_are_right():
    """Each byte where it belongs, pinned and staged, with windows that are read late."""
    assert gpu.check_device() == []


class Hasty(StreamDevice):
    """Takes a copy for done when it has been queued."""

    def fence(self):
        return None


class Careless(StreamDevice):
    """Writes to a window's buffer whoever still reads it."""

    def window(self, source):
        self._turn = 1 - self._turn
        target = self._pair[self._turn].take(source.numel())
        self._transfer(source, target)
        self._compute.wait_stream(self._copies)
        return target


@pytest.mark.parametrize("kind", [Hasty, Careless])
def test_the_check_sees_a_copy_out_of_order(kind):
    """A device without the wait behind a slot, or a window, is found out."""
    device = kind(torch.device("cuda", 0), "broken", torch.cuda, _host_register)
    worker = gpu.ring_worker(device, *gpu.SMALL)
    assert worker.pinned
    found = list(check_windows(worker.device, worker.plain, gpu.WINDOWS_BYTES, gpu.hold_up))
    assert any("is not what was in its slot" in problem for problem in found)
