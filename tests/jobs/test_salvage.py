"""A damaged database: what SQLite would lose without a word is seen, and what can be read is had again."""

import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_proto.control import GetSpec, ObjectInfo, SyncSpec
from smp_proto.errors import IntegrityError, ResourceError
from smpd.jobs.database import MIGRATIONS, Database
from smpd.jobs.journal import Journal
from smpd.jobs.pages import FRAME_HEADER_BYTES, WAL_HEADER_BYTES, Pages, read_wal
from smpd.jobs.salvage import finish_swap, salvage, set_aside
from smpd.jobs.seal import StateSeal
from smpd.sync.store import SyncStore

PAGE = 4096


def journal(db: Database) -> Journal:
    return Journal(db, StateSeal(bytearray(32)))


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A database of a killed process: 40 jobs, most of them in its log; some with much to say."""
    db = Database(str(tmp_path / "live.db"))
    store = journal(db)
    for number in range(40):
        store.add(GetSpec(f"a:{'x' * (6000 if number % 10 == 0 else 5)}{number}"), owner="1:x", key=str(number))
        store.mark_ranges(store.list(limit=1)[0].id, {0: b"leaves"})
    folder = tmp_path / "state"
    folder.mkdir()
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{tmp_path}/live.db{suffix}", folder / f"smpd.db{suffix}")
    db.close()
    return folder / "smpd.db"


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)


def sources(path: Path) -> set[str]:
    """What can be read of the jobs."""
    db = Database(str(path))
    try:
        return {job.spec.source.lstrip("a:x") for job in journal(db).list()}
    finally:
        db.close()


ALL = set(map(str, range(40)))


def test_a_whole_log_is_whole(killed: Path):
    """What a kill leaves is neither damaged nor torn, and SQLite agrees on what is in it."""
    wal = read_wal(f"{killed}-wal")
    assert len(wal.frames) > 100
    assert all(frame.good for frame in wal.frames)
    assert not wal.damaged
    assert not wal.torn
    assert sources(killed) == ALL
    assert read_wal(f"{killed}-wal").frames == []


@pytest.mark.parametrize("part", [0, 8, 12, 16, 24, 60, 5000])
def test_a_changed_byte_in_the_log_is_seen(killed: Path, part: int):
    """SQLite takes it for the end of the log; the header, salts, checksums and pages are all looked at."""
    wal = Path(f"{killed}-wal")
    offset = part if part < WAL_HEADER_BYTES else WAL_HEADER_BYTES + 20 * (FRAME_HEADER_BYTES + PAGE) + part - 32
    flip(wal, offset)
    copy = killed.with_name("copy.db")
    shutil.copyfile(killed, copy)
    shutil.copyfile(wal, f"{copy}-wal")
    with sqlite3.connect(copy) as silent:
        assert silent.execute("PRAGMA integrity_check").fetchone() == ("ok",)  # without a word
    silent.close()
    assert read_wal(str(wal)).damaged
    salvage(str(killed))
    assert sources(killed) >= ALL - {str(number) for number in range(12)}


def test_a_torn_end_is_no_damage(killed: Path):
    """A crash leaves frames that were never committed; a change of the last one cannot be told from that."""
    wal = Path(f"{killed}-wal")
    whole = wal.read_bytes()
    wal.write_bytes(whole[: -PAGE // 2])
    assert not read_wal(str(wal)).damaged
    wal.write_bytes(whole)
    flip(wal, len(whole) - 100)
    found = read_wal(str(wal))
    assert not found.damaged
    assert found.torn


@pytest.mark.parametrize("part", range(FRAME_HEADER_BYTES))
def test_a_change_in_the_head_of_the_last_frame_is_seen(killed: Path, part: int):
    """Also of one of its salts, by which it looks like what an earlier round left."""
    wal = Path(f"{killed}-wal")
    flip(wal, wal.stat().st_size - FRAME_HEADER_BYTES - PAGE + part)
    found = read_wal(str(wal))
    assert (found.damaged, found.torn) == (False, True)


def test_an_older_round_of_the_log_is_no_damage(tmp_path: Path):
    """SQLite writes the log from its beginning again, over what it wrote back; what it did not reach is no damage."""
    path = tmp_path / "a.db"
    db = Database(str(path))
    store = journal(db)
    for number in range(60):
        store.add(GetSpec(f"a:{number}"), owner="1:x", key=str(number))
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA wal_checkpoint(RESTART)")
    other.close()
    store.add(GetSpec("a:more"), owner="1:x", key="more")
    found = read_wal(f"{path}-wal")
    assert 0 < len(found.frames) < 30
    assert not found.damaged
    assert not found.torn
    db.close()


@pytest.mark.parametrize("seed", range(12))
def test_rows_are_had_again(killed: Path, seed: int):
    """Whatever page is overwritten, also the first, the rows of all others are there, and nothing is deleted."""
    sources(killed)  # writes the log back
    rng = random.Random(seed)
    pages = killed.stat().st_size // PAGE
    victim = 0 if seed == 0 else rng.randrange(pages)
    data = bytearray(killed.read_bytes())
    data[victim * PAGE : (victim + 1) * PAGE] = rng.randbytes(PAGE)
    killed.write_bytes(data)
    found = salvage(str(killed))
    assert (killed.parent / found.aside).read_bytes() == data
    assert set_aside(str(killed)) == [found.aside]
    left = sources(killed)
    assert len(left) >= 40 - 15
    assert found.rows["jobs"] >= len(left)
    assert sorted(path.name for path in killed.parent.iterdir()) == ["smpd.db", found.aside]


def test_a_crash_in_the_middle_of_it(killed: Path, monkeypatch):
    """Before the swap the damaged files are there; after it has begun the next start ends it. The log is not applied."""
    flip(Path(f"{killed}-wal"), WAL_HEADER_BYTES + 20 * (FRAME_HEADER_BYTES + PAGE) + 100)
    monkeypatch.setattr("smpd.jobs.salvage._swap", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        salvage(str(killed))
    monkeypatch.undo()
    assert os.path.exists(f"{killed}-wal")
    finish_swap(str(killed))
    assert not os.path.exists(f"{killed}-wal")
    assert len(sources(killed)) >= 25
    assert len(set_aside(str(killed))) == 1


def test_without_a_swap_half_a_salvage_is_removed(killed: Path):
    """What an attempt left that never came to the swap is of no use."""
    Path(f"{killed}.new").write_bytes(b"half")
    finish_swap(str(killed))
    assert not os.path.exists(f"{killed}.new")
    assert sources(killed) == ALL


@given(st.binary(max_size=3 * PAGE), st.booleans())
def test_anything_can_be_read(tmp_path_factory: pytest.TempPathFactory, data: bytes, as_log: bool):
    """No file makes the reader fail, or go on for ever."""
    path = tmp_path_factory.mktemp("any") / "a.db"
    path.write_bytes(b"SQLite format 3\0\x10\0" + data)
    if as_log:
        Path(f"{path}-wal").write_bytes(b"\x37\x7f\x06\x82\0\x2d\xe2\x18\0\0\x10\0" + data)
    pages = Pages(str(path))
    try:
        list(pages.rows())
    finally:
        pages.close()


def test_a_changed_version_is_damage_and_a_newer_one_is_not(tmp_path: Path):
    """The version is kept twice: a flipped bit in one is damage; a newer SMP writes both."""
    path = str(tmp_path / "a.db")
    Database(path).close()
    with sqlite3.connect(path) as other:
        other.execute(f"PRAGMA user_version={len(MIGRATIONS) + 16}")
    other.close()
    with pytest.raises(ResourceError) as caught:
        Database(path)
    assert caught.value.details == {"damaged": True}
    with sqlite3.connect(path) as other:
        other.execute(f"PRAGMA application_id={0x534D5000 + len(MIGRATIONS) + 16}")
    other.close()
    with pytest.raises(IntegrityError, match="this smpd knows up to") as newer:
        Database(path)
    assert newer.value.code == "unsupported"
    assert "newer smpd" in newer.value.hint


def test_rows_of_one_length_are_told_apart(tmp_path: Path):
    """Syncs have as many columns as the vault had once: each row goes to its own table, by the types of its values."""
    db = Database(str(tmp_path / "live.db"))
    store = SyncStore(db, StateSeal(bytearray(32)))
    for name in ("knees", "hips"):
        sync = store.add(SyncSpec(name=name, source="lake:in/"), "1:x")
        store.note(sync.number, [ObjectInfo(f"in/{n}", 1, "p") for n in range(5)], "", settle=False, live=False)
    (tmp_path / "state").mkdir()
    path = tmp_path / "state" / "smpd.db"
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{tmp_path}/live.db{suffix}", f"{path}{suffix}")
    db.close()
    rows = salvage(str(path)).rows
    assert {"syncs": 2, "sync_objects": 10, "vault": 0, "jobs": 0} == {
        name: rows[name] for name in ("syncs", "sync_objects", "vault", "jobs")
    }
    db = Database(str(path))
    again = SyncStore(db, StateSeal(bytearray(32)))
    assert [each.spec.name for each in again.all()] == ["hips", "knees"]
    assert again.counts(1)[0] == {"new": 5}
    db.close()
