"""Storage that is far away: what counts is how much is under way, and what a round trip costs."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import peers
from benchmarks.bench import Bench, Contestant, Entry, present
from benchmarks.loads.large import sized
from benchmarks.objects import MIB, seal_many, seal_object
from benchmarks.relay import Line, relay
from benchmarks.results import Sample
from benchmarks.smp import ENDS_AS, SINK, Smp
from benchmarks.watch import costs
from smp_proto.control import RunSpec

LINE = Line(0.05, 300e6, 2 * MIB)
_FILES = "files on tmpfs, still sealed; nothing is checked"
_NOTE = f"The line is `benchmarks/relay.py`: {LINE}. All go through it to the server of the other loads."


@dataclass
class _Away:
    """The bench's server at the end of a long line.

    Attributes:
        folder: of the bucket.
        endpoint: where the server is reached.
        source: the folder, as the daemon knows it.
        fetched: where peers put files.
    """

    bench: Bench
    folder: Path
    endpoint: str
    source: str
    fetched: Path

    @property
    def smp(self) -> Smp:
        """The daemon."""
        return self.bench.smp

    def s5cmd(self, name: str, size: int, objects: int = 1) -> Callable[[], Sample]:
        """s5cmd, for an object or many."""
        peers.s5cmd_path()

        def act() -> Sample:
            sample = peers.s5cmd(
                self.bench.store, f"s3://bucket/{self.folder.name}/{name}", f"{self.fetched}/", endpoint=self.endpoint
            )
            self._forget()
            sample.bytes, sample.objects = size * objects, objects
            return sample

        return act

    def rclone(self, name: str, size: int) -> Callable[[], Sample]:
        """rclone, with its four streams."""
        rclone = peers.Rclone(self.bench.store)
        rclone.know("far", self.endpoint)

        def act() -> Sample:
            sample = rclone.copy(f"far:bucket/{self.folder.name}/{name}", self.fetched / name)
            self._forget()
            return sized(size, sample)

        return act

    def _forget(self) -> None:
        shutil.rmtree(self.fetched)
        self.fetched.mkdir()


@contextlib.contextmanager
def _away(bench: Bench, remote: str) -> Iterator[_Away]:
    port = urlsplit(bench.store.http).port
    assert port
    with bench.folder(remote) as folder, relay(port, LINE) as far, tempfile.TemporaryDirectory(dir=bench.work) as work:
        endpoint = f"http://127.0.0.1:{far}"
        source = f"{bench.smp.s3(bench.store, remote, endpoint=endpoint)}{folder.name}/"
        yield _Away(bench, folder, endpoint, source, Path(work))


class Far:
    """One object."""

    name = "far"
    title = "512 MiB sealed, S3 over HTTP, 100 ms away"
    unit = "gb_s"
    ceiling = "rclone"
    rounds = 0
    note = _NOTE

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """One object, and those that read one."""
        size = bench.size(512, 16) * MIB
        with _away(bench, "far") as away:
            digest = seal_object(away.folder / "object.smp", size, bench.sender, bench.smp.key)
            bench.smp.check(f"{away.source}object.smp", digest)
            url = f"{away.endpoint}/bucket/{away.folder.name}/object.smp"
            yield [
                Contestant("SMP", ENDS_AS, lambda: bench.smp.run(f"{away.source}object.smp", size)),
                present("rclone", _FILES, lambda: away.rclone("object.smp", size)),
                present("s5cmd", _FILES, lambda: away.s5cmd("object.smp", size)),
                Contestant("curl", "discarded; nothing is checked", lambda: sized(size, peers.curl(url))),
            ]


class FarObjects:
    """Many small ones."""

    name = "far-64k"
    title = "4,000 objects x 64 KiB, S3 over HTTP, 100 ms away"
    unit = "objects_s"
    ceiling = "s5cmd"
    rounds = 0
    note = _NOTE

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """A job over all of them."""
        size, count = 64 << 10, bench.size(4000, 100)
        with _away(bench, "far-many") as away:
            seal_many(away.folder / "many", count, size, bench.sender, bench.smp.key)
            source = f"{away.source}many/"
            yield [
                Contestant("SMP, a job over the prefix", ENDS_AS, lambda: bench.smp.run(source, size * count, count)),
                present("s5cmd", _FILES, lambda: away.s5cmd("many/*", size, count)),
            ]


class FarJobs:
    """Many jobs."""

    name = "far-jobs"
    title = "64 jobs of 16 MiB, S3 over HTTP, 100 ms away"
    unit = "gb_s"
    ceiling = "s5cmd, 64 objects"
    rounds = 0
    note = _NOTE

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """A job for each object, all at once."""
        size, count = bench.size(16, 1) * MIB, bench.size(64, 4)
        with _away(bench, "far-jobs") as away:
            seal_many(away.folder / "many", count, size, bench.sender, bench.smp.key)
            sources = [f"{away.source}many/{path.name}" for path in sorted((away.folder / "many").iterdir())]
            yield [
                Contestant(f"{len(sources)} jobs", ENDS_AS, lambda: _jobs(away.smp, sources, size)),
                present("s5cmd, 64 objects", _FILES, lambda: away.s5cmd("many/*", size, count)),
            ]


def _jobs(smp: Smp, sources: list[str], size: int) -> Sample:
    sample = Sample(0.0, bytes=size * len(sources), objects=len(sources))
    with costs(smp.pid, sample):
        for job in [smp.submit(RunSpec(source, SINK)) for source in sources]:
            smp.wait(job)
    return sample
