"""``make bench-gpu``: the way to a CUDA device, alone and while fetching, against those who end in the same state.

Needs a CUDA device; without one it says so and exits 2. First it is checked, under ``compute-sanitizer`` where that is
on PATH, that the right bytes arrive; ``--check`` does only that.
"""

import argparse
import contextlib
import itertools
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import peers
from benchmarks.bench import Bench, Contestant, Entry, Load, present
from benchmarks.goals import Goal
from benchmarks.loads.large import sized
from benchmarks.objects import MIB, seal_object, write_plain
from benchmarks.results import ROOT, Sample
from benchmarks.ring_copy import check, check_windows, copy_windows
from benchmarks.smp import ENDS_AS, Smp, daemon
from smpd.compute.device import Device, StreamDevice
from smpd.compute.worker import Worker
from smpd.config import Compute, Fetch
from smpd.links.ring import Ring

_ODD_SIZES = [1, 4095, 4096, 4097, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 0, 100 * MIB + 7]
# Slots that are filled faster than the delayed windows are read; of 64 KiB and less CUDA takes a copy at the call.
SMALL = (4, 256 << 10)
WINDOWS_BYTES = 64 * SMALL[1] + 1
_DELAY_CYCLES = 20_000_000  # of the device's clock: some 11 ms

_TO_DEVICE, _TO_HOST = "SMP to the device", "SMP to the host"
# The device of each way, and the fetch processes it may take.
_WAYS: dict[str, tuple[str, int | str]] = {
    _TO_DEVICE: ("cuda", "auto"),
    _TO_HOST: ("cpu", "auto"),
    f"{_TO_DEVICE}, 1 fetching": ("cuda", 1),
    f"{_TO_DEVICE}, up to 8 fetching": ("cuda", 8),
}


