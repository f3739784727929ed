"""What a daemon costs that does nothing, and how much memory it needs for small and for huge objects."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.bench import DISK, Bench, Contestant, Entry, present
from benchmarks.objects import MIB, seal_object
from benchmarks.peers import PeerAbsentError
from benchmarks.results import Sample
from benchmarks.smp import ENDS_AS, Smp, daemon, until
from benchmarks.watch import cpu_seconds, status_value


class Idle:
    """A daemon whose workers have been let go."""

    name = "idle"
    title = "smpd at rest, after a job, its workers let go"
    unit = "rss_mib"
    ceiling = ""
    rounds = 1
    note = "A wake-up is a voluntary context switch of any thread of smpd, counted over 20 s."

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """A daemon of its own, with short idle times."""
        config = {"fetch": {"idle_s": 1.0}, "compute": {"idle_s": 1.0}}
        with bench.folder("idle") as folder, daemon(bench.work / "idle", bench.sender, config) as smp:
            digest = seal_object(folder / "object.smp", 16 * MIB, bench.sender, smp.key)
            source = f"{smp.s3(bench.store, 'http')}{folder.name}/object.smp"
            smp.check(source, digest)
            until(lambda: not [worker for worker in smp.client.status().workers if worker.state == "up"])
            seconds = bench.size(20, 1)
            yield [Contestant("smpd", "waiting", lambda: _rest(smp.pid, seconds))]


def _rest(pid: int, seconds: int) -> Sample:
    before, cpu = _switches(pid), cpu_seconds(pid)
    time.sleep(seconds)  # this is what is measured
    wakeups = (_switches(pid) - before) / seconds
    figures = {"rss_mib": status_value(pid, "VmRSS") / MIB, "wakeups_s": wakeups}
    return Sample(float(seconds), cpu_s=cpu_seconds(pid) - cpu, figures=figures)


def _switches(pid: int) -> int:
    """Voluntary context switches of all threads."""
    tasks = os.listdir(f"/proc/{pid}/task")
    return sum(status_value(int(task), "voluntary_ctxt_switches") for task in tasks)


class Memory:
    """The peak of each process, for 1 GiB and for 16 GiB."""

    name = "memory"
    title = "peak memory of each process"
    unit = "peak_mib"
    ceiling = "1 GiB"
    rounds = 1
    note = (
        "A daemon of its own for each size. The object lies on the disk, since 16 GiB have no place in memory; this "
        "load measures memory, not speed. Rings are counted in each process that maps them; the sum counts them twice."
    )

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """Objects on the disk, behind a link in the bucket."""
        with tempfile.TemporaryDirectory(dir=DISK, prefix="smp-bench-") as name, contextlib.ExitStack() as stack:
            sizes = {"1 GiB": bench.size(1024, 16) * MIB, "16 GiB": bench.size(16 * 1024, 64) * MIB}

            def prepare(label: str, size: int) -> Callable[[], Sample]:
                if shutil.disk_usage(name).free < 2 * size:
                    raise PeerAbsentError(f"no room for {label} on the disk")
                smp = stack.enter_context(daemon(bench.work / label.replace(" ", ""), bench.sender))
                path = Path(name) / f"{size}.smp"
                seal_object(path, size, bench.sender, smp.key)
                link = bench.store.bucket / path.name
                link.symlink_to(path)
                stack.callback(link.unlink)
                source = f"{smp.s3(bench.store, 'http')}{path.name}"
                return lambda: _peak(smp, source, size)

            yield [
                present(label, ENDS_AS, lambda label=label, size=size: prepare(label, size))  # type: ignore[misc]
                for label, size in sizes.items()
            ]


def _peak(smp: Smp, source: str, size: int) -> Sample:
    sample = smp.run(source, size)
    sample.figures = {"peak_mib": sum(sample.peak_rss.values()) / MIB}
    return sample
