"""What was refused, and why: one row for each object that a job refused, until it is taken after all, or removed.

An item belongs to a job that has not ended. Its ciphertext, as far as it was fetched, stays in the spool under the
job's name. Together these files may take so many bytes; what comes beyond is kept as a record alone, and nothing that
is there goes by itself. Where an object came from is patient data, perhaps: it is sealed. All calls block.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import msgspec

from smp_proto.control import QuarantineItem
from smp_proto.errors import IntegrityError, NotFoundError
from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal

_SELECT = "SELECT q.id, q.job, q.kept, q.body, jobs.state FROM quarantine q JOIN jobs ON jobs.id = q.job"


class _Record(msgspec.Struct):
    """An item as kept; ``file`` is the name of its ciphertext in the spool, or empty."""

    item: QuarantineItem
    file: str = ""


class Added(NamedTuple):
    """What became of an item that was added, and the names of files in the spool that are of no more use."""

    item: QuarantineItem
    unneeded: tuple[str, ...]


_decode = msgspec.msgpack.Decoder(_Record).decode


def item_id(job: str, location: str) -> str:
    """The id of what a job refused at a location: 16 hex digits, the same each time."""
    return hashlib.sha256(f"{job}\0{location}".encode(errors="surrogatepass")).hexdigest()[:16]


class Quarantine:
    """The quarantine.

    Args:
        db: where the rows are.
        seal: seals them.
        max_bytes: of ciphertext that is kept of all items together.
        wall: the clock for what is displayed.
    """

    def __init__(self, db: Database, seal: StateSeal, max_bytes: int, *, wall: Callable[[], float] = time.time) -> None:
        self._db = db
        self._seal = seal
        self.max_bytes = max_bytes
        self._wall = wall

    def add(self, item: QuarantineItem, file: str = "") -> Added:
        """Keep an item, in place of what the same job refused there before.

        Args:
            item: what was refused; ``kept_bytes`` are in ``file``.
            file: a name in the spool.
        """
        now = self._wall()
        item = msgspec.structs.replace(item, created=now, updated=now)
        before = ""
        with self._db.transaction() as connection:
            rows = connection.execute(f"{_SELECT} WHERE q.id=?", (item.id,)).fetchall()
            if rows:
                known = self._record(rows[0])
                before = known.file
                item.created, item.times = known.item.created or now, known.item.times + 1
            others = connection.execute("SELECT total(kept) FROM quarantine WHERE id<>?", (item.id,)).fetchone()[0]
            unneeded = {before} - {file}
            if item.kept_bytes and others + item.kept_bytes > self.max_bytes:
                item.left_out = f"the quarantine holds {int(others)} of {self.max_bytes} bytes: there is no room for it"
                item.kept_bytes, item.whole = 0, False
            if not item.kept_bytes:
                unneeded.add(file)
                file = ""
            body = self._seal.seal(msgspec.msgpack.encode(_Record(item, file)), _context(item))
            connection.execute("DELETE FROM quarantine WHERE id=?", (item.id,))
            columns = "id, job, kept, body"
            values = (item.id, item.job, item.kept_bytes, body)
            connection.execute(f"INSERT INTO quarantine ({columns}) VALUES (?,?,?,?)", values)  # noqa: S608
        return Added(item, tuple(sorted(unneeded - {""})))

    def list(self, job: str = "", before: str = "", limit: int = -1) -> list[QuarantineItem]:
        """Return items, newest first: those of a job where one is named, and those older than ``before``.

        Raises:
            NotFoundError: ``no_such_object``; ``before`` is gone, so nobody can tell what is older.
        """
        wanted = " WHERE (?1='' OR q.job=?1) AND (?2='' OR q.number < (SELECT number FROM quarantine WHERE id=?2))"
        sql = f"{_SELECT}{wanted} ORDER BY q.number DESC LIMIT ?3"
        found = [self._record(row).item for row in self._db.rows(sql, (job, before, limit))]
        if before and not found:
            self._get(before)
        return found

    def get(self, item: str) -> QuarantineItem:
        """Return one item.

        Raises:
            NotFoundError: ``no_such_object``.
        """
        return self._get(item).item

    def file(self, item: str) -> str:
        """The name of an item's ciphertext in the spool; empty where there is none. Raises as :meth:`get`."""
        return self._get(item).file

    def count(self, job: str = "") -> int:
        """Return how many items there are, of a job where one is named."""
        return int(self._db.rows("SELECT count(*) FROM quarantine WHERE ?1='' OR job=?1", (job,))[0][0])

    def kept_bytes(self) -> int:
        """Return how many bytes of ciphertext are kept."""
        return int(self._db.rows("SELECT total(kept) FROM quarantine")[0][0])

    def accept_older(self, item: str) -> None:
        """Have the very object that was refused taken when its job tries again, although it is an older version.

        Raises:
            NotFoundError: ``no_such_object``.
        """
        record = self._get(item)
        record.item.accept_older = True
        body = self._seal.seal(msgspec.msgpack.encode(record), _context(record.item))
        with self._db.transaction() as connection:
            connection.execute("UPDATE quarantine SET body=? WHERE id=?", (body, item))

    def accepts(self, job: str, location: str, object_id: bytes) -> bool:
        """Whether someone said that this object is to be taken although it is older."""
        rows = self._db.rows(f"{_SELECT} WHERE q.id=?", (item_id(job, location),))
        found = self._record(rows[0]).item if rows else None
        return found is not None and found.accept_older and found.object_id == object_id.hex()

    def remove(self, items: Collection[str]) -> None:
        """Forget items."""
        with self._db.transaction() as connection:
            connection.executemany("DELETE FROM quarantine WHERE id=?", [(item,) for item in items])

    def damaged(self) -> Sequence[str]:
        """The items whose record does not open any more."""
        rows = self._db.rows(f"{_SELECT} ORDER BY q.number")
        return [row[0] for row in rows if self._opened(row) is None]

    def _get(self, item: str) -> _Record:
        rows = self._db.rows(f"{_SELECT} WHERE q.id=?", (item,))
        if not rows:
            raise not_quarantined(item)
        return self._record(rows[0])

    def _record(self, row: tuple[Any, ...]) -> _Record:
        """Open a row; one that is damaged is shown as such, since nothing goes from here by itself."""
        record = self._opened(row)
        if record is None:
            item, job, kept, *_ = row
            text = "the record of this item is damaged"
            record = _Record(QuarantineItem(item, job, "", "corrupt", text, kept_bytes=kept))
        record.item.state = row[4]
        return record

    def _opened(self, row: tuple[Any, ...]) -> _Record | None:
        item, job, kept, body, _ = row
        context = _context(QuarantineItem(item, job, "", "", "", kept_bytes=kept))
        try:
            return _decode(self._seal.open(body, context))
        except (IntegrityError, msgspec.MsgspecError):
            return None


def not_quarantined(item: str) -> NotFoundError:
    """There is no such item, or none that whoever asks may see."""
    hint = "smpctl quarantine ls shows what it holds"
    return NotFoundError("no_such_object", f"the quarantine holds no item {item[:40]!r}", hint=hint)


def _context(item: QuarantineItem) -> str:
    return f"quarantine {item.id} {item.job} {item.kept_bytes}"