class Copies:
    """Host memory to the device."""

    name = "gpu-copy"
    title = "host to device, 8 MiB at a time"
    unit = "gb_s"
    ceiling = "bare pinned copy"
    rounds = 0
    note = (
        "The bare copy takes as many pinned buffers as the ring has slots, one stream, one wait at the end. "
        "`not pinned` is how it goes where registering memory is refused, as under confidential computing."
    )

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """A ring as a compute process has it, and buffers that torch pinned."""
        total = bench.size(8192, 64) * MIB
        worker, staged = ring_worker(), ring_worker(staging_device())
        pinned = [torch.empty_like(slot, pin_memory=True).fill_(1) for slot in worker.plain]
        targets = [torch.empty_like(slot, device=worker.device.torch_device) for slot in pinned[:2]]

        def bare() -> Sample:
            torch.cuda.synchronize()
            started = time.perf_counter()
            for number, source in zip(range(total // pinned[0].numel()), itertools.cycle(pinned), strict=False):
                targets[number % 2].copy_(source, non_blocking=True)
            torch.cuda.synchronize()
            return sized(total, Sample(time.perf_counter() - started))

        def through(worker: Worker) -> Callable[[], Sample]:
            return lambda: sized(total, Sample(copy_windows(worker.device, worker.plain, total)))

        yield [
            Contestant("ring", "windows on the device", through(worker)),
            Contestant("bare pinned copy", "buffers on the device", bare),
            Contestant("ring, not pinned", "windows on the device, by way of two staging buffers", through(staged)),
        ]


class WholeWay:
    """The whole way from S3 on loopback to the device, with one, with many, and with as many processes as SMP takes."""

    name = "gpu-path"
    title = "8 GiB sealed, S3 over HTTP, to the device"
    unit = "gb_s"
    ceiling = "curl"
    rounds = 0
    note = "`to the host` is the same job with the device `cpu`: what copying costs on top of fetching."

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """One object for the daemons of all ways, and the same plaintext in the form of each peer."""
        size = bench.size(8192, 16) * MIB
        plain = bench.work / "plain"
        write_plain(plain, size)
        with bench.folder("gpu") as folder, contextlib.ExitStack() as stack:
            boxes: dict[str, Smp] = {}
            for number, (name, (device, processes)) in enumerate(_WAYS.items()):
                config: dict[str, dict[str, Any]] = {"fetch": {"processes": processes}, "compute": {"device": device}}
                boxes[name] = stack.enter_context(daemon(bench.work / f"smpd-{number}", bench.sender, config))
            digest = seal_object(folder / "object.smp", size, bench.sender, *(smp.key for smp in boxes.values()))
            entries: list[Entry] = []
            for name, smp in boxes.items():
                source = f"{smp.s3(bench.store, 's3')}{folder.name}/object.smp"
                smp.check(source, digest)
                entries.append(Contestant(name, ENDS_AS, _run(smp, source, size)))
            url = bench.store.url(f"{folder.name}/object.smp")
            entries.append(Contestant("curl", "discarded; nothing is checked", lambda: sized(size, peers.curl(url))))
            tags = "tensors on the device; tags checked, no signature"
            entries.append(present("tensorizer", tags, lambda: _tensorizer(bench, folder, plain)))
            unchecked = "tensors on the device, never encrypted; nothing is checked"
            entries.append(present("Run:ai streamer", unchecked, lambda: _streamer(bench, folder, plain)))
            try:
                yield entries
            finally:
                plain.unlink()


def _run(smp: Smp, source: str, size: int) -> Callable[[], Sample]:
    return lambda: smp.run(source, size)


def _tensorizer(bench: Bench, folder: Path, plain: Path) -> Callable[[], Sample]:
    key, size = peers.tensorizer_encrypt(plain, folder / "object.tensors"), plain.stat().st_size
    url = bench.store.url(f"{folder.name}/object.tensors")
    return lambda: sized(size, bench.libraries.do("tensorizer_open", url=url, key=key, device="cuda"))


def _streamer(bench: Bench, folder: Path, plain: Path) -> Callable[[], Sample]:
    size, url = plain.stat().st_size, f"s3://bucket/{folder.name}/object.safetensors"
    names = peers.write_safetensors(plain, folder / "object.safetensors")
    return lambda: sized(size, bench.libraries.do("streamer_open", url=url, names=names, device="cuda"))


def gpu_loads() -> tuple[Load, ...]:
    """The loads."""
    return Copies(), WholeWay()


def gpu_goals() -> tuple[Goal, ...]:
    """The goals."""
    return (
        Goal("gpu-copy", "ring", "gb_s", 0.95, (("bare pinned copy", 1.0),)),
        # A copy that is fully hidden costs no time beside the fetching; 0.95 leaves room for the spread.
        Goal("gpu-path", _TO_DEVICE, "gb_s", 0.95, ((_TO_HOST, 1.0),)),
        Goal("gpu-path", _TO_DEVICE, "gb_s", 1.0, (("tensorizer", 1.0),)),
        Goal("gpu-path", _TO_DEVICE, "gb_s", 1.0, (("Run:ai streamer", 1.0),)),
    )


_registered: list[Ring] = []  # memory that the driver knows must not go away and come again as another ring


def ring_worker(
    device: str | Device = "cuda", slots: int = Compute().slots, slot_bytes: int = Fetch().slot_bytes
) -> Worker:
    """The rings and the device as a compute process has them with the defaults of the configuration."""
    plain, result = Ring.create("bench-plain", slots, slot_bytes), Ring.create("bench-result", 2, MIB)
    _registered.extend((plain, result))
    return Worker(device, plain, result)


def staging_device() -> Device:
    """The device as it is where registering memory is refused."""
    device, name = torch.device("cuda", torch.cuda.current_device()), torch.cuda.get_device_name()
    return StreamDevice(device, name, torch.cuda, lambda _ring: "refused, to have it staged")


def check_device() -> list[str]:
    """All that is wrong with what arrives on the device, pinned and staged.

    Entries of sizes around the borders of slots, then many at random; windows whose reading is held up.
    """
    pinned = ring_worker()
    print(f"{pinned.device.name}: the ring is {'pinned' if pinned.pinned else 'not pinned'}")
    numbers = random.Random(1)
    sizes = [*_ODD_SIZES, *(numbers.randrange(1, 40 * MIB) for _ in range(20))]
    found = []
    for worker in (pinned, ring_worker(staging_device())):
        found += check(worker.device, worker.plain, sizes)
    for device in ("cuda", staging_device()):
        worker = ring_worker(device, *SMALL)
        found += check_windows(worker.device, worker.plain, WINDOWS_BYTES, hold_up)
    return found


def hold_up() -> None:
    """Keep the current stream busy for longer than a small slot takes to be filled."""
    torch.cuda._sleep(_DELAY_CYCLES)


def checked(*, sanitizer: bool) -> int:
    """Run the check, in a process of its own; under compute-sanitizer where that is on PATH."""
    argv = [sys.executable, "-m", "benchmarks.gpu", "--check"]
    tool = shutil.which("compute-sanitizer") if sanitizer else None
    if tool is not None:
        argv = [tool, "--tool", "memcheck", "--error-exitcode", "3", *argv]
    elif sanitizer:
        print("compute-sanitizer is not on PATH: checked without it")
    return subprocess.run(argv, cwd=ROOT, check=False).returncode


def main() -> int:
    """Check, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only check that the right bytes arrive")
    parser.add_argument("--unsanitized", action="store_true", help="leave compute-sanitizer out, which takes minutes")
    options, rest = parser.parse_known_args()
    reporting = "--report" in rest
    if not reporting and not torch.cuda.is_available():
        print("there is no CUDA device here, so there is nothing to measure", file=sys.stderr)
        return 2
    if options.check:
        problems = check_device()
        print(json.dumps({"problems": problems}))
        return 1 if problems else 0
    from benchmarks.__main__ import run  # not before: the check needs no server

    failed = 0 if reporting else checked(sanitizer=not options.unsanitized)
    return failed or run(gpu_loads(), gpu_goals(), rest, "gpu-")


if __name__ == "__main__":
    sys.exit(main())
