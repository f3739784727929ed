"""The daemon's one SQLite file: its schema, its transactions, and its errors by name.

What a commit acknowledged is on the disk. Transactions of several threads that arrive
together share one commit, and so one fsync. Reads go over a connection of their own: they see what is committed, and
wait for no commit. All calls block and are safe from any thread; asynchronous code goes through ``anyio.to_thread``. A
deleted row is overwritten (secure_delete).
"""

import contextlib
import errno
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from smp_proto.errors import IntegrityError, ResourceError, SmpError
from smpd.host import sqlite
from smpd.host.space import disk_error

_APPLICATION = 0x534D5000  # "SMP" and the version
GROUP_MAX = 64  # transactions in one commit: the first of them waits for the last

# Index i brings a file from user_version i to i + 1. Entries are never edited once released.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,   -- order of submission; no clock is asked
        id TEXT NOT NULL UNIQUE,
        token BLOB NOT NULL UNIQUE,                 -- keyed digest of owner and idempotency key
        owner TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'queued',
        priority TEXT NOT NULL,
        attempt INTEGER NOT NULL DEFAULT 0,
        delay REAL NOT NULL DEFAULT 0,              -- seconds, the whole of the last backoff
        due REAL NOT NULL DEFAULT 0,                -- monotonic clock
        created REAL NOT NULL,                      -- wall clock, for display only
        updated REAL NOT NULL DEFAULT 0,
        total_bytes INTEGER NOT NULL DEFAULT 0,
        done_bytes INTEGER NOT NULL DEFAULT 0,
        phase TEXT NOT NULL DEFAULT '',
        spec BLOB NOT NULL,                         -- sealed
        ending BLOB NOT NULL DEFAULT x''            -- sealed: error, result, transfer, stages
    );
    CREATE INDEX jobs_by_state ON jobs (state, number);
    CREATE TABLE sources (
        job TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
        body BLOB NOT NULL                          -- sealed: pin, size, envelope
    );
    CREATE TABLE ranges (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        range INTEGER NOT NULL,
        leaves BLOB NOT NULL,                       -- sealed, so that a flipped bit is seen
        PRIMARY KEY (job, range)
    ) WITHOUT ROWID;
    CREATE TABLE vault (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        job TEXT NOT NULL UNIQUE,
        object_id BLOB NOT NULL,
        sender BLOB NOT NULL,
        size INTEGER NOT NULL,
        entries INTEGER NOT NULL,
        created REAL NOT NULL
    );
    CREATE TABLE remotes (name TEXT PRIMARY KEY, body BLOB NOT NULL);               -- sealed
    CREATE TABLE trust (number INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL);   -- sealed
    """,
    # A job may bring many objects.
    """
    CREATE TABLE vault_of_many (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        job TEXT NOT NULL,
        object_id BLOB NOT NULL,
        sender BLOB NOT NULL,
        size INTEGER NOT NULL,
        entries INTEGER NOT NULL,
        plain INTEGER NOT NULL DEFAULT 0,           -- bytes of plaintext; 0 in rows older than this
        created REAL NOT NULL
    );
    INSERT INTO vault_of_many (number, id, job, object_id, sender, size, entries, created)
        SELECT number, id, job, object_id, sender, size, entries, created FROM vault;
    DROP TABLE vault;
    ALTER TABLE vault_of_many RENAME TO vault;
    CREATE INDEX vault_by_job ON vault (job);
    """,
    # What was refused is kept with its reason; what was accepted is remembered, so that an older version is noticed.
    """
    CREATE TABLE quarantine (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        kept INTEGER NOT NULL,                      -- bytes of its ciphertext in the spool
        body BLOB NOT NULL                          -- sealed
    );
    CREATE INDEX quarantine_by_job ON quarantine (job);
    CREATE TABLE versions (
        number INTEGER PRIMARY KEY AUTOINCREMENT,   -- order of acceptance
        place BLOB NOT NULL UNIQUE,                 -- keyed digest of the location
        body BLOB NOT NULL                          -- sealed: object id, when it was signed, by whom
    );
    """,
    # A removal that a crash cut off is known for one, and finished at the next start.
    "ALTER TABLE vault ADD COLUMN removing INTEGER NOT NULL DEFAULT 0",
    # A row of the vault is not sealed, but under a digest, so that a flipped bit is seen. Empty in older rows.
    "ALTER TABLE vault ADD COLUMN proof BLOB NOT NULL DEFAULT x''",
    # Standing watches; smpd/sync/store.py says what the states are.
    """
    CREATE TABLE syncs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL DEFAULT 'active',
        created REAL NOT NULL,                      -- wall clock, for display only
        listings INTEGER NOT NULL DEFAULT 0,        -- that came to their end
        polled REAL NOT NULL DEFAULT 0,             -- when the last one did
        place BLOB NOT NULL DEFAULT x'',            -- sealed: how far the one at hand is
        body BLOB NOT NULL                          -- sealed: spec, owner
    );
    CREATE TABLE sync_objects (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        sync INTEGER NOT NULL REFERENCES syncs (number),
        token BLOB NOT NULL,                        -- keyed digest of the path
        version BLOB NOT NULL,                      -- keyed digest of path and pin, as last listed
        state TEXT NOT NULL,
        live INTEGER NOT NULL,
        tries INTEGER NOT NULL DEFAULT 0,
        due REAL NOT NULL DEFAULT 0,                -- monotonic clock
        delay REAL NOT NULL DEFAULT 0,              -- seconds, the whole of the last backoff
        found REAL NOT NULL,                        -- wall clock, for display only
        job TEXT NOT NULL DEFAULT '',
        job_version BLOB NOT NULL DEFAULT x'',      -- the version that the job is for
        body BLOB NOT NULL,                         -- sealed: path, pin, error
        UNIQUE (sync, token)
    );
    CREATE INDEX sync_objects_next ON sync_objects (sync, state, live, number);
    CREATE INDEX sync_objects_oldest ON sync_objects (sync, state, found);
    CREATE INDEX sync_objects_job ON sync_objects (job);
    """,
    # A result is published once, and a job's end is recorded although the daemon dies at that moment.
    """
    CREATE TABLE deliveries (
        job TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
        left INTEGER NOT NULL,                      -- whether something of an upload may lie at the remote
        body BLOB NOT NULL                          -- sealed: pin, names of the upload
    );
    CREATE TABLE endings (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        job TEXT NOT NULL,
        owner TEXT NOT NULL,
        state TEXT NOT NULL,
        outcome TEXT NOT NULL                       -- an error's code, or ok
    );
    """,
)

_PAGE = 500  # rows
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_DISK = {
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
}


class _Group:
    """Transactions that share one commit."""

    __slots__ = ("done", "error", "size", "undone")

    def __init__(self) -> None:
        self.size = 0
        self.done = threading.Event()
        self.error: sqlite3.Error | None = None
        self.undone = False  # the first one failed, so there is nothing to commit


class Database:
    """An open database.

    Args:
        path: the file; created with mode 0600 when absent. Its directory must exist.
        migrations: the schema, step by step.
        make_room: called before something is written, to see that there is room for it.

    Raises:
        IntegrityError: ``unsupported``, when a newer SMP wrote the file. It is left as it was.
        ResourceError: ``disk_failed`` when it is damaged or unreadable, ``disk_full``.
    """

    def __init__(
        self, path: str, migrations: Sequence[str] = MIGRATIONS, *, make_room: Callable[[], None] = lambda: None
    ) -> None:
        self._path = path
        self._make_room = make_room
        self._lock = threading.Lock()  # guards the connection that writes, and what follows
        self._owner = 0
        self._group: _Group | None = None
        self._arriving = threading.Lock()
        self._waiting = 0  # threads that are about to take the lock
        self._reading = threading.Lock()
        with contextlib.ExitStack() as undo, self._named_errors():
            self._connection = undo.enter_context(closing(self._connect()))
            self._open(migrations)
            self._reader = undo.enter_context(closing(self._connect()))
            sqlite.configure(self._reader, reader=True)
            undo.pop_all()

    def _connect(self) -> sqlite3.Connection:
        try:
            return sqlite.connect(self._path)
        except OSError as error:
            raise disk_error(error, f"the database {self._path}") from error

    def _open(self, migrations: Sequence[str]) -> None:
        execute = self._connection.execute
        version = execute("PRAGMA user_version").fetchone()[0]
        stated = execute("PRAGMA application_id").fetchone()[0]
        if stated not in (0, _APPLICATION + version):  # it is kept twice, so that damage is not taken for a newer SMP
            raise self._damaged(f"it says of itself that it has version {version}, and {stated:#x}")
        if version > len(migrations):
            raise IntegrityError(
                "unsupported",
                f"the database {self._path} has version {version}, this smpd knows up to {len(migrations)}",
                hint="start the newer smpd that wrote it, or restore the backup made before it; nothing was changed",
            )
        sqlite.configure(self._connection)
        if self._found_wrong():
            execute("REINDEX")  # an index says nothing that its table does not; rows are proved by their seals
            if wrong := self._found_wrong():
                raise self._damaged(wrong)
        with closing(sqlite.connect_memory()) as model:
            _migrate(model, migrations[:version])
            if _schema(model) != _schema(self._connection):
                raise self._damaged(f"its schema is not that of version {version}")
        _migrate(self._connection, migrations, version)
        if stated != _APPLICATION + len(migrations):
            execute(f"PRAGMA application_id={_APPLICATION + len(migrations)}")

    def _found_wrong(self) -> str:
        # Not quick_check: it does not compare indexes with tables, and a damaged index hides jobs.
        found = str(self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
        return "" if found == "ok" else found

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything done on the connection inside is committed as one, or not at all. Not to be nested.

        Returns once it is on the disk. An exception inside undoes this transaction and no other.

        Raises:
            ResourceError: ``disk_full``, ``disk_failed``; nothing was done.
        """
        with self._named_errors():
            group = self._enter()
            try:
                with self._alone(group) if group.size == 1 else self._savepoint(group):
                    yield self._connection
            finally:
                self._leave(group)
            group.done.wait()
            if group.error is not None:
                raise self._named(group.error)

    def _enter(self) -> _Group:
        """Take the lock, and begin a group if none is open."""
        if self._owner == threading.get_ident():
            raise SmpError("internal", "a transaction was begun within a transaction")
        with self._arriving:
            self._waiting += 1
        self._lock.acquire()
        with self._arriving:
            self._waiting -= 1
        if self._group is None:
            try:
                self._make_room()
                self._connection.execute("BEGIN IMMEDIATE")
            except BaseException:
                self._lock.release()
                raise
            self._group = _Group()
        self._owner = threading.get_ident()
        self._group.size += 1
        return self._group

    @contextmanager
    def _alone(self, group: _Group) -> Iterator[None]:
        """For the first of a group: nobody else's work is undone with its own, so it needs no savepoint."""
        try:
            yield
        except BaseException:
            group.undone = True
            raise  # whoever leaves rolls back what is left of it

    @contextmanager
    def _savepoint(self, group: _Group) -> Iterator[None]:
        execute = self._connection.execute
        execute("SAVEPOINT one")
        try:
            yield
            execute("RELEASE one")
        except BaseException as error:
            try:
                execute("ROLLBACK TO one")
                execute("RELEASE one")
            except sqlite3.Error as broken:
                # SQLite undid everything by itself, as it may when the disk fails: that is everybody's error.
                group.error = error if isinstance(error, sqlite3.Error) else broken
            raise

    def _leave(self, group: _Group) -> None:
        """Release the lock; who leaves with nobody behind commits for all."""
        try:
            whole = group.error is None and not group.undone
            if self._waiting and group.size < GROUP_MAX and whole:
                return  # whoever waits comes here, too
            self._group = None
            try:
                if whole:
                    self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                group.error = error
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                group.done.set()
        finally:
            self._owner = 0
            self._lock.release()

    @property
    def waiting(self) -> int:
        """How many transactions wait for their turn."""
        return self._waiting

    def rows(self, sql: str, values: Iterable[object] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query, of what is committed."""
        with self._reading, self._named_errors():
            return self._reader.execute(sql, tuple(values)).fetchall()

    def pages(self, sql: str, number: int) -> Iterator[tuple[Any, ...]]:
        """The rows of a query of which there may be very many: never all of them are in memory.

        Args:
            sql: has no condition yet; a table's ``number`` is among what it selects.
            number: where it is in a row.
        """
        last = -(1 << 63)
        while rows := self.rows(f"{sql} WHERE number>? ORDER BY number LIMIT ?", (last, _PAGE)):
            last = rows[-1][number]
            yield from rows

    def close(self) -> None:
        """Checkpoint and close."""
        with self._reading, self._lock, self._named_errors():
            self._reader.close()
            self._connection.close()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._named(error) from error
        except UnicodeDecodeError as error:  # SQLite quotes a damaged schema in its message
            raise self._damaged("its schema is not text") from error

    def _named(self, error: sqlite3.Error) -> SmpError:
        extended = getattr(error, "sqlite_errorcode", 0)
        code = extended & 0xFF  # the low byte is the primary code
        # SHMSIZE: the index beside the write-ahead log cannot grow.
        if code == sqlite3.SQLITE_FULL or extended == sqlite3.SQLITE_IOERR_SHMSIZE:
            return disk_error(OSError(errno.ENOSPC, str(error)), f"the database {self._path}")
        if code in _DAMAGED:
            return self._damaged(str(error))
        if code in _DISK:
            return disk_error(OSError(errno.EIO, str(error)), f"the database {self._path}")
        return SmpError("internal", f"the database {self._path} refused a statement: {error}")

    def _damaged(self, found: str) -> ResourceError:
        return ResourceError(
            "disk_failed",
            f"the database {self._path} is damaged: {found.splitlines()[-1]}",
            hint="restore it from a backup, or move it away to start with no jobs, remotes and trust; "
            "the sealed objects in the vault are not touched",
            retryable=False,
            details={"damaged": True},
        )


def _migrate(connection: sqlite3.Connection, migrations: Sequence[str], version: int = 0) -> None:
    for number, step in enumerate(migrations[version:], version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {step}; PRAGMA user_version={number}; COMMIT;")


def _schema(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name").fetchall()
