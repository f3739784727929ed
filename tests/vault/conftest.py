"""A database and a seal for the stores."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = Database(str(tmp_path / "smp.db"))
    yield db
    db.close()


@pytest.fixture
def seal() -> StateSeal:
    return StateSeal(bytearray(range(32)))
