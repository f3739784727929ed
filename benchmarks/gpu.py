"""``make bench-gpu``: the way to a CUDA device, alone and while fetching, against those who end in the same state.

Needs a CUDA device; without one it says so and exits 2. ``--check`` only checks that the right bytes arrive, for
``compute-sanitizer``, under which the whole of it also runs once when it is on PATH.
"""

import argparse
import contextlib
import itertools
import json
import os
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
from benchmarks.ring_copy import check, copy_windows
from benchmarks.smp import ENDS_AS, Smp, daemon
from smpd.compute.worker import Worker
from smpd.config import Compute, Fetch
from smpd.links.ring import Ring

_ODD_SIZES = [1, 4095, 4096, 4097, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 0, 100 * MIB + 7]


class Copies:
    """Host memory to the device."""

    name = "gpu-copy"
    title = "host to device, 8 MiB at a time"
    unit = "gb_s"
    ceiling = "bare pinned copy"
    rounds = 0
    note = "The bare copy takes as many pinned buffers as the ring has slots, one stream, one wait at the end."

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """A ring as a compute process has it, and buffers that torch pinned."""
        total = bench.size(8192, 64) * MIB
        worker = ring_worker()
        problems = list(check(worker.device, worker.plain, _ODD_SIZES))
        if problems:
            raise RuntimeError("; ".join(problems))
        pinned = [torch.empty_like(slot, pin_memory=True).fill_(1) for slot in worker.plain]
        targets = [torch.empty_like(slot, device=worker.device.torch_device) for slot in pinned[:2]]

        def bare() -> Sample:
            torch.cuda.synchronize()
            started = time.perf_counter()
            for number, source in zip(range(total // pinned[0].numel()), itertools.cycle(pinned), strict=False):
                targets[number % 2].copy_(source, non_blocking=True)
            torch.cuda.synchronize()
            return sized(total, Sample(time.perf_counter() - started))

        def ring() -> Sample:
            return sized(total, Sample(copy_windows(worker.device, worker.plain, total)))

        yield [
            Contestant("ring", "windows on the device", ring),
            Contestant("bare pinned copy", "buffers on the device", bare),
        ]


class WholeWay:
    """The whole way from S3 on loopback to the device, with 1, 2, 4, … fetch processes."""

    name = "gpu-path"
    title = "8 GiB sealed, S3 over HTTP, to the device"
    unit = "gb_s"
    ceiling = "curl"
    rounds = 0
    note = "`to the host` is the same job with the device `cpu`: what copying costs on top of fetching."

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """A daemon for each number of fetch processes, and one without a device for the greatest of them."""
        size = bench.size(8192, 16) * MIB
        counts = fetch_counts()
        plain = bench.work / "plain"
        write_plain(plain, size)
        with bench.folder("gpu") as folder, contextlib.ExitStack() as stack:
            entries: list[Entry] = []
            for device, count in [*(("cuda", count) for count in counts), ("cpu", counts[-1])]:
                config: dict[str, dict[str, Any]] = {"fetch": {"processes": count}, "compute": {"device": device}}
                smp = stack.enter_context(daemon(bench.work / f"smpd-{device}-{count}", bench.sender, config))
                path = folder / f"{device}-{count}.smp"
                digest = seal_object(path, size, bench.sender, smp.key)
                source = f"{smp.s3(bench.store, 's3')}{folder.name}/{path.name}"
                smp.check(source, digest)
                where = "to the host" if device == "cpu" else "to the device"
                entries.append(Contestant(f"SMP {where}, {count} fetching", ENDS_AS, _run(smp, source, size)))
            url = bench.store.url(f"{folder.name}/cuda-1.smp")
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
    """The goals; the greatest number of fetch processes is the one that counts."""
    count = fetch_counts()[-1]
    mine = f"SMP to the device, {count} fetching"
    return (
        Goal("gpu-copy", "ring", "gb_s", 0.95, (("bare pinned copy", 1.0),)),
        # A copy that is fully hidden costs no time beside the fetching; 0.95 leaves room for the spread.
        Goal("gpu-path", mine, "gb_s", 0.95, ((f"SMP to the host, {count} fetching", 1.0),)),
        Goal("gpu-path", mine, "gb_s", 1.0, (("tensorizer", 1.0),)),
        Goal("gpu-path", mine, "gb_s", 1.0, (("Run:ai streamer", 1.0),)),
    )


def fetch_counts() -> list[int]:
    """Numbers of fetch processes: doubled up to half of the cores, as the other half opens and serves."""
    cores = len(os.sched_getaffinity(0))
    return [count for count in (1, 2, 4, 8, 16) if count <= max(1, cores // 2)]


def ring_worker(device: str = "cuda") -> Worker:
    """The rings and the device as a compute process has them with the defaults of the configuration."""
    plain = Ring.create("bench-plain", Compute().slots, Fetch().slot_bytes)
    return Worker(device, plain, Ring.create("bench-result", 2, MIB))


def check_device() -> list[str]:
    """All that is wrong with what arrives on the device: sizes around the borders of slots, then many at random."""
    worker = ring_worker()
    print(f"{worker.device.name}: the ring is {'pinned' if worker.pinned else 'not pinned'}")
    sizes = [*_ODD_SIZES, *(random.Random(1).randrange(1, 40 * MIB) for _ in range(20))]
    return list(check(worker.device, worker.plain, sizes))


def sanitized() -> int:
    """Run the check under compute-sanitizer; 0 when it finds nothing or is not here."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("compute-sanitizer is not on PATH: not run")
        return 0
    argv = [tool, "--tool", "memcheck", "--error-exitcode", "3", sys.executable, "-m", "benchmarks.gpu", "--check"]
    return subprocess.run(argv, cwd=ROOT, check=False).returncode


def main() -> int:
    """Check, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    options, rest = parser.parse_known_args()
    if not torch.cuda.is_available():
        print("there is no CUDA device here, so there is nothing to measure", file=sys.stderr)
        return 2
    problems = check_device()
    print(json.dumps({"problems": problems}))
    if options.check or problems:
        return 1 if problems else 0
    from benchmarks.__main__ import run  # not before: the check needs no server

    return sanitized() or run(gpu_loads(), gpu_goals(), rest)


if __name__ == "__main__":
    sys.exit(main())
