"""A database that SQLite cannot vouch for: it is set aside as it is, and what can be read goes into a new one.

Nothing is deleted. Rows are taken leaf by leaf; those under a seal prove themselves when they are next read, and one
that does not is shown as damaged, as ever. What was spooled is forgotten and fetched again. A crash at any step
ends, at the next start, with either the old files or the new one.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable
from typing import NamedTuple

from smp_proto import durable
from smpd.host import sqlite
from smpd.jobs.database import MIGRATIONS, Database
from smpd.jobs.pages import Pages, Row, Value

_NEW, _SWAP, _DAMAGED = ".new", ".swap", ".damaged-"

_OF_VERSION_1 = ("number", "id", "job", "object_id", "sender", "size", "entries", "created")  # of the vault
_OF_VERSION_2 = 9  # how many they were then
_FITS: dict[str, tuple[type, ...]] = {"INTEGER": (int,), "REAL": (int, float), "TEXT": (str,), "BLOB": (bytes,)}
Columns = tuple[tuple[str, str], ...]  # each with its declared type


class Salvaged(NamedTuple):
    """What became of a damaged database: the name of what was set aside, and how many rows of each table were read."""

    aside: str
    rows: dict[str, int]


def set_aside(path: str) -> list[str]:
    """The names of databases that were set aside before."""
    folder, name = os.path.split(path)
    ours = [each for each in os.listdir(folder) if each.startswith(name + _DAMAGED)]
    return sorted(each for each in ours if not each.endswith(("-wal", "-shm")))


def finish_swap(path: str) -> None:
    """End a salvage that a crash cut off after its new database was whole. Call before anything opens the old one."""
    if os.path.exists(path + _SWAP):
        _swap(path)
    else:
        for suffix in ("", "-wal", "-shm"):
            _remove(path + _NEW + suffix)


def salvage(path: str) -> Salvaged:
    """Set a damaged database aside, and put one in its place that has all rows that can be read. Blocking.

    Raises:
        OSError, SmpError: it cannot be done now; the damaged database is where it was.
    """
    finish_swap(path)
    aside = f"{path}{_DAMAGED}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    while os.path.lexists(aside):
        aside += "-"
    with contextlib.closing(Pages(path)) as pages:
        found = _sorted(pages.rows())
    rows = _write(path + _NEW, found)
    for suffix in ("", "-wal"):
        if os.path.exists(path + suffix):
            durable.also_name(path + suffix, aside + suffix)
    durable.write_file(os.path.dirname(path), os.path.basename(path + _SWAP), os.fsencode(aside))
    _swap(path)
    return Salvaged(os.path.basename(aside), rows)


def _sorted(rows: Iterable[Row]) -> dict[str, list[dict[str, Value]]]:
    """Rows by table, told by their shape."""
    shapes = _shapes()
    found: dict[str, list[dict[str, Value]]] = {
        "jobs": [],
        **{table: [] for table in shapes},
        "sources": [],
        "remotes": [],
    }
    pairs: list[dict[str, Value]] = []
    for rowid, values in rows:
        if tuple(map(type, values)) == (str, bytes):
            pairs.append({"name": values[0], "body": values[1]})
        elif values and values[0] is None:
            row = (rowid, *values[1:])
            for table, shape in shapes.items():
                columns = shape.get(len(row), ())
                if columns and all(isinstance(each, _FITS[kind]) for (_, kind), each in zip(columns, row, strict=True)):
                    found[table].append({name: each for (name, _), each in zip(columns, row, strict=True)})
    jobs = {row["id"] for row in found["jobs"]}
    for pair in pairs:  # a remote's name or a job's id
        if pair["name"] in jobs:
            found["sources"].append({"job": pair["name"], "body": pair["body"]})
        else:
            found["remotes"].append(pair)
    return found


def _shapes() -> dict[str, dict[int, Columns]]:
    """Of each table with a number of its own: its columns, by how many there were in each version.

    Two tables may have had as many, so the types count as well.
    """
    with contextlib.closing(sqlite.connect_memory()) as model:
        for step in MIGRATIONS:
            model.executescript(step)
        tables = [name for (name,) in model.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        found: dict[str, dict[int, Columns]] = {}
        for table in tables:
            columns = tuple((row[1], row[2]) for row in model.execute(f"PRAGMA table_info({table})"))
            if columns[0][0] == "number":
                found[table] = {len(columns): columns}
    whole = found["vault"][max(found["vault"])]
    found["vault"] |= {count: whole[:count] for count in range(_OF_VERSION_2, len(whole))}  # columns came at the end
    kinds = dict(whole)
    found["vault"] |= {len(_OF_VERSION_1): tuple((name, kinds[name]) for name in _OF_VERSION_1)}
    return found


def _write(path: str, found: dict[str, list[dict[str, Value]]]) -> dict[str, int]:
    counts = {}
    database = Database(path, MIGRATIONS)
    with contextlib.closing(database), database.transaction() as connection:
        for table, rows in found.items():
            known = {name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")}
            for row in rows:
                names = [name for name in row if name in known]
                marks = ", ".join("?" * len(names))
                sql = f"INSERT OR IGNORE INTO {table} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608 - names above
                with contextlib.suppress(sqlite3.Error):  # one that belongs to a job that is lost
                    connection.execute(sql, [row[name] for name in names])
            counts[table] = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
    return counts


def _swap(path: str) -> None:
    """Put the new database in the place of the old one, which has another name too by now."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = os.path.basename(path)
        for suffix in ("-wal", "-shm"):  # they would be applied to the new one
            durable.remove(name + suffix, folder)
        if os.path.exists(path + _NEW):
            durable.give_name(name + _NEW, name, folder)
            durable.sync(folder)
        durable.remove(name + _SWAP, folder)
    finally:
        os.close(folder)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
