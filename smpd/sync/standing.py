"""The syncs as they are kept: their specs, whose they are, and how far a listing is. All calls block."""

import contextlib
import time
from collections.abc import Callable

import msgspec

from smp_proto.control import SyncSpec, SyncState
from smp_proto.errors import IntegrityError, StateError
from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal

_DELETED_AT_ONCE = 10_000
_encode = msgspec.msgpack.encode


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


class _Kept(msgspec.Struct):
    spec: SyncSpec
    owner: str


class Standings:
    """The table of the syncs.

    Args:
        db: where they are kept.
        seal: seals specs, paths and errors.
        wall: the clock for what is displayed.
    """

    def __init__(self, db: Database, seal: StateSeal, *, wall: Callable[[], float] = time.time) -> None:
        self._db = db
        self._seal = seal
        self._wall = wall

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
        # A damaged cell may have become one of another type.
        rows = self._db.rows(
            """SELECT number, name, ifnull(CAST(created AS REAL), 0.0), state, ifnull(CAST(listings AS INTEGER), 0),
            ifnull(CAST(polled AS REAL), 0.0), place, body FROM syncs ORDER BY name"""
        )
        found, damaged = list[Standing](), dict[str, int]()
        for number, name, created, state, listings, polled, place, body in rows:
            try:
                kept = msgspec.msgpack.decode(self._seal.open(body, f"sync {name}"), type=_Kept)
            except (IntegrityError, msgspec.MsgspecError):
                damaged[str(name)] = number
                continue
            path = ""
            with contextlib.suppress(IntegrityError):  # then the listing at hand begins anew, and nothing is lost
                path = self._seal.open(place, f"sync place {number}").decode() if place else ""
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
