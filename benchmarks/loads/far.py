"""Storage that is far away: what counts is how much is under way, and what a round trip costs."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from benchmarks import peers
from benchmarks.bench import Bench, Contestant, Entry, present
from benchmarks.loads.large import sized
from benchmarks.loads.small import FETCHED, PREFIX, each, s5cmd_all
from benchmarks.objects import MIB, seal_many, seal_object
from benchmarks.relay import Line, relay
from benchmarks.results import Sample
from benchmarks.smp import ENDS_AS

LINE = Line(0.05, 300e6, 2 * MIB)
_NOTE = f"The line is `benchmarks/relay.py`: {LINE}. All go through it to the server of the other loads."


class _Away(NamedTuple):
    """The bench's server at the end of a long line.

    Attributes:
        folder: of the bucket.
        endpoint: where the server is reached.
        source: the folder, as the daemon knows it.
        fetched: where peers put files.
    """

    folder: Path
    endpoint: str
    source: str
    fetched: Path


@contextlib.contextmanager
def _away(bench: Bench, remote: str) -> Iterator[_Away]:
    port = urlsplit(bench.store.http).port
    assert port
    with bench.folder(remote) as folder, relay(port, LINE) as far, tempfile.TemporaryDirectory(dir=bench.work) as work:
        endpoint = f"http://127.0.0.1:{far}"
        source = f"{bench.smp.s3(bench.store, remote, endpoint=endpoint)}{folder.name}/"
        yield _Away(folder, endpoint, source, Path(work))


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
            source = f"{away.source}object.smp"
            bench.smp.check(source, digest)
            url = f"{away.endpoint}/bucket/{away.folder.name}/object.smp"
            yield [
                Contestant("SMP", ENDS_AS, lambda: bench.smp.run(source, size)),
                present("rclone", FETCHED, lambda: _rclone(bench, away, size)),
                present("s5cmd", FETCHED, lambda: _s5cmd(bench, away, size)),
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
            seal_many(away.folder / "all", count, size, bench.sender, bench.smp.key)
            source = f"{away.source}all/"
            yield [
                Contestant(PREFIX, ENDS_AS, lambda: bench.smp.run(source, size * count, count)),
                present("s5cmd", FETCHED, lambda: _s5cmd_all(bench, away, count, size)),
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
            seal_many(away.folder / "all", count, size, bench.sender, bench.smp.key)
            sources = [f"{away.source}all/{number:06}.smp" for number in range(count)]
            yield [
                Contestant("64 jobs", ENDS_AS, lambda: each(bench.smp, sources, size)),
                present("s5cmd, 64 objects", FETCHED, lambda: _s5cmd_all(bench, away, count, size)),
            ]


def _s5cmd(bench: Bench, away: _Away, size: int) -> Callable[[], Sample]:
    peers.s5cmd_path()
    source, target = f"s3://bucket/{away.folder.name}/object.smp", away.fetched / "s5cmd"
    return lambda: sized(size, peers.s5cmd(bench.store, source, target, endpoint=away.endpoint))


def _s5cmd_all(bench: Bench, away: _Away, count: int, size: int) -> Callable[[], Sample]:
    return s5cmd_all(bench.store, away.folder, away.fetched / "s5cmd", count, size, away.endpoint)


def _rclone(bench: Bench, away: _Away, size: int) -> Callable[[], Sample]:
    """rclone, with its four streams."""
    rclone = peers.Rclone(bench.store)
    rclone.know("far", away.endpoint)
    source, target = f"far:bucket/{away.folder.name}/object.smp", away.fetched / "rclone"

    def act() -> Sample:
        target.unlink(missing_ok=True)  # else it sees that it is there already
        return sized(size, rclone.copy(source, target))

    return act
