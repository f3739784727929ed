"""Sealing and uploading, against plain multipart uploads."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import peers
from benchmarks.bench import Bench, Contestant, Entry, present
from benchmarks.loads.large import BYTES, QUICK_BYTES, sized
from benchmarks.objects import write_plain
from benchmarks.results import Sample
from benchmarks.smp import Smp
from benchmarks.watch import costs


class Put:
    """Seal and put 1 GiB."""

    name = "put"
    title = "1 GiB sealed and put, S3 over HTTP"
    unit = "gb_s"
    ceiling = "s5cmd"
    rounds = 0
    note = (
        "The server (`benchmarks/server.py`) throws bodies away in the kernel, so that only the sender is measured. "
        "The file lies on tmpfs, and so does the spool of SMP."
    )

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """A file, and a remote that takes it."""
        size, plain = bench.size(BYTES, QUICK_BYTES), bench.work / "plain"
        write_plain(plain, size)
        target = bench.smp.s3(bench.store, "uploads", "zero-knowledge", endpoint=bench.store.uploads)
        try:
            yield [
                Contestant("SMP", "sealed, signed, durable in the spool, uploaded", lambda: _put(bench, target, plain)),
                present("s5cmd", "uploaded in the clear", lambda: _s5cmd(bench, plain)),
                present("rclone crypt", "encrypted, uploaded", lambda: _rclone(bench, plain)),
            ]
        finally:
            plain.unlink()


def _put(bench: Bench, target: str, plain: Path) -> Sample:
    smp: Smp = bench.smp
    sample = sized(plain.stat().st_size, Sample(0.0))
    with costs(smp.pid, sample):
        smp.wait(smp.client.put([plain], f"{target}up/object.smp", [smp.key.text()]).id)
    return sample


def _s5cmd(bench: Bench, plain: Path) -> Callable[[], Sample]:
    peers.s5cmd_path()
    target, size = "s3://bucket/up/plain", plain.stat().st_size
    return lambda: sized(size, peers.s5cmd(bench.store, plain, target, endpoint=bench.store.uploads))


def _rclone(bench: Bench, plain: Path) -> Callable[[], Sample]:
    rclone, size = peers.Rclone(bench.store), plain.stat().st_size
    return lambda: sized(size, rclone.copy(plain, "uploads:object"))
