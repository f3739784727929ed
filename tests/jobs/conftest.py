"""A journal on a real file, and what a test needs to reopen it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smp_proto.control import GetSpec
from smpd.jobs.database import Database
from smpd.jobs.job import Job
from smpd.jobs.journal import Journal
from smpd.jobs.seal import StateSeal

KEY = bytes(range(32))


class Store:
    """A journal that can be closed and opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wall = 1_800_000_000.0
        self.open()

    def open(self) -> None:
        self.db = Database(str(self.path))
        self.journal = Journal(self.db, StateSeal(bytearray(KEY)), wall=lambda: self.wall)

    def reopen(self) -> None:
        self.db.close()
        self.open()

    def add(self, name: str = "pacs:scan", **more: object) -> Job:
        key = str(more.pop("key", name))
        return self.journal.add(GetSpec(name), owner="1000:ann", key=key, **more)[0]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "smp.db")
    yield store
    store.db.close()


@pytest.fixture
def open_store() -> Callable[[Path], Store]:
    return Store
