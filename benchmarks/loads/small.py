"""Many objects, as jobs over a prefix, and many entries in one object: against the rate of one large object."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import peers
from benchmarks.bench import Bench, Contestant, Entry, present
from benchmarks.objects import MIB, seal_many, seal_object
from benchmarks.results import Sample
from benchmarks.servers import Store
from benchmarks.smp import ENDS_AS, SINK, Smp
from benchmarks.watch import costs
from smp_proto.control import RunSpec

KIB = 1 << 10
LARGE = "SMP, one object"
PREFIX = "SMP, a job over the prefix"
EACH = "SMP, a job for each object"
FETCHED = "files on tmpfs, still sealed; nothing is checked"


class ManyObjects:
    """``count`` objects of ``size`` bytes each."""

    rounds = 0
    note = "A job over a prefix opens, verifies, audits and journals each object."

    def __init__(self, name: str, title: str, counts: tuple[int, int], size: int, unit: str, *, large: bool) -> None:
        self.name, self.title, self.unit = name, title, unit
        self.ceiling = LARGE if large else "s5cmd"
        self._counts, self._size, self._large = counts, size, large

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """The objects, and one object of the same size in all where that is what they are compared with."""
        count, size = bench.size(*self._counts), self._size
        with bench.folder("many") as folder:
            seal_many(folder / "all", count, size, bench.sender, bench.smp.key)
            source = f"{bench.source}{folder.name}"
            entries: list[Entry] = [
                Contestant(PREFIX, ENDS_AS, lambda: bench.smp.run(f"{source}/all/", count * size, count)),
            ]
            if self._large:
                digest = seal_object(folder / "one.smp", count * size, bench.sender, bench.smp.key)
                bench.smp.check(f"{source}/one.smp", digest)
                entries.append(Contestant(LARGE, ENDS_AS, lambda: bench.smp.run(f"{source}/one.smp", count * size)))
            names = [f"{source}/all/{number:06}.smp" for number in range(min(count, 256))]
            entries.append(Contestant(EACH, ENDS_AS, lambda: each(bench.smp, names, size)))
            target = bench.work / "fetched"
            entries.append(present("s5cmd", FETCHED, lambda: s5cmd_all(bench.store, folder, target, count, size)))
            yield entries


def each(smp: Smp, sources: list[str], size: int) -> Sample:
    """A job for each object, all submitted at once, until the last is done."""
    sample = Sample(0.0, bytes=len(sources) * size, objects=len(sources))
    with costs(smp.pid, sample):
        for job in [smp.submit(RunSpec(source, SINK)) for source in sources]:
            smp.wait(job)
    return sample


def s5cmd_all(
    store: Store, folder: Path, target: Path, count: int, size: int, endpoint: str = ""
) -> Callable[[], Sample]:
    """s5cmd, for the ``count`` objects below ``folder/all``, into a folder of its own.

    Raises:
        PeerAbsentError: it is not installed.
    """
    peers.s5cmd_path()

    def act() -> Sample:
        sample = peers.s5cmd(store, f"s3://bucket/{folder.name}/all/*", f"{target}/", endpoint=endpoint)
        found = len(list(target.iterdir()))
        if found != count:
            raise RuntimeError(f"s5cmd fetched {found} of {count} objects")
        sample.bytes, sample.objects = count * size, count
        return sample

    return act


class ManyEntries:
    """10,000 entries of 64 KiB in one bundle."""

    name = "entries"
    title = "10,000 entries of 64 KiB in one bundle"
    unit = "gb_s"
    ceiling = LARGE
    rounds = 0
    note = "The processor is handed each entry by itself; one object of the same size has one entry."

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """The bundle, and one entry of the same size."""
        count, size = bench.size(10_000, 100), 64 * KIB
        with bench.folder("entries") as folder:
            source = f"{bench.source}{folder.name}"
            made = seal_object(folder / "bundle.smp", size, bench.sender, bench.smp.key, entries=count)
            bench.smp.check(f"{source}/bundle.smp", made)
            seal_object(folder / "one.smp", count * size, bench.sender, bench.smp.key)
            yield [
                Contestant("SMP, bundle", ENDS_AS, lambda: bench.smp.run(f"{source}/bundle.smp", count * size)),
                Contestant(LARGE, ENDS_AS, lambda: bench.smp.run(f"{source}/one.smp", count * size)),
            ]


MANY = (
    ManyObjects("objects-16m", "64 objects of 16 MiB", (64, 2), 16 * MIB, "gb_s", large=True),
    ManyObjects("objects-1m", "1,000 objects of 1 MiB", (1000, 8), MIB, "gb_s", large=True),
    ManyObjects("objects-64k", "10,000 objects of 64 KiB", (10_000, 20), 64 * KIB, "objects_s", large=False),
)
