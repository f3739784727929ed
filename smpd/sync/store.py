"""What syncs know: their specs, how far a listing is, and every object version they have seen.

Paths are sealed; rows are found by keyed digests of sync and path, and versions compared by digests that include the
pin. An object is in one state:

- ``settling``: seen once in a remote of plaintext, which may still be being written;
- ``new``: wanted, no job yet. ``live`` tells those that appeared after the first listing from the back-fill;
- ``working``: has a job, which is for ``job_version``. A newer version seen meanwhile waits in ``version``;
- ``delivered``: its job ended well, and what comes after that is not done yet;
- ``done``, ``gone``: nothing is left to do for this version;
- ``failed``: its job is resumed when ``due``; ``quarantined``: left to a person.

Trying again resumes the job that there is, so one version has one job for as long as that is kept.

All calls block.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from smp_proto.control import ObjectInfo, SyncSpec, SyncState, SyncTrouble
from smp_proto.errors import ErrorBody, IntegrityError, StateError
from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal

UNFINISHED = ("settling", "new", "working", "delivered", "failed")
LOOKUPS = 500  # rows looked up by one statement
_DELETED_AT_ONCE = 10_000
_OBJECT = "number, version, state, tries, job, body, token"


class Standing(msgspec.Struct, frozen=True):
    """A sync as kept. ``place`` is the path up to which the listing at hand has come, empty between listings."""

    number: int
    spec: SyncSpec
    owner: str
    created: float
    state: SyncState
    listings: int
    polled: float
    place: str


class Seen(NamedTuple):
    """An object as it was last listed."""

    number: int
    version: bytes
    state: str
    tries: int
    job: str
    path: str
    pin: str
    error: ErrorBody | None


class _Kept(msgspec.Struct):
    spec: SyncSpec
    owner: str


class _Body(msgspec.Struct):
    path: str
    pin: str
    error: ErrorBody | None = None
    moving: str = ""


T = TypeVar("T")
_encode = msgspec.msgpack.encode


class SyncStore:
    """The tables of the syncs.

    Args:
        db: where they are kept.
        seal: seals specs, paths and errors.
        wall: the clock for what is displayed.
    """

    def __init__(self, db: Database, seal: StateSeal, *, wall: Callable[[], float] = time.time) -> None:
        self._db = db
        self._seal = seal
        self._wall = wall

    # ── syncs ──

    def add(self, spec: SyncSpec, owner: str) -> Standing:
        """Keep a new sync, active.

        Raises:
            StateError: ``exists``.
        """
        now = self._wall()
        with self._db.transaction() as connection:
            if connection.execute("SELECT 1 FROM syncs WHERE name=?", (spec.name,)).fetchone():
                hint = f"see it with: smpctl sync show {spec.name}"
                raise StateError("exists", f"there is a sync named {spec.name}", hint=hint)
            values = (spec.name, now, self._seal.seal(_encode(_Kept(spec, owner)), f"sync {spec.name}"))
            number = connection.execute("INSERT INTO syncs (name, created, body) VALUES (?, ?, ?)", values).lastrowid
        return Standing(number or 0, spec, owner, now, "active", 0, 0.0, "")

    def all(self) -> list[Standing]:
        """Every sync whose record opens, in the order of their names."""
        return self._read()[0]

    def damaged(self) -> dict[str, int]:
        """The names of the others, with their numbers."""
        return self._read()[1]

    def _read(self) -> tuple[list[Standing], dict[str, int]]:
        rows = self._db.rows(
            "SELECT number, name, created, state, listings, polled, place, body FROM syncs ORDER BY name"
        )
        found, damaged = list[Standing](), dict[str, int]()
        for number, name, created, state, listings, polled, place, body in rows:
            try:
                kept = msgspec.msgpack.decode(self._seal.open(body, f"sync {name}"), type=_Kept)
                path = self._seal.open(place, f"sync place {number}").decode() if place else ""
            except (IntegrityError, msgspec.MsgspecError):
                damaged[str(name)] = number
                continue
            found.append(Standing(number, kept.spec, kept.owner, created, state, listings, polled, path))
        return found, damaged

    def get(self, name: str) -> Standing:
        """One sync.

        Raises:
            KeyError: there is none.
        """
        for each in self.all():
            if each.spec.name == name:
                return each
        raise KeyError(name)

    def set_state(self, number: int, state: SyncState) -> None:
        """Pause a sync or let it go on."""
        with self._db.transaction() as connection:
            connection.execute("UPDATE syncs SET state=? WHERE number=?", (state, number))

    def remove(self, number: int) -> None:
        """Forget a sync and all that it has seen: the objects first, in pieces, so that others get their turn."""
        with self._db.transaction() as connection:
            connection.execute("UPDATE syncs SET state='paused' WHERE number=?", (number,))
        sql = "DELETE FROM sync_objects WHERE number IN (SELECT number FROM sync_objects WHERE sync=? LIMIT ?)"
        gone = _DELETED_AT_ONCE
        while gone == _DELETED_AT_ONCE:
            with self._db.transaction() as connection:
                gone = connection.execute(sql, (number, _DELETED_AT_ONCE)).rowcount
        with self._db.transaction() as connection:
            connection.execute("DELETE FROM syncs WHERE number=?", (number,))

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
            known: dict[bytes, tuple[int, bytes, str]] = {}
            for some in _pieces(list(tokens), LOOKUPS):
                marks = ",".join("?" * len(some))
                sql = f"SELECT token, number, version, state FROM sync_objects WHERE sync=? AND token IN ({marks})"  # noqa: S608
                known |= {row[0]: (row[1], row[2], row[3]) for row in connection.execute(sql, (number, *some))}
            for token, info in tokens.items():
                version = self._version(number, info)
                row, seen, state = known.get(token, (0, b"", ""))
                if seen == version and state not in ("settling", "gone"):
                    continue
                ready = "new" if not settle or seen == version else "settling"
                body = self._seal.seal(_encode(_Body(info.path, info.pin)), f"sync object {token.hex()}")
                now = self._wall()
                if not row:
                    connection.execute(_INSERT, (number, token, version, ready, live, now, body))
                elif state in ("working", "delivered"):
                    connection.execute("UPDATE sync_objects SET version=?, body=? WHERE number=?", (version, body, row))
                elif seen == version:
                    connection.execute("UPDATE sync_objects SET state=?, body=? WHERE number=?", (ready, body, row))
                else:
                    connection.execute(_RENEW, (version, ready, live, now, body, row))
                fresh += seen != version
            if place is not None:
                sealed = self._seal.seal(place.encode(), f"sync place {number}") if place else b""
                connection.execute("UPDATE syncs SET place=? WHERE number=?", (sealed, number))
        return fresh

    def listed(self, number: int) -> None:
        """A listing came to its end."""
        with self._db.transaction() as connection:
            sql = "UPDATE syncs SET place=x'', listings=listings+1, polled=? WHERE number=?"
            connection.execute(sql, (self._wall(), number))

    # ── objects ──

    def next(self, number: int, now: float, *, live: bool) -> Seen | None:
        """The object whose turn it is: one that failed and is due, else one of the kind asked for, else any."""
        for condition, values in (
            ("state='failed' AND due<=?", (now,)),
            ("state='new' AND live=?", (live,)),
            ("state='new' AND live=?", (not live,)),
        ):
            sql = f"SELECT {_OBJECT} FROM sync_objects WHERE sync=? AND {condition} ORDER BY number LIMIT 1"  # noqa: S608
            for row in self._db.rows(sql, (number, *values)):
                return self._seen(row)
        return None

    def next_due(self, number: int) -> float:
        """When the next object that failed is due, on the monotonic clock; infinite when none is."""
        sql = "SELECT min(due) FROM sync_objects WHERE sync=? AND state='failed'"
        due = self._db.rows(sql, (number,))[0][0]
        return float("inf") if due is None else float(due)

    def in_state(self, number: int, states: Sequence[str], limit: int = -1) -> list[Seen]:
        """The objects in these states."""
        marks = ",".join("?" * len(states))
        sql = f"SELECT {_OBJECT} FROM sync_objects WHERE sync=? AND state IN ({marks}) ORDER BY number LIMIT ?"  # noqa: S608
        return [self._seen(row) for row in self._db.rows(sql, (number, *states, limit))]

    def tries(self, row: int) -> int:
        """How many jobs an object's version has had that failed."""
        return int(self._db.rows("SELECT tries FROM sync_objects WHERE number=?", (row,))[0][0])

    def again(self, row: int) -> None:
        """An object's job was never kept: it is the object's turn again."""
        self._update(row, "state='new'")

    def begin(self, row: int, version: bytes, job: str) -> None:
        """An object is about to get a job for this version of it; meanwhile another may have been listed."""
        self._update(row, "state='working', job=?, job_version=?", job, version)

    def deliver(self, row: int) -> None:
        """An object's job ended well."""
        self._update(row, "state='delivered'")

    def moving(self, row: int) -> str:
        """Where an object is being moved to, empty for nowhere."""
        token, sealed = self._db.rows("SELECT token, body FROM sync_objects WHERE number=?", (row,))[0]
        return self._open(token, sealed).moving

    def move(self, row: int, target: str) -> None:
        """Note where an object is to be moved to, before it is. A newer version that is listed meanwhile forgets it."""
        with self._db.transaction() as connection:
            sql = "SELECT token, body FROM sync_objects WHERE number=? AND version=job_version"
            for token, sealed in connection.execute(sql, (row,)).fetchall():
                body = self._open(token, sealed)
                body.moving = target
                again = self._seal.seal(_encode(body), f"sync object {token.hex()}")
                connection.execute("UPDATE sync_objects SET body=? WHERE number=?", (again, row))

    def finish(self, row: int, state: str) -> None:
        """An object is ``done`` or ``gone``; a newer version that was seen meanwhile is ``new``."""
        now = self._wall()
        newer = "CASE WHEN version=job_version THEN ? ELSE 'new' END"
        found = "CASE WHEN version=job_version THEN found ELSE ? END"
        job = "CASE WHEN version=job_version THEN job ELSE '' END"
        self._update(row, f"state={newer}, found={found}, job={job}, tries=0", state, now)

    def fail(self, row: int, state: str, error: ErrorBody | None, *, due: float = 0.0, delay: float = 0.0) -> None:
        """An object's job did not end well; a newer version that was seen meanwhile is ``new`` all the same.

        Args:
            row: of the object.
            state: ``failed`` or ``quarantined``.
            error: why.
            due: when it is tried again, on the monotonic clock.
            delay: how long that is from now, in seconds.
        """
        with self._db.transaction() as connection:
            sql = "SELECT token, body, job, version=job_version FROM sync_objects WHERE number=?"
            token, sealed, job, same = connection.execute(sql, (row,)).fetchone()
            body = self._open(token, sealed)
            body.error = error if same else None
            again = self._seal.seal(_encode(body), f"sync object {token.hex()}")
            values = (state, 1, due, delay, job) if same else ("new", 0, 0.0, 0.0, "")
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
        """Objects that failed, those that wait for a person first."""
        found = [*self.in_state(number, ["quarantined"], limit), *self.in_state(number, ["failed"], limit)]
        return [SyncTrouble(each.path, each.state, each.tries, each.job, each.error) for each in found[:limit]]

    def _update(self, row: int, change: str, *values: object) -> None:
        with self._db.transaction() as connection:
            connection.execute(f"UPDATE sync_objects SET {change} WHERE number=?", (*values, row))  # noqa: S608

    def _seen(self, row: tuple[Any, ...]) -> Seen:
        number, version, state, tries, job, sealed, token = row
        body = self._open(token, sealed)
        return Seen(number, version, state, tries, job, body.path, body.pin, body.error)

    def _open(self, token: bytes, sealed: bytes) -> _Body:
        try:
            return msgspec.msgpack.decode(self._seal.open(sealed, f"sync object {token.hex()}"), type=_Body)
        except msgspec.MsgspecError as error:
            hint = "remove the sync and add it again"
            raise IntegrityError("corrupt", "what a sync knows of an object is damaged", hint=hint) from error

    def _token(self, number: int, path: str) -> bytes:
        return self._seal.digest("sync path", str(number), path)[:16]

    def _version(self, number: int, info: ObjectInfo) -> bytes:
        return self._seal.digest("sync version", str(number), info.path, info.pin)[:16]


_INSERT = "INSERT INTO sync_objects (sync, token, version, state, live, found, body) VALUES (?, ?, ?, ?, ?, ?, ?)"
_RENEW = "UPDATE sync_objects SET version=?, state=?, live=?, found=?, body=?, tries=0, job='' WHERE number=?"
_FAIL = "UPDATE sync_objects SET state=?, tries=(tries+1)*?, due=?, delay=?, job=?, body=? WHERE number=?"


def _pieces(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def wanted(objects: Iterable[ObjectInfo], wants: Callable[[str], bool]) -> list[ObjectInfo]:
    """Of a batch, what a sync is to look at: each has a pin, since a folder has none."""
    return [info for info in objects if info.pin and wants(info.path)]
