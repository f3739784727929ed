"""The SQLite file: settings, versions, damage and disk errors by name."""

import os
import re
import sqlite3
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from small_disk import no_small_disk, small_disk
from torture import strace
from torture.children import Child

from smp_proto.errors import IntegrityError, ResourceError, SmpError
from smpd.jobs.database import MIGRATIONS, Database


def test_settings_and_modes(tmp_path: Path) -> None:
    """WAL, FULL, foreign keys and secure_delete hold, and all files are 0600 whatever the umask."""
    before = os.umask(0)
    try:
        db = Database(str(tmp_path / "smp.db"))
    finally:
        os.umask(before)
    with db.transaction() as connection:
        for name, value in {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}.items():
            assert (value,) == connection.execute(f"PRAGMA {name}").fetchone()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert dict.fromkeys(["smp.db", "smp.db-wal", "smp.db-shm"], 0o600) == modes
    db.close()


def test_migrations_run_once_in_order(tmp_path: Path) -> None:
    """An older file is brought forward step by step; its rows stay."""
    path = str(tmp_path / "smp.db")
    steps = ("CREATE TABLE a (x); INSERT INTO a VALUES (1)", "CREATE TABLE b (y); INSERT INTO b SELECT x + 1 FROM a")
    Database(path, steps[:1]).close()
    for _ in range(2):
        db = Database(path, steps)
        assert (db.rows("SELECT * FROM a"), db.rows("SELECT * FROM b")) == ([(1,)], [(2,)])
        assert db.rows("PRAGMA user_version") == [(2,)]
        db.close()


def test_failed_migration_leaves_the_old_version(tmp_path: Path) -> None:
    """A step that fails is undone whole."""
    path = str(tmp_path / "smp.db")
    first = "CREATE TABLE a (x)"
    Database(path, (first,)).close()
    with pytest.raises(SmpError):
        Database(path, (first, "CREATE TABLE b (y); CREATE TABLE a (x)"))
    db = Database(path, (first,))
    assert db.rows("SELECT name FROM sqlite_master WHERE name='b'") == []
    db.close()


