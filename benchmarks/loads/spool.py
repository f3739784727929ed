"""What the spool costs: on tmpfs, where only its work counts, and on a disk, beside the rate of the disk itself."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.bench import DISK, Bench, Contestant, Entry
from benchmarks.loads.large import BYTES, QUICK_BYTES, sized
from benchmarks.objects import MIB, seal_object
from benchmarks.results import Sample
from benchmarks.smp import ENDS_AS, SINK, Smp, daemon
from smp_proto.control import GetSpec, RunSpec


class Spool:
    """Mode zero-knowledge, which spools, against mode streaming, which does not."""

    name = "spool"
    title = "1 GiB with the spool on and off"
    unit = "gb_s"
    ceiling = "off"
    rounds = 0
    note = (
        "`disk alone` writes as many bytes in blocks of 8 MiB with fdatasync at the end, to the same file system as "
        "the daemon of `on, disk`."
    )

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """Two daemons, one with its state on the disk."""
        size = bench.size(BYTES, QUICK_BYTES)
        with (
            bench.folder("spool") as folder,
            tempfile.TemporaryDirectory(dir=DISK, prefix="smp-bench-") as name,
            daemon(Path(name) / "smpd", bench.sender) as slow,
        ):
            bench.smp.s3(bench.store, "spooled", "zero-knowledge")
            slow.s3(bench.store, "spooled", "zero-knowledge")
            acts = []
            for smp, file in ((bench.smp, "tmpfs.smp"), (slow, "disk.smp")):
                digest = seal_object(folder / file, size, bench.sender, smp.key)
                smp.check(f"spooled:{folder.name}/{file}", digest)
                acts.append(_run(smp, f"spooled:{folder.name}/{file}", size))
            off, kept = f"{bench.source}{folder.name}/tmpfs.smp", f"spooled:{folder.name}/tmpfs.smp"
            yield [
                Contestant("off", ENDS_AS, lambda: bench.smp.run(off, size)),
                Contestant("on, tmpfs", ENDS_AS, acts[0]),
                Contestant("get, tmpfs", "sealed in the vault, verified", lambda: bench.smp.get(GetSpec(kept), size)),
                Contestant("on, disk", ENDS_AS, acts[1]),
                Contestant("disk alone", "on the disk", lambda: _write(Path(name) / "written", size)),
            ]


def _run(smp: Smp, source: str, size: int) -> Callable[[], Sample]:
    return lambda: smp.measure(RunSpec(source, SINK), size)


def _write(path: Path, size: int) -> Sample:
    """The disk's own sequential rate, to a file that has its length beforehand, as a spool file has."""
    block = os.urandom(8 * MIB)
    cpu, started = time.process_time(), time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.posix_fallocate(fd, 0, size)
        for offset in range(0, size, len(block)):
            os.pwrite(fd, block[: size - offset], offset)
        os.fdatasync(fd)
    finally:
        os.close(fd)
    sample = sized(size, Sample(time.perf_counter() - started, cpu_s=time.process_time() - cpu))
    path.unlink()
    return sample
