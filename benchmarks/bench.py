"""What all loads stand on, and what a load is."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from benchmarks.peers import Libraries, PeerAbsentError, libraries
from benchmarks.results import Sample
from benchmarks.servers import Store, store
from benchmarks.smp import Smp, daemon
from smp_proto.sealed.keys import Identity

TMPFS = Path("/dev/shm")
DISK = Path("/var/tmp")


@dataclass
class Contestant:
    """One who takes part in a load. ``ends_as`` says in which state the data are at the end of ``act``."""

    name: str
    ends_as: str
    act: Callable[[], Sample]


Entry = Contestant | tuple[str, str]  # a contestant, or the name of one who is absent and why


class Load(Protocol):
    """A load: what is moved, and who moves it.

    Attributes:
        name: as it is asked for.
        unit: the figure that counts, see :meth:`benchmarks.results.Sample.figure`.
        ceiling: the contestant that the others are compared with.
        rounds: so many at most; 0 for as many as asked for.
        note: what limits it, or what a reader must know.
    """

    name: str
    title: str
    unit: str
    ceiling: str
    rounds: int
    note: str

    def open(self, bench: "Bench") -> AbstractContextManager[list[Entry]]:
        """Make what is moved, and check once that it arrives."""


class Bench:
    """Folders, servers, one daemon: made when first asked for, gone at the end.

    Args:
        work: a folder on tmpfs, so that no disk is measured.
        quick: sizes that only prove that everything runs.
    """

    def __init__(self, work: Path, stack: ExitStack, *, quick: bool) -> None:
        self.work = work
        self.quick = quick
        self.sender = Identity.generate("sender")
        self._stack = stack

    def size(self, full: int, quick: int) -> int:
        """One of two sizes."""
        return quick if self.quick else full

    @cached_property
    def store(self) -> Store:
        """The storage of all contestants."""
        from servers import make_certificate

        return self._stack.enter_context(store(self.work, make_certificate(self.work)))

    @cached_property
    def smp(self) -> Smp:
        """The daemon of all loads that need none of their own."""
        return self._stack.enter_context(daemon(self.work / "smpd", self.sender))

    @cached_property
    def libraries(self) -> Libraries:
        """The peers that are Python libraries."""
        return self._stack.enter_context(libraries(self.store))

    @cached_property
    def source(self) -> str:
        """The bucket over HTTP, as a remote in mode streaming."""
        return self.smp.s3(self.store, "http")

    @contextlib.contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """A folder of the bucket for the length of a block."""
        with tempfile.TemporaryDirectory(dir=self.store.bucket, prefix=f"{name}-") as folder:
            yield Path(folder)


@contextlib.contextmanager
def bench(*, quick: bool) -> Iterator[Bench]:
    """A bench on tmpfs, or where temporary files go if there is none."""
    place = TMPFS if TMPFS.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="smp-bench-", dir=place) as work, ExitStack() as stack:
        yield Bench(Path(work), stack, quick=quick)


def present(name: str, ends_as: str, prepare: Callable[[], Callable[[], Sample]]) -> Entry:
    """A contestant, or its absence: ``prepare`` makes its form of the data and returns how it is run."""
    try:
        return Contestant(name, ends_as, prepare())
    except PeerAbsentError as error:
        return name, str(error)