def test_newer_version_is_refused_untouched(tmp_path: Path) -> None:
    """A file of a newer SMP is refused with what to do, and not written."""
    path = tmp_path / "smp.db"
    Database(str(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
        connection.execute(f"PRAGMA application_id={0x534D5000 + len(MIGRATIONS) + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(IntegrityError, match=f"version {len(MIGRATIONS) + 1}") as caught:
        Database(str(path))
    assert caught.value.code == "unsupported"
    assert "newer smpd" in caught.value.hint
    assert before == path.read_bytes()


@pytest.mark.parametrize("damage", ["header", "page", "cut", "no database"])
def test_damage_is_a_clear_error(tmp_path: Path, damage: str) -> None:
    """A torn or overwritten file is refused as damaged, saying what to do, and not retried."""
    path = tmp_path / "smp.db"
    db = Database(str(path))
    with db.transaction() as connection:
        connection.executemany("INSERT INTO remotes VALUES (?, ?)", [(f"r{i}", bytes(500)) for i in range(100)])
    db.close()
    data = bytearray(path.read_bytes())
    page = 4096
    if damage == "header":
        data[:16] = bytes(16)
    elif damage == "page":
        data[2 * page : 6 * page] = os.urandom(4 * page)
    elif damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[:] = b"hello, this is no database\n" * 1000
    path.write_bytes(data)
    with pytest.raises(ResourceError, match="is damaged") as caught:
        Database(str(path))
    assert (caught.value.code, caught.value.retryable) == ("disk_failed", False)
    assert "backup" in caught.value.hint


def test_symlink_is_not_followed(tmp_path: Path) -> None:
    """A link in place of the file is refused."""
    (tmp_path / "smp.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError):
        Database(str(tmp_path / "smp.db"))
    assert not (tmp_path / "elsewhere").exists()


def test_full_disk_is_named_and_passes(tmp_path: Path) -> None:
    """When the file cannot grow the error is disk_full, nothing was done, and it works again with space."""
    db = Database(str(tmp_path / "smp.db"))
    pages = db.rows("PRAGMA page_count")[0][0]

    def limit(count: int) -> None:
        with db.transaction() as connection:
            connection.execute(f"PRAGMA max_page_count={count}")

    limit(pages)
    with pytest.raises(ResourceError) as caught, db.transaction() as connection:
        connection.execute("INSERT INTO remotes VALUES ('a', ?)", (bytes(100_000),))
    assert (caught.value.code, caught.value.retryable) == ("disk_full", True)
    assert db.rows("SELECT * FROM remotes") == []
    limit(pages + 1000)
    with db.transaction() as connection:
        connection.execute("INSERT INTO remotes VALUES ('a', ?)", (bytes(100_000),))
    db.close()


def test_locked_and_internal_errors_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer gives disk_failed; a wrong statement is internal; both leave the connection usable."""
    monkeypatch.setattr("smpd.host.sqlite.BUSY_TIMEOUT_S", 0.01)
    db, other = (Database(str(tmp_path / "smp.db")) for _ in range(2))
    with other.transaction(), pytest.raises(ResourceError, match="locked"), db.transaction():
        pass
    with pytest.raises(SmpError) as caught:
        db.rows("SELECT nothing FROM nowhere")
    assert caught.value.code == "internal"
    with pytest.raises(SmpError, match="within a transaction"), db.transaction(), db.transaction():
        pass
    assert db.rows("SELECT * FROM remotes") == []
    db.close()
    other.close()


def test_threads_take_turns(tmp_path: Path) -> None:
    """Transactions from several threads do not mix."""
    db = Database(str(tmp_path / "smp.db"), ("CREATE TABLE n (x); INSERT INTO n VALUES (0)",))

    def add() -> None:
        for _ in range(25):
            with db.transaction() as connection:
                value = connection.execute("SELECT x FROM n").fetchone()[0]
                connection.execute("UPDATE n SET x=?", (value + 1,))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db.rows("SELECT x FROM n") == [(100,)]
    db.close()


def test_an_exception_undoes_the_transaction(tmp_path: Path) -> None:
    """What was done before an exception inside is undone, and the next transaction works."""
    db = Database(str(tmp_path / "smp.db"))
    insert = "INSERT INTO remotes VALUES (?, x'00')"
    with pytest.raises(KeyError), db.transaction() as connection:
        connection.executemany(insert, (name if name != "b" else {}[name] for name in "ab"))
    assert db.rows("SELECT * FROM remotes") == []
    with db.transaction() as connection:
        connection.execute("INSERT INTO remotes VALUES ('a', x'00')")
    db.close()


def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    """An index holds nothing of its own: when it does not fit its table it is rebuilt, and every row is found."""
    path = tmp_path / "smp.db"
    steps = ("CREATE TABLE a (x TEXT); CREATE INDEX i ON a (x); INSERT INTO a VALUES ('one'), ('two'), ('three')",)
    Database(str(path), steps).close()
    data = path.read_bytes()
    assert data.count(b"three") == 2
    path.write_bytes(data[: data.rindex(b"three")] + b"thref" + data[data.rindex(b"three") + 5 :])
    db = Database(str(path), steps)
    assert db.rows("SELECT x FROM a WHERE x = 'three'") == [("three",)]
    db.close()


def test_a_vault_of_the_first_version_is_kept(tmp_path: Path) -> None:
    """Rows of the vault that version 1 wrote are there after the migrations, in their order."""
    path = str(tmp_path / "smp.db")
    old = Database(path, MIGRATIONS[:1])
    with old.transaction() as connection:
        for number in (3, 7):
            connection.execute(
                "INSERT INTO vault (number, id, job, object_id, sender, size, entries, created) VALUES (?,?,?,?,?,?,?,?)",
                (number, f"id{number}", f"job{number}", b"o", b"s", 11, 2, 5.0),
            )
    old.close()
    new = Database(path)
    rows = new.rows("SELECT number, id, job, object_id, sender, size, entries, plain, created FROM vault")
    assert rows == [(n, f"id{n}", f"job{n}", b"o", b"s", 11, 2, 0, 5.0) for n in (3, 7)]
    new.close()


class Gate:
    """A connection whose commit waits to be told how to end; it stands for the fsync."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.commits = 0
        self.reached = threading.Semaphore(0)
        self.told = threading.Semaphore(0)
        self.error: sqlite3.Error | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql == "COMMIT":
            self.commits += 1
            self.reached.release()
            assert self.told.acquire(timeout=30)
            if self.error is not None:
                raise self.error
        return self._connection.execute(sql, *values)


def _full() -> sqlite3.Error:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


@pytest.mark.parametrize("fails", [False, True])
def test_transactions_that_wait_share_a_commit_and_its_fate(tmp_path: Path, fails: bool) -> None:
    """While one commit is on its way the others gather; nobody is told before it is through, and all hear if it fails.

    One whose body raised gets its own error and takes nothing of the others with it. Readers see none of it before.
    """
    db = Database(str(tmp_path / "smp.db"))
    gate = Gate(db._connection)
    db._connection = gate
    ended: dict[str, str] = {}

    def write(name: str) -> None:
        try:
            with db.transaction() as connection:
                connection.execute("INSERT INTO remotes VALUES (?, x'00')", (name,))
                if name == "wrong":
                    raise KeyError(name)
        except (KeyError, ResourceError) as error:
            ended[name] = getattr(error, "code", "wrong")
        else:
            ended[name] = "ok"

    def start(*names: str) -> list[threading.Thread]:
        threads = [threading.Thread(target=write, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        return threads

    first = start("first")
    assert gate.reached.acquire(timeout=30)
    others = start("a", "wrong", "b")
    while db._waiting < 3:
        os.sched_yield()
    assert not ended
    gate.told.release()
    assert gate.reached.acquire(timeout=30)
    first[0].join()
    assert {name: end for name, end in ended.items() if name != "wrong"} == {"first": "ok"}
    assert db.rows("SELECT name FROM remotes") == [("first",)]
    gate.error = _full() if fails else None
    gate.told.release()
    for thread in others:
        thread.join()
    kept = "disk_full" if fails else "ok"
    assert ended == {"first": "ok", "a": kept, "b": kept, "wrong": "wrong"}
    left = [("first",)] if fails else [("a",), ("b",), ("first",)]
    assert left == sorted(db.rows("SELECT name FROM remotes"))
    assert gate.commits == 2
    gate.error = None
    gate.told.release()
    write("after")
    assert ended["after"] == "ok"
    db.close()


@pytest.mark.parametrize("undone", [False, True])
def test_the_first_of_a_group_fails(tmp_path: Path, undone: bool) -> None:
    """Its work is undone, by SQLite itself perhaps, and those who waited for it are committed as if it had not been."""
    db = Database(str(tmp_path / "smp.db"))
    entered, go = threading.Event(), threading.Event()
    ended: dict[str, str] = {}

    def fail() -> None:
        with pytest.raises(KeyError), db.transaction() as connection:
            connection.execute("INSERT INTO remotes VALUES ('wrong', x'00')")
            entered.set()
            go.wait()
            if undone:
                connection.execute("ROLLBACK")
            raise KeyError
        ended["wrong"] = "wrong"

    def write(name: str) -> None:
        with db.transaction() as connection:
            connection.execute("INSERT INTO remotes VALUES (?, x'00')", (name,))
        ended[name] = "ok"

    threads = [threading.Thread(target=fail)]
    threads[0].start()
    assert entered.wait(30)
    threads += [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads[1:]:
        thread.start()
    while db._waiting < 2:
        os.sched_yield()
    go.set()
    for thread in threads:
        thread.join()
    assert ended == {"wrong": "wrong", "a": "ok", "b": "ok"}
    assert sorted(db.rows("SELECT name FROM remotes")) == [("a",), ("b",)]
    db.close()


def test_a_transaction_that_was_undone_unnoticed_is_an_error(tmp_path: Path) -> None:
    """Also of one that is alone: nobody is told that something is kept which is not."""
    db = Database(str(tmp_path / "smp.db"))
    with pytest.raises(SmpError, match="no transaction"), db.transaction() as connection:
        connection.execute("INSERT INTO remotes VALUES ('gone', x'00')")
        connection.execute("ROLLBACK")
    assert db.rows("SELECT name FROM remotes") == []
    with db.transaction() as connection:
        connection.execute("INSERT INTO remotes VALUES ('kept', x'00')")
    assert db.rows("SELECT name FROM remotes") == [("kept",)]
    db.close()


def test_what_sqlite_undoes_by_itself_is_everybodys_error(tmp_path: Path) -> None:
    """A disk that fails may undo the whole group: then nobody in it was told that it is kept."""
    db = Database(str(tmp_path / "smp.db"))
    gate = Gate(db._connection)
    db._connection = gate
    ended: dict[str, str] = {}

    def write(name: str) -> None:
        try:
            with db.transaction() as connection:
                connection.execute("INSERT INTO remotes VALUES (?, x'00')", (name,))
                if name == "fails":
                    connection.execute("ROLLBACK")
                    raise _full()
        except ResourceError as error:
            ended[name] = error.code
        else:
            ended[name] = "ok"

    threads = [threading.Thread(target=write, args=(name,)) for name in ("first", "a", "fails")]
    threads[0].start()
    assert gate.reached.acquire(timeout=30)
    for thread in threads[1:]:
        thread.start()
        while db._waiting < threads.index(thread):
            os.sched_yield()
    gate.told.release(4)
    for thread in threads:
        thread.join()
    assert (ended["first"], ended["fails"]) == ("ok", "disk_full")
    assert db.rows("SELECT name FROM remotes WHERE name='a'") == ([("a",)] if ended["a"] == "ok" else [])
    write("after")
    assert ended["after"] == "ok"
    db.close()


@pytest.mark.skipif(bool(strace.missing()), reason=strace.missing())
def test_a_commit_after_one_whose_sync_failed_writes_its_places_again(tmp_path: Path) -> None:
    """The pages of a failed sync are lost, whatever the next sync says: the next commit must write them, and does."""
    path = str(tmp_path / "smp.db")

    def before() -> Database:
        db = Database(path, ("CREATE TABLE a (x)",))
        with db.transaction() as connection:
            connection.execute("INSERT INTO a VALUES (0)")
        return db

    def work(_say: object, db: Database) -> None:
        for number in (1, 2):
            try:
                with db.transaction() as connection:
                    connection.execute("INSERT INTO a VALUES (?)", (number,))
            except ResourceError:
                assert number == 1
            else:
                assert number == 2

    child = Child(work, before, held=True)
    child.wait_ready()
    fault = ("-e", "trace=pwrite64,fdatasync", "-e", "inject=fdatasync:error=EIO:when=1")
    with strace.attached(child.pid, tmp_path / "log", *fault):
        child.release()
        assert child.end() == 0
    lost: list[str] = []
    again: list[str] = []
    calls = strace.parse(tmp_path / "log")
    failed = next(at for at, call in enumerate(calls) if "INJECTED" in call.text)
    for at, call in enumerate(calls):
        if call.name == "pwrite64" and call.paths[0].endswith("-wal"):
            place = re.search(r"(\d+, \d+)\) += \d+$", call.text)
            assert place
            (lost if at < failed else again).append(place[1])
    assert lost
    assert set(lost) <= set(again)
    db = Database(path, ("CREATE TABLE a (x)",))
    assert db.rows("SELECT x FROM a") == [(0,), (2,)]
    db.close()


@pytest.mark.skipif(bool(no_small_disk()), reason=no_small_disk() or "")
def test_a_disk_that_is_full_at_the_start_has_not_failed(tmp_path: Path) -> None:
    """Then the file that SQLite keeps beside the log cannot grow, which it calls an error of the disk."""
    with small_disk(tmp_path / "disk", 24 << 20) as disk:
        path = str(tmp_path / "disk" / "smp.db")
        Database(path).close()
        disk.leave(0)
        with pytest.raises(ResourceError) as caught:
            Database(path)
    assert caught.value.code == "disk_full"
