"""Small requests one after the other: from a request to its data, and the control socket alone."""

import contextlib
import http.client
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from benchmarks.bench import Bench, Contestant, Entry
from benchmarks.objects import seal_object
from benchmarks.results import Sample
from benchmarks.smp import ENDS_AS, SINK
from benchmarks.stats import percentile
from benchmarks.watch import costs
from smp_proto.control import RunSpec

SIZE = 64 << 10


def timed(act: Callable[[], float], times: int, pid: int = 0) -> Sample:
    """Do something many times; ``act`` returns the milliseconds that it took."""
    sample = Sample(0.0)
    if pid:
        with costs(pid, sample):
            sample.latencies_ms = [act() for _ in range(times)]
    else:
        started = time.perf_counter()
        sample.latencies_ms = [act() for _ in range(times)]
        sample.seconds = time.perf_counter() - started
    sample.objects = times
    sample.figures = {f"p{p}_ms": percentile(sample.latencies_ms, p) for p in (50, 99)}
    return sample


class Ready:
    """One object of 64 KiB: until its last window is in the processor's hands."""

    name = "ready"
    title = "request to data ready, one object of 64 KiB, warm"
    unit = "p50_ms"
    ceiling = "one bare GET"
    rounds = 0
    note = (
        "A small sealed object needs one GET of all of it: that is the bare GET, over a kept connection of "
        "Python's http.client. `done` counts until the job is done, its result sealed, audited and committed."
    )

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """One object, asked for again and again."""
        times = bench.size(40, 5)
        with bench.folder("ready") as folder:
            seal_object(folder / "object.smp", SIZE, bench.sender, bench.smp.key)
            source = f"{bench.source}{folder.name}/object.smp"
            where = urlsplit(bench.store.url(f"{folder.name}/object.smp"))
            with contextlib.closing(http.client.HTTPConnection(where.netloc, timeout=10)) as connection:

                def done() -> float:
                    started = time.perf_counter()
                    bench.smp.wait(bench.smp.submit(RunSpec(source, SINK)))
                    return (time.perf_counter() - started) * 1e3

                def ready() -> float:
                    started = time.monotonic_ns()
                    view = bench.smp.wait(bench.smp.submit(RunSpec(source, SINK)))
                    return float(bench.smp.sunk(view)["ready_ns"] - started) / 1e6

                def bare() -> float:
                    started = time.perf_counter()
                    connection.request("GET", where.path)
                    connection.getresponse().read()
                    return (time.perf_counter() - started) * 1e3

                yield [
                    Contestant("SMP, ready", "plaintext in the processor's memory", lambda: timed(ready, times)),
                    Contestant("SMP, done", ENDS_AS, lambda: timed(done, times, bench.smp.pid)),
                    Contestant("one bare GET", "ciphertext in memory; nothing is checked", lambda: timed(bare, times)),
                ]


class RoundTrip:
    """The control socket."""

    name = "control"
    title = "control round trip over a kept connection"
    unit = "p50_ms"
    ceiling = ""
    rounds = 0
    note = "`box-key` is the cheapest request. What a person waits for is in `make bench-client`."

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """Two requests."""
        client, times = bench.smp.client, bench.size(1000, 20)

        def asking(ask: Callable[[], object]) -> Callable[[], float]:
            def act() -> float:
                started = time.perf_counter()
                ask()
                return (time.perf_counter() - started) * 1e3

            return act

        pid = bench.smp.pid
        yield [
            Contestant("box-key", "answered", lambda: timed(asking(client.box_key), times, pid)),
            Contestant("status", "answered", lambda: timed(asking(client.status), times, pid)),
        ]
