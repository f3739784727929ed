"""What a crash costs: a transfer is killed when half of it is there, and started again."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import peers
from benchmarks.bench import Bench, Contestant, Entry, present
from benchmarks.loads.large import BYTES, QUICK_BYTES, in_turn, sized
from benchmarks.objects import seal_object
from benchmarks.results import Sample
from benchmarks.smp import Smp, daemon
from benchmarks.watch import TIMEOUT_S, Command, cpu_seconds, peaks
from smp_proto.control import GetSpec
from smpctl import job_of

_KEPT = "sealed in the vault, verified"
_FILE = "a file on tmpfs, still sealed; nothing is checked"
_LOOK_S = 0.002


class Resume:
    """1 GiB, SIGKILL at half, and the rest."""

    name = "resume"
    title = "1 GiB that is killed at half and started again"
    unit = "gb_s"
    ceiling = "SMP, undisturbed"
    rounds = 0
    note = (
        "SMP is a `get` of mode zero-knowledge. Its daemon is killed and started again, and goes on by itself; both "
        "starts, of the daemon and of its fetch process, are in its time. The programs are run again, as a person "
        "would. What was fetched twice is in *sent / payload*."
    )

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """A daemon of its own, since it dies."""
        size = bench.size(BYTES, QUICK_BYTES)
        with (
            bench.folder("resume") as folder,
            daemon(bench.work / "resumed", bench.sender) as smp,
            tempfile.TemporaryDirectory(dir=bench.work) as work,
        ):
            seal_object(folder / "object.smp", size, bench.sender, smp.key)
            seal_object(folder / "small.smp", 1000, bench.sender, smp.key)
            key = f"{folder.name}/object.smp"
            smp.s3(bench.store, "kept", "zero-knowledge")
            spec, small, into = GetSpec(f"kept:{key}"), GetSpec(f"kept:{folder.name}/small.smp"), Path(work)

            def warm(act: Callable[[Smp, GetSpec, int], Sample]) -> Callable[[], Sample]:
                def acted() -> Sample:
                    smp.get(small, 1000)  # whoever was killed last has no fetch process
                    return act(smp, spec, size)

                return acted

            def s5cmd() -> Callable[[], Sample]:
                command = peers.s5cmd_command(f"s3://bucket/{key}", into / "object", bench.store, bench.store.http)
                return lambda: _twice(command, into, size)

            def rclone() -> Callable[[], Sample]:
                command = peers.Rclone(bench.store).copy_command(f"http_s3:bucket/{key}", into / "object")
                return lambda: _twice(command, into, size)

            yield [
                Contestant("SMP, undisturbed", _KEPT, warm(Smp.get)),
                Contestant("SMP, killed at half", _KEPT, warm(_killed)),
                present("s5cmd, killed at half", _FILE, s5cmd),
                present("rclone, killed at half", _FILE, rclone),
            ]


def _killed(smp: Smp, spec: GetSpec, size: int) -> Sample:
    started, cpu = time.perf_counter(), cpu_seconds(smp.pid)
    job = smp.submit(spec)
    for event in smp.client.watch(jobs=[job]):
        view = job_of(event)
        if view and view.total_bytes and view.done_bytes * 2 >= view.total_bytes:
            break
    first = Sample(0.0, cpu_s=cpu_seconds(smp.pid) - cpu, peak_rss=peaks(smp.pid))
    smp.box.kill()
    first.seconds = time.perf_counter() - started
    started = time.perf_counter()
    smp.box.start()
    smp.wait(job)  # the client connects again
    rest = Sample(time.perf_counter() - started, cpu_s=cpu_seconds(smp.pid), peak_rss=peaks(smp.pid))
    smp.empty(size)
    return sized(size, in_turn(first, rest))


def _twice(command: Command, folder: Path, size: int) -> Sample:
    """Run a program that downloads into a folder, kill it when half is there, run it again as a person would."""
    shutil.rmtree(folder)
    folder.mkdir()
    started = time.perf_counter()
    with subprocess.Popen(
        list(map(str, command.argv)), env=command.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and _written(process.pid) * 2 < size:
            time.sleep(_LOOK_S)
            if time.perf_counter() - started > TIMEOUT_S:
                process.kill()
        if process.poll() is not None:
            raise RuntimeError(f"it ended with {process.returncode} before half of it was there")
        peak_rss = peaks(process.pid)
        process.kill()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = -9
    first = Sample(time.perf_counter() - started, cpu_s=usage.ru_utime + usage.ru_stime, peak_rss=peak_rss)
    return sized(size, in_turn(first, command.run()))


def _written(pid: int) -> int:
    """Bytes that a process has written to files. What its files have is no sign: some are allotted beforehand."""
    with contextlib.suppress(OSError):
        fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
        return int(fields["wchar"])
    return 0
