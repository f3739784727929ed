"""Sealed objects on this box: one file each, named by the job that brought it, with a row in the database.

Adopting goes: sync the file, rename it here, sync the folder, commit the row. The name follows from the job, so doing
it again after a crash at any step ends with the same one item. Removing goes: commit that the item is being removed,
unlink, sync the folder, delete the row; what a crash cuts off is finished at the next start. All calls block.
"""

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from smp_proto import durable
from smp_proto.control import Result, VaultItem
from smp_proto.errors import IntegrityError, NotFoundError, ResourceError, UsageError
from smpd.host.space import disk_error
from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal

SUFFIX = ".smp"

_PROVED = "id, job, object_id, sender, size, entries, plain, created, removing"
_SIZE = 4  # where the size is among them
_SELECT_PROVED = f"SELECT {_PROVED}, proof FROM vault"  # noqa: S608 - the names above
_ID = re.compile(r"[0-9a-v]{16}")
# A damaged cell may have become one of another type: it must not hide the other rows.
_SELECT = """SELECT CAST(id AS TEXT), CAST(object_id AS BLOB), CAST(size AS INTEGER), CAST(entries AS INTEGER),
    CAST(sender AS BLOB), CAST(created AS REAL), CAST(job AS TEXT) FROM vault"""


class Adoption(NamedTuple):
    """A complete, verified sealed object to take over.

    Args:
        id: 16 characters of ``[0-9a-v]``, which it keeps: the same for the same object of the same job.
        part: path of its file, on the vault's file system. It is renamed away; after a crash it may be gone.
        object_id: 16 bytes.
        sender_key_id: who sealed it.
        size: bytes the file must have.
        entries: how many entries are inside.
        plain_bytes: of all of them together.
    """

    id: str
    part: str
    object_id: bytes
    sender_key_id: bytes
    size: int
    entries: int
    plain_bytes: int


class Findings(NamedTuple):
    """What does not fit together in the vault. It was not touched; a person decides.

    Args:
        orphans: names of files without a row. One may belong to a job that is still to be resumed.
        missing: ids of rows without a file.
        damaged: ids of rows whose file has another size.
        unproved: ids of rows that were changed by something else.
    """

    orphans: Sequence[str]
    missing: list[str]
    damaged: list[str]
    unproved: list[str]


