"""Many jobs at once, and how soon an urgent one gets its turn."""

import contextlib
import threading
import time
from collections.abc import Iterator

from benchmarks.bench import Bench, Contestant, Entry
from benchmarks.objects import MIB, seal_many, seal_object
from benchmarks.results import Sample
from benchmarks.smp import ENDS_AS, SINK, Smp
from benchmarks.watch import costs
from smp_proto.control import Priority, RunSpec
from smpctl import Client, job_of

_PRIORITIES: tuple[Priority, ...] = ("low", "normal", "high")
SIZE = 16 * MIB
LARGER = 64 * MIB  # so much of a job's own cost is spread over more bytes


class ManyJobs:
    """64 jobs of 16 MiB with mixed priorities, and a critical one once they run; and the same with larger ones."""

    name = "jobs"
    title = "64 jobs of 16 MiB at once, mixed priorities"
    unit = "gb_s"
    ceiling = "one job"
    rounds = 0
    note = (
        "The critical job is submitted once the 64 are, behind those that are queued then; it counts as running when a "
        "watcher on another connection is told so."
    )

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """One object for each job, one of the same size in all, and one that many jobs take."""
        count = bench.size(64, 6)
        with bench.folder("jobs") as folder:
            source = f"{bench.source}{folder.name}"
            seal_many(folder / "all", count + 1, SIZE, bench.sender, bench.smp.key)
            seal_object(folder / "one.smp", count * SIZE, bench.sender, bench.smp.key)
            seal_object(folder / "larger.smp", bench.size(LARGER, SIZE), bench.sender, bench.smp.key)
            sources = [f"{source}/all/{number:06}.smp" for number in range(count + 1)]
            larger = [f"{source}/larger.smp"] * (count + 1)
            yield [
                Contestant("64 jobs", ENDS_AS, lambda: _jobs(bench.smp, sources, SIZE)),
                Contestant("64 jobs of 64 MiB", ENDS_AS, lambda: _jobs(bench.smp, larger, bench.size(LARGER, SIZE))),
                Contestant("one job", ENDS_AS, lambda: bench.smp.run(f"{source}/one.smp", count * SIZE)),
            ]


def _jobs(smp: Smp, sources: list[str], size: int) -> Sample:
    sample = Sample(0.0, bytes=len(sources) * size, objects=len(sources))
    with costs(smp.pid, sample), _Watcher(str(smp.box.socket)) as watcher:
        specs = [RunSpec(source, SINK) for source in sources]
        jobs = [smp.submit(spec, _PRIORITIES[index % 3]) for index, spec in enumerate(specs[:-1])]
        watcher.wait_running(jobs[0])
        sample.figures["queued"] = float(len(smp.client.jobs(["queued"], limit=len(sources))))
        asked = time.perf_counter()
        critical = smp.submit(specs[-1], "critical")
        sample.figures["critical_ms"] = (watcher.wait_running(critical) - asked) * 1e3
        for job in [*jobs, critical]:
            smp.wait(job)
    return sample


class _Watcher:
    """Notes when each job was first seen running, over a connection of its own."""

    def __init__(self, path: str) -> None:
        self._client = Client(path)
        self._seen: dict[str, float] = {}
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Watcher":
        self._client.connect()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True

    def _watch(self) -> None:
        self._ended = False
        with self._client:
            for event in self._client.watch():
                job = job_of(event)
                if job is not None and job.state not in {"queued", "waiting"}:
                    with self._changed:
                        self._seen.setdefault(job.id, time.perf_counter())
                        self._changed.notify_all()
                if self._ended:
                    return

    def wait_running(self, job: str, timeout_s: float = 60.0) -> float:
        """When a job was first seen running, or beyond that."""
        with self._changed:
            if not self._changed.wait_for(lambda: job in self._seen, timeout_s):
                raise TimeoutError(f"job {job} did not start in {timeout_s:g} s")
            return self._seen[job]
