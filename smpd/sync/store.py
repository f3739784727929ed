"""What syncs know of objects: every version that they have seen.

Paths are sealed; rows are found by keyed digests of sync and path, and versions compared by digests that include the
pin. An object is in one state:

- ``settling``: seen once in a remote of plaintext, which may still be being written; ``due`` is in which listing;
- ``new``: wanted, no job yet. ``live`` tells those that appeared after the first listing from the back-fill;
- ``working``: has a job, which is for ``job_version``. A newer version seen meanwhile waits in ``version``, and ``due``
  is in which listing it was seen, or less than 0 once it need not settle;
- ``delivered``: its job ended well, and what comes after that is not done yet;
- ``done``, ``gone``: nothing is left to do for this version;
- ``away``: done, and not there any more, as it was deleted or moved. A listing that begins later, number ``due`` or one
  after it, and names this version all the same finds it anew;
- ``failed``: its job is resumed when ``due``, or what comes after it is tried again; ``quarantined``: left to a person;
- ``damaged``: its row does not open. The next listing that names it writes the row anew, and its job goes on.

Trying again resumes the job that there is, so one version has one job for as long as that is kept. An object knows of
which version a result was delivered last: that one needs no job, and any other needs one that came after that.

All calls block.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import structlog

from smp_proto.control import ObjectInfo, SyncTrouble
from smp_proto.errors import ErrorBody, IntegrityError
from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal
from smpd.sync.forgetting import Forgetting
from smpd.sync.standing import Standings

UNFINISHED = ("settling", "new", "working", "delivered", "failed", "damaged")
# What a listing that names it again leaves.
_SEEN = ("new", "working", "delivered", "done", "away", "failed", "quarantined")
_DELETED_AT_ONCE = 10_000
LOOKUPS = 500  # rows looked up by one statement
_OBJECT = "number, version, state, tries, job, body, token"
_SEALED = "SELECT token, body FROM sync_objects WHERE number=?"
_TYPES = (int, bytes, str, int, str, bytes, bytes)
_log = structlog.get_logger("smpd.sync")


class Seen(NamedTuple):
    """An object as it was last listed.

    ``delivered`` is whether a result of this very version was delivered last, and ``after`` the job that did, whichever
    version it was for; empty for none.
    """

    number: int
    version: bytes
    state: str
    tries: int
    job: str
    path: str
    pin: str
    error: ErrorBody | None
    delivered: bool
    after: str


class _Body(msgspec.Struct):
    path: str
    pin: str
    error: ErrorBody | None = None
    moving: str = ""
    last: bytes = b""  # the version of which a result was delivered last, unless it is away since
    after: str = ""  # the job that did


T = TypeVar("T")
_encode = msgspec.msgpack.encode


class SyncStore(Standings):
    """The tables of the syncs; see :class:`Standings`.

    Attributes:
        forgetting: lets go of objects that are gone.
    """

    def __init__(self, db: Database, seal: StateSeal, *, wall: Callable[[], float] = time.time) -> None:
        super().__init__(db, seal, wall=wall)
        self.forgetting = Forgetting(db)

    def remove(self, number: int) -> None:
        """Forget a sync and all that it has seen."""
        super().remove(number)
        self.forgetting.drop(number)

    # ── a listing ──

    def note(self, number: int, objects: Sequence[ObjectInfo], place: str | None, *, settle: bool, live: bool) -> int:
        """Take in a batch of a listing, and how far the listing is with it; returns how many versions are new.

        Args:
            number: of the sync.
            objects: of the batch, those that are wanted.
            place: the last path of the batch; None where they are not of a listing.
            settle: whether a version counts only once it was listed twice.
            live: whether this is not the first listing.
        """
        tokens = {self._token(number, info.path): info for info in objects}
        fresh = 0
        with self._db.transaction() as connection:
            self.forgetting.named(number, tokens)
            known: dict[bytes, tuple[int, bytes, str, bool, bool]] = {}
            for some in _pieces(list(tokens), LOOKUPS):
                marks = ",".join("?" * len(some))
                sql = f"SELECT {_KNOWN} FROM sync_objects WHERE sync=? AND token IN ({marks})"  # noqa: S608
                known |= {row[0]: row[1:] for row in connection.execute(sql, (number, *some))}
            for token, info in tokens.items():
                version = self._version(number, info)
                row, seen, state, waits, anew = known.get(token, (0, b"", "", False, False))
                if anew:
                    seen = b""
                if seen == version and state in _SEEN:
                    if waits:
                        connection.execute(_STILL, (row,))
                    continue
                ready = "new" if not settle or seen == version else "settling"
                renewed = self._renewed(connection, row, info) if row else _Body(info.path, info.pin)
                body = self._seal.seal(_encode(renewed), f"sync object {token.hex()}")
                now = self._wall()
                if not row:
                    connection.execute(_INSERT, (number, token, version, ready, live, now, body, ready, number))
                elif state in ("working", "delivered"):
                    connection.execute(_NEWER, (version, body, ready, number, row))
                elif seen == version:
                    connection.execute(_READY, (ready, body, row))
                else:
                    connection.execute(_RENEW, (version, ready, live, now, body, ready, number, row))
                fresh += seen != version
            if place is not None:
                sealed = self._seal.seal(place.encode(), f"sync place {number}") if place else b""
                connection.execute("UPDATE syncs SET place=? WHERE number=?", (sealed, number))
        return fresh

    def listed(self, number: int) -> None:
        """A listing came to its end: what it did not find again of what was settling is not there any more."""
        with self._db.transaction() as connection:
            connection.execute(_UNSETTLED, (number, number, _DELETED_AT_ONCE))
            sql = "UPDATE syncs SET place=x'', listings=listings+1, polled=? WHERE number=?"
            connection.execute(sql, (self._wall(), number))
        self.forgetting.listed(number)

    # ── objects ──

    def next(self, number: int, now: float, *, live: bool) -> Seen | None:
        """The object whose turn it is: one that failed and is due, else one of the kind asked for, else any."""
        for condition, values in (
            ("state='failed' AND due<=?", (now,)),
            ("state='new' AND live=?", (live,)),
            ("state='new' AND live=?", (not live,)),
        ):
            sql = f"SELECT {_OBJECT} FROM sync_objects WHERE sync=? AND {condition} ORDER BY number LIMIT 1"  # noqa: S608
            while rows := self._db.rows(sql, (number, *values)):
                for found in self._whole(rows):
                    return found
        return None

    def next_due(self, number: int) -> float:
        """When the next object that failed is due, on the monotonic clock; infinite when none is."""
        sql = "SELECT min(due) FROM sync_objects WHERE sync=? AND state='failed'"
        due = self._db.rows(sql, (number,))[0][0]
        return float("inf") if due is None else float(due)

    def in_state(self, number: int, states: Sequence[str], limit: int = -1) -> list[Seen]:
        """The objects in these states, but those whose row is damaged."""
        marks = ",".join("?" * len(states))
        sql = f"SELECT {_OBJECT} FROM sync_objects WHERE sync=? AND state IN ({marks}) ORDER BY number LIMIT ?"  # noqa: S608
        return self._whole(self._db.rows(sql, (number, *states, limit)))

    def tries(self, row: int) -> int:
        """How many jobs an object's version has had that failed, or found it gone."""
        found = self._db.rows("SELECT tries FROM sync_objects WHERE number=?", (row,))
        return int(found[0][0]) if found else 0

    def again(self, row: int) -> None:
        """An object's job was never kept: it is the object's turn again."""
        self._update(row, "state='new'")

    def begin(self, row: int, version: bytes, job: str) -> None:
        """An object is about to get a job for this version of it; meanwhile another may have been listed."""
        self._update(row, "state='working', job=?, job_version=?", job, version)

    def deliver(self, row: int, job: str) -> None:
        """An object's job ended well."""
        with self._db.transaction() as connection:
            connection.execute("UPDATE sync_objects SET state='delivered' WHERE number=?", (row,))
            sql = "SELECT job_version FROM sync_objects WHERE number=?"
            for (version,) in connection.execute(sql, (row,)).fetchall():
                self._amend(connection, row, last=version, after=job)

    def moving(self, row: int) -> str:
        """Where an object is being moved to, empty for nowhere."""
        found = self._db.rows(_SEALED, (row,))
        return self._open(*found[0]).moving if found else ""

    def move(self, row: int, target: str) -> None:
        """Note where an object is to be moved to, before it is. A newer version that is listed meanwhile forgets it."""
        with self._db.transaction() as connection:
            sql = "SELECT 1 FROM sync_objects WHERE number=? AND version=job_version"
            if connection.execute(sql, (row,)).fetchone():
                self._amend(connection, row, moving=target)

    def finish(self, row: int, state: str) -> None:
        """An object is ``done``, ``away`` or ``gone``; a newer version that was seen meanwhile has its turn."""
        now = self._wall()
        newer = f"CASE WHEN version=job_version THEN ? ELSE {_NEXT} END"
        found = "CASE WHEN version=job_version THEN found ELSE ? END"
        job = "CASE WHEN version=job_version THEN job ELSE '' END"
        tries = f"CASE WHEN version=job_version THEN {'tries+1' if state == 'gone' else '0'} ELSE 0 END"
        # A listing may be under way, which named it before it was taken away.
        due = f"CASE WHEN version=job_version THEN 1+{_LISTING_OF_IT} ELSE due END" if state == "away" else "due"
        change = f"state={newer}, found={found}, job={job}, tries={tries}, due={due}"
        with self._db.transaction() as connection:
            connection.execute(f"UPDATE sync_objects SET {change} WHERE number=?", (state, now, row))  # noqa: S608
            if state == "away":
                self._amend(connection, row, last=b"")

    def fail(
        self,
        row: int,
        state: str,
        error: ErrorBody | None,
        *,
        due: float = 0.0,
        delay: float = 0.0,
        counted: bool = True,
    ) -> None:
        """An object's job did not end well; a newer version that was seen meanwhile has its turn all the same.

        Args:
            row: of the object.
            state: ``failed`` or ``quarantined``.
            error: why.
            due: when it is tried again, on the monotonic clock.
            delay: how long that is from now, in seconds.
            counted: whether it was tried at all.
        """
        with self._db.transaction() as connection:
            sql = f"SELECT token, body, job, version=job_version, {_NEXT}, due FROM sync_objects WHERE number=?"  # noqa: S608
            for token, sealed, job, same, newer, seen in connection.execute(sql, (row,)).fetchall():
                values = (state, counted, 1, due, delay, job) if same else (newer, 0, 0, seen, 0.0, "")
                try:
                    body = self._open(token, sealed)
                except IntegrityError:
                    connection.execute(_FAIL, ("damaged", *values[1:], sealed, row))
                    continue
                body.error = error if same else None
                again = self._seal.seal(_encode(body), f"sync object {token.hex()}")
                connection.execute(_FAIL, (*values, again, row))

    def of_jobs(self, jobs: Sequence[str]) -> list[tuple[str, int, int]]:
        """Which of these jobs belong to a sync, and to which object: job, sync, row."""
        found: list[tuple[str, int, int]] = []
        for some in _pieces(list(jobs), LOOKUPS):
            marks = ",".join("?" * len(some))
            found += self._db.rows(f"SELECT job, sync, number FROM sync_objects WHERE job IN ({marks})", some)  # noqa: S608
        return found

    def retry(self, number: int) -> int:
        """Let every object that failed or is quarantined be tried again now; returns how many."""
        states = "('failed', 'quarantined')"
        with self._db.transaction() as connection:
            sql = f"UPDATE sync_objects SET state='new' WHERE sync=? AND state IN {states}"  # noqa: S608
            return connection.execute(sql, (number,)).rowcount

    def restart(self, now: float) -> None:
        """After a start: nobody waits for longer than was meant, whatever the clock was before a reboot."""
        with self._db.transaction() as connection:
            connection.execute("UPDATE sync_objects SET due=min(due, ?+delay) WHERE state='failed'", (now,))

    def counts(self, number: int) -> tuple[dict[str, int], float]:
        """How many objects are in each state, and since when the oldest waits that is not done; 0 for none."""
        found = dict(self._db.rows("SELECT state, count(*) FROM sync_objects WHERE sync=? GROUP BY state", (number,)))
        sql = "SELECT min(found) FROM sync_objects WHERE sync=? AND state=?"
        oldest = [self._db.rows(sql, (number, state))[0][0] for state in UNFINISHED]
        return found, min((each for each in oldest if each is not None), default=0.0)

    def troubles(self, number: int, limit: int) -> list[SyncTrouble]:
        """Objects that failed, those that wait for a person first; of those that are damaged nobody knows the path."""
        found = [*self.in_state(number, ["quarantined"], limit), *self.in_state(number, ["failed"], limit)]
        troubles = [SyncTrouble(each.path, each.state, each.tries, each.job, each.error) for each in found]
        kept = "CAST(tries AS INTEGER), CAST(job AS TEXT)"
        sql = f"SELECT {kept} FROM sync_objects WHERE sync=? AND state='damaged' ORDER BY number LIMIT ?"  # noqa: S608
        error = _damaged("the next listing names it anew; to have it now: smpctl sync now NAME").body()
        rows = self._db.rows(sql, (number, limit))
        troubles += [SyncTrouble("", "damaged", tries, job, error) for tries, job in rows]
        return troubles[:limit]

    def _renewed(self, connection: sqlite3.Connection, row: int, info: ObjectInfo) -> _Body:
        """What is to be known of a version that was listed: of what was known of the object, what was delivered."""
        body = _Body(info.path, info.pin)
        for token, sealed in connection.execute(_SEALED, (row,)).fetchall():
            with contextlib.suppress(IntegrityError):
                earlier = self._open(token, sealed)
                body.last, body.after = earlier.last, earlier.after
        return body

    def _amend(self, connection: sqlite3.Connection, row: int, **changes: Any) -> None:
        """Change what is sealed of a row, unless it is damaged, which whoever has to read it says."""
        for token, sealed in connection.execute(_SEALED, (row,)).fetchall():
            with contextlib.suppress(IntegrityError):
                body = msgspec.structs.replace(self._open(token, sealed), **changes)
                again = self._seal.seal(_encode(body), f"sync object {token.hex()}")
                connection.execute("UPDATE sync_objects SET body=? WHERE number=?", (again, row))

    def _update(self, row: int, change: str, *values: object) -> None:
        with self._db.transaction() as connection:
            connection.execute(f"UPDATE sync_objects SET {change} WHERE number=?", (*values, row))  # noqa: S608

    def _whole(self, rows: Iterable[tuple[Any, ...]]) -> list[Seen]:
        """The objects whose rows open. The others are set aside, so that they keep no other out."""
        found, damaged = list[Seen](), list[int]()
        for row in rows:
            try:
                found.append(self._seen(row))
            except IntegrityError:
                damaged.append(row[0])
        if damaged:
            self._set_aside(damaged)
        return found

    def _set_aside(self, damaged: Iterable[int]) -> None:
        aside = 0
        with self._db.transaction() as connection:
            for number in damaged:
                row = connection.execute(f"SELECT {_OBJECT} FROM sync_objects WHERE number=?", (number,)).fetchone()  # noqa: S608
                try:
                    self._seen(row or ())
                except IntegrityError:  # no listing has written it anew since
                    connection.execute("UPDATE sync_objects SET state='damaged' WHERE number=?", (number,))
                    aside += 1
        _log.error("what syncs know of objects is damaged: they are listed again", count=aside)

    def _seen(self, row: tuple[Any, ...]) -> Seen:
        if tuple(map(type, row)) != _TYPES:  # a damaged cell may have become one of another type
            raise _damaged()
        number, version, state, tries, job, sealed, token = row
        body = self._open(token, sealed)
        delivered = body.last == version
        return Seen(number, version, state, tries, job, body.path, body.pin, body.error, delivered, body.after)

    def _open(self, token: bytes, sealed: bytes) -> _Body:
        if not isinstance(token, bytes):
            raise _damaged()
        try:
            return msgspec.msgpack.decode(self._seal.open(sealed, f"sync object {token.hex()}"), type=_Body)
        except msgspec.MsgspecError as error:
            raise _damaged() from error

    def _token(self, number: int, path: str) -> bytes:
        return self._seal.digest("sync path", str(number), path)[:16]

    def _version(self, number: int, info: ObjectInfo) -> bytes:
        return self._seal.digest("sync version", str(number), info.path, info.pin)[:16]