class Vault:
    """The sealed objects below ``directory``.

    Args:
        directory: its folder ``objects`` holds the files; both are made with mode 0700 when absent.
        db: where the rows are.
        seal: proves them.
        wall: the clock for what is displayed.

    Raises:
        ResourceError: ``disk_full``, ``disk_failed``.
    """

    def __init__(self, directory: str, db: Database, seal: StateSeal, *, wall: Callable[[], float] = time.time) -> None:
        self._db = db
        self._seal = seal
        self._wall = wall
        self._strays: list[str] = []
        self._path = os.path.join(directory, "objects")
        try:
            durable.make_folder(directory, 0o700)
            durable.make_folder(self._path, 0o700)
            self._folder = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise disk_error(error, f"the vault {self._path}") from error

    def adopt(
        self, job: str, items: Sequence[Adoption], also: Callable[[sqlite3.Connection], Any] = lambda connection: None
    ) -> Any:
        """Take over complete, verified sealed objects of a job. Idempotent by their ids; durable on return.

        Args:
            job: whose they are.
            items: which; their files need not be synced.
            also: what else is to be true once they are the vault's; written in the same transaction.

        Returns:
            What ``also`` returned, once that is committed.

        Raises:
            IntegrityError: ``truncated``, when a file has another size.
            NotFoundError: ``no_such_file``, when there is neither a part nor an object adopted before.
            ResourceError: ``disk_full``, ``disk_failed``; adopt again.
        """
        known = self.adopted(job)
        new = [item for item in items if item.id not in known]
        try:
            durable.adopt_files([(self._part(job, item), _file_name(item.id)) for item in new], self._folder)
        except FileNotFoundError as error:
            hint = "resume the job: it fetches the object again"
            raise NotFoundError("no_such_file", f"a spooled object of job {job} is gone", hint=hint) from error
        except OSError as error:
            raise disk_error(error, f"the vault {self._path}") from error
        now = self._wall()
        with self._db.transaction() as connection:
            rows = [(i.id, job, i.object_id, i.sender_key_id, i.size, i.entries, i.plain_bytes, now, 0) for i in new]
            connection.executemany(
                f"INSERT INTO vault ({_PROVED}, proof) VALUES (?,?,?,?,?,?,?,?,?,?)",  # noqa: S608 - the names above
                [(*row, self._proof(row)) for row in rows],
            )
            return also(connection)

    def _part(self, job: str, item: Adoption) -> str:
        path = item.part
        if not os.path.lexists(path):
            path = os.path.join(self._path, _file_name(item.id))  # renamed before the crash, perhaps not yet synced
        _check_size(os.stat(path).st_size, item.size, f"the spooled object of job {job}")
        return path

    def adopted(self, job: str) -> frozenset[str]:
        """The ids of the items that a job brought."""
        return frozenset(str(row[0]) for row in self._db.rows("SELECT id FROM vault WHERE job=?", (job,)))

    def summary(self, job: str) -> Result:
        """What a job brought, taken together."""
        sql = "SELECT count(*), total(entries), total(plain), total(size) FROM vault WHERE job=?"
        objects, entries, plain, size = self._db.rows(sql, (job,))[0]
        return Result(objects=objects, entries=int(entries), plain_bytes=int(plain), sealed_bytes=int(size))

    def list(self, job: str = "", before: str = "", limit: int = -1) -> list[VaultItem]:
        """Return items, newest first: those of a job where one is named, and those older than ``before``.

        Raises:
            NotFoundError: ``no_such_object``; ``before`` is gone, so nobody can tell what is older.
        """
        wanted = (
            " WHERE removing=0 AND (?1='' OR job=?1) AND (?2='' OR number < (SELECT number FROM vault WHERE id=?2))"
        )
        sql = f"{_SELECT}{wanted} ORDER BY number DESC LIMIT ?3"
        found = [_item(row) for row in self._db.rows(sql, (job, before, limit))]
        if before and not found:
            self._find(before)
        return found

    def count(self) -> int:
        """Return how many items there are."""
        return int(self._db.rows("SELECT count(*) FROM vault WHERE removing=0")[0][0])

    def kept(self) -> tuple[int, int]:
        """How many items there are, and their bytes."""
        count, size = self._db.rows("SELECT count(*), coalesce(sum(size), 0) FROM vault")[0]
        return int(count), int(size)

    def get(self, item_id: str) -> VaultItem:
        """Return one item.

        Raises:
            NotFoundError: ``no_such_object``.
            IntegrityError: ``corrupt``; its record is damaged.
        """
        item = self._find(item_id, "AND removing=0")
        rows = self._db.rows(f"{_SELECT_PROVED} WHERE id=?", (item_id,))
        if any(row[-1] and row[-1] != self._proof(row[:-1]) for row in rows):
            hint = f"smpctl vault rm {item_id}, and get it again; or restore the database from a backup"
            raise IntegrityError("corrupt", f"the record of vault object {item_id} is damaged", hint=hint)
        return item

    def _find(self, item_id: str, also: str = "") -> VaultItem:
        rows = self._db.rows(f"{_SELECT} WHERE id=? {also}", (item_id,))
        if not rows:
            raise unknown_item(item_id)
        return _item(rows[0])

    def open_fd(self, item_id: str) -> int:
        """Return a descriptor open for reading; the caller closes it.

        Raises:
            NotFoundError: ``no_such_object``.
            IntegrityError: ``truncated``, when the file has not the size it came with.
            ResourceError: ``disk_failed``, also when the file is gone.
        """
        item = self.get(item_id)
        try:
            descriptor = os.open(_file_name(item_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError as error:
            raise ResourceError(
                "disk_failed",
                f"the file of vault object {item_id} is gone",
                hint="restore it from a backup, or remove the object and get it again",
                retryable=False,
            ) from error
        except OSError as error:
            raise disk_error(error, f"vault object {item_id}") from error
        try:
            _check_size(os.fstat(descriptor).st_size, item.size, f"vault object {item_id}")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def remove(self, item_id: str) -> VaultItem:
        """Delete an item; return what it was.

        Raises:
            NotFoundError: ``no_such_object``.
            ResourceError: ``disk_failed``. It is no longer listed; remove it again, or the next start does.
        """
        item = self._find(item_id)
        with self._db.transaction() as connection:
            connection.execute("UPDATE vault SET removing=1 WHERE id=?", (item_id,))
            self._prove(connection, "id=?", item_id)
        self._finish_removing(item_id)
        return item

    def _finish_removing(self, item_id: str) -> None:
        try:
            durable.remove(_file_name(item_id), self._folder)
        except OSError as error:
            raise disk_error(error, f"vault object {item_id}") from error
        with self._db.transaction() as connection:
            connection.execute("DELETE FROM vault WHERE id=?", (item_id,))

    def recover(self) -> Findings:
        """Finish at start the removals that a crash cut off; then compare files and rows.

        Raises:
            ResourceError: ``disk_failed``.
        """
        with self._db.transaction() as connection:
            self._prove(connection, "proof=x''")
        try:
            files = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in os.scandir(self._path)}
        except OSError as error:
            raise disk_error(error, f"the vault {self._path}") from error
        missing, damaged, unproved = [], [], []
        for _, proof, *row in self._db.pages(f"SELECT number, proof, {_PROVED} FROM vault", 0):  # noqa: S608 - ours
            item_id, size, removing = str(row[0]), row[_SIZE], row[-1]
            name = f"{item_id}{SUFFIX}"
            if proof != self._proof(row):
                unproved.append(item_id)
            elif removing:  # a flipped bit must not delete anything
                with contextlib.suppress(ResourceError):  # the disk still fails: it is left to the next start
                    self._finish_removing(item_id)
                    files.pop(name, None)
            if not removing:
                found = files.pop(name, None)
                if found is None:
                    missing.append(item_id)
                elif found != size:
                    damaged.append(item_id)
        self._strays = sorted(files)
        return Findings(
            orphans=self._strays, missing=sorted(missing), damaged=sorted(damaged), unproved=sorted(unproved)
        )

    def _proof(self, row: Sequence[Any]) -> bytes:
        """A keyed digest of a row's columns, as :data:`_PROVED` names them."""
        *columns, created, removing = row
        parts = [part.hex() if isinstance(part, bytes) else str(part) for part in columns]
        return self._seal.digest("vault", *parts, float(created).hex(), str(removing))

    def _prove(self, connection: sqlite3.Connection, where: str, *values: object) -> None:
        rows = connection.execute(f"SELECT {_PROVED} FROM vault WHERE {where}", values).fetchall()  # noqa: S608 - ours
        connection.executemany("UPDATE vault SET proof=? WHERE id=?", [(self._proof(row), row[0]) for row in rows])

    def strays(self) -> Sequence[str]:
        """The files found without a row at start that still have none: a job that goes on may have taken its own."""
        if not self._strays:
            return []
        with os.scandir(self._path) as found:
            names = {entry.name for entry in found}
        ids = {str(row[0]) + SUFFIX for row in self._db.rows("SELECT id FROM vault")}
        return [name for name in self._strays if name in names - ids]

    def close(self) -> None:
        """Close the folder's descriptor."""
        os.close(self._folder)


def unknown_item(item_id: str) -> NotFoundError:
    """The error for an id that no item has, or none that the asker may see."""
    message = f"the vault holds no object {item_id[:80]!r}"
    return NotFoundError("no_such_object", message, hint="smpctl vault ls shows what it holds")


def _check_size(found: int, size: int, what: str) -> None:
    if found != size:
        raise IntegrityError("truncated", f"{what} has {found} bytes, not {size}", hint="get the object again")


def _file_name(item_id: str) -> str:
    if not _ID.fullmatch(item_id):
        raise UsageError("bad_name", f"{item_id!r} is no id", hint="smpctl vault ls shows the ids")
    return item_id + SUFFIX


def _item(row: tuple[Any, ...]) -> VaultItem:
    item_id, object_id, size, entries, sender, created, job = row
    return VaultItem(
        id=item_id,
        object_id=object_id.hex(),
        size=size,
        entries=entries,
        sender=sender.hex(),
        created=created,
        job=job,
    )
