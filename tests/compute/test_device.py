"""Devices with streams: by a named fake everywhere, and for real where there is a CUDA device."""

import hashlib
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from compute.harness import BUILT_IN, Entry, compute
from PIL import Image

from smp_proto.errors import ResourceError
from smpd.compute.device import _open, is_fatal, is_memory_error

FAKE = (Path(__file__).parent / "fake_accelerator.py").read_text(encoding="utf-8")
SMALL = (3, 4096, 2, 4096)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def _entries(seed):
    generator = random.Random(seed)
    return [Entry(f"{n}", generator.randbytes(size)) for n, size in enumerate([0, 5, 4096, 100_000, 1, 9000])]


async def _check(worker, seed):
    """Whole entries, groups and windows hold what was sent; what tensors hold of the device is told."""
    entries = _entries(seed)
    done, results = await worker.run("digest", entries)
    assert [e["sha256"] for e in json.loads(results[0].data)] == [hashlib.sha256(e.data).hexdigest() for e in entries]
    _, results = await worker.run("tensor.stats", entries, bins=256)
    for entry, result in zip(entries[1:], results[1:], strict=True):
        assert json.loads(result.data)["mean"] == pytest.approx(np.frombuffer(entry.data, np.uint8).mean())
    return done


@pytest.mark.parametrize("how", ["pin", "refuse"])
async def test_copies_of_a_fake_accelerator(how):
    """Slots come back only behind their events, events are pooled, and what cannot be pinned is staged and said."""
    code = f"import sys; sys.argv.append({how!r})\n{FAKE}"
    async with compute(*BUILT_IN, code=code, slots=SMALL, device="cuda", sandbox="off") as worker:
        assert worker.ready.device_name == "fake"
        assert worker.ready.pinned == (how == "pin")
        assert any("staging" in note for note in worker.ready.notes) == (how == "refuse")
        for seed in range(3):
            assert (await _check(worker, seed)).device_bytes == 12_345


async def test_falling_back_is_said():
    """Without any accelerator ``auto`` takes the CPU and says what was missing."""
    if torch.cuda.is_available() or torch.xpu.is_available():
        pytest.skip("there is an accelerator")
    async with compute("digest", device="auto") as worker:
        assert worker.ready.device == "cpu"
        [note] = worker.ready.notes
        assert note.startswith("fell back to the CPU: ")
        assert note.endswith('compute.device = "cpu"')
        assert "XPU" in note


@pytest.mark.parametrize(
    ("error", "memory", "fatal"),
    [
        (MemoryError(), True, False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 32.00 GiB."), True, False),
        (torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"), True, False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), True, False),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("the shapes do not match"), False, False),
        (ValueError("error: out of memory"), False, False),
    ],
)
def test_what_an_error_means(error, memory, fatal):
    """Too little memory costs a job, wherever it is missing; a device that is lost costs the process."""
    assert (is_memory_error(error), is_fatal(error)) == (memory, fatal)


def test_a_device_that_others_fill(monkeypatch):
    """A device that cannot be opened for want of memory is no fault of SMP's, and may be free later."""

    def full(index):
        raise torch.AcceleratorError("CUDA error: out of memory")

    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(torch.xpu, "set_device", full)
    with pytest.raises(ResourceError) as caught:
        _open("xpu", 0)
    assert (caught.value.code, "xpu:0" in caught.value.message, caught.value.retryable) == ("no_memory", True, True)


@needs_cuda
@pytest.mark.parametrize("sandbox", ["off", "auto"])
async def test_cuda(sandbox):
    """On a GPU, with and without walls: the ring is pinned, all bytes arrive, and slots come back."""
    async with compute(*BUILT_IN, device="cuda", slots=(4, 1 << 20, 2, 1 << 20), sandbox=sandbox) as worker:
        assert worker.ready.device == "cuda:0"
        assert worker.ready.pinned
        held = [(await _check(worker, seed)).device_bytes for seed in range(5)]
        assert 0 < held[-1] == held[1]  # its own buffers and cuBLAS's, which do not grow
        entry = Entry("long", random.Random(1).randbytes(64 << 20))
        _, results = await worker.run("digest", [entry])
        assert json.loads(results[0].data)[0]["sha256"] == hashlib.sha256(entry.data).hexdigest()


@needs_cuda
async def test_images_on_cuda():
    """The GPU's pictures are the CPU's within one level."""
    file = io.BytesIO()
    Image.effect_noise((301, 200), 60).save(file, "PNG")
    entry = Entry("a.png", file.getvalue(), "image/png")
    pictures = {}
    for device in ("cpu", "cuda"):
        async with compute(*BUILT_IN, device=device, sandbox="auto") as worker:
            for name, params in (("resize", {"width": 100}), ("blur", {"sigma": 3.0}), ("edges", {})):
                _, [result] = await worker.run(f"image.{name}", [entry], **params)
                pictures[device, name] = np.asarray(Image.open(io.BytesIO(result.data))).astype(int)
    for name in ("resize", "blur", "edges"):
        assert np.abs(pictures["cpu", name] - pictures["cuda", name]).max() <= 1