_LISTING = "(SELECT listings FROM syncs WHERE number=?)"
_SEEN_IN = f"CASE ? WHEN 'new' THEN -1 ELSE {_LISTING} END"
_INSERT = f"""INSERT INTO sync_objects (sync, token, version, state, live, found, body, due)
    VALUES (?, ?, ?, ?, ?, ?, ?, {_SEEN_IN})"""  # noqa: S608
_LISTING_OF_IT = "(SELECT listings FROM syncs WHERE syncs.number=sync)"
_KNOWN = f"""token, number, version, state, state IN ('working', 'delivered') AND version<>job_version AND due>=0,
    state='away' AND due<={_LISTING_OF_IT}"""
_NEWER = f"UPDATE sync_objects SET version=?, body=?, due={_SEEN_IN} WHERE number=?"  # noqa: S608
_STILL = "UPDATE sync_objects SET due=-1 WHERE number=?"
_NEXT = "CASE WHEN due<0 THEN 'new' ELSE 'settling' END"
_UNSETTLED = f"""DELETE FROM sync_objects WHERE number IN
    (SELECT number FROM sync_objects WHERE sync=? AND state='settling' AND due<{_LISTING} LIMIT ?)"""  # noqa: S608
_READY = """UPDATE sync_objects SET state=?, body=?, due=-1, tries=CAST(tries AS INTEGER),
    job=CASE typeof(job) WHEN 'text' THEN job ELSE '' END WHERE number=?"""  # the row may have been damaged
_RENEW = f"""UPDATE sync_objects SET version=?, state=?, live=?, found=?, body=?, tries=0, job='', due={_SEEN_IN}
    WHERE number=?"""  # noqa: S608
_FAIL = "UPDATE sync_objects SET state=?, tries=(tries+?)*?, due=?, delay=?, job=?, body=? WHERE number=?"


def _damaged(hint: str = "the next listing names the object anew") -> IntegrityError:
    return IntegrityError("corrupt", "what a sync knows of an object is damaged", hint=hint)


def _pieces(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def wanted(objects: Iterable[ObjectInfo], wants: Callable[[str], bool]) -> list[ObjectInfo]:
    """Of a batch, what a sync is to look at: each has a pin, since a folder has none."""
    return [info for info in objects if info.pin and wants(info.path)]
