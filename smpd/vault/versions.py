"""What was accepted where: the newest object of each location, so that an older one in its place is noticed.

A storage that hands out an object that it kept from before shows a good signature. What gives it away is that the box
has seen a newer one under the same name. So the time that was signed may not go back at a location, whoever signed. The
same object again is always fine. All calls block.
"""

import time
from collections.abc import Collection, Iterable, Mapping

import msgspec

from smp_proto.errors import IntegrityError
from smp_proto.sealed.envelope import Signed
from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal


class _Version(msgspec.Struct, frozen=True):
    """What was accepted: ``created`` in seconds since 1970, by the sender's clock."""

    object_id: bytes
    created: int
    sender: bytes


class Versions:
    """The newest objects.

    Args:
        db: where they are.
        seal: seals them, and digests locations.
        remembered: of how many acceptances; the oldest are forgotten first.
    """

    def __init__(self, db: Database, seal: StateSeal, remembered: int) -> None:
        self._db = db
        self._seal = seal
        self.remembered = remembered

    def stored(self, locations: Iterable[str]) -> Mapping[str, bytes]:
        """What is remembered of locations, for :meth:`check`: one query for many objects."""
        places = {self._place(location): location for location in locations}
        return {places[place]: body for place, body in self._bodies(places).items()}

    def check(self, location: str, signed: Signed, stored: Mapping[str, bytes] | None = None) -> bool:
        """Compare what is at a location with what was accepted there; ``stored`` saves reading it.

        Returns:
            Whether it is what was accepted: there is nothing to be remembered then.

        Raises:
            IntegrityError: ``older_version``; or ``corrupt``, when what is remembered was changed on the disk.
        """
        stored = self.stored([location]) if stored is None else stored
        known = self._known(stored[location], self._place(location)) if location in stored else None
        if known is not None and known.object_id != signed.object_id and signed.created < known.created:
            raise IntegrityError(
                "older_version",
                f"the object was sealed on {_moment(signed.created)}, but one sealed on {_moment(known.created)} "
                "was accepted at this place before",
                hint="somebody put an older object in its place; if that was meant: smpctl quarantine retry ID "
                "--accept-older",
                details={"sealed": signed.created, "accepted": known.created},
            )
        return known is not None and known.object_id == signed.object_id

    def remember(self, accepted: Iterable[tuple[str, Signed]], older: Collection[str] = ()) -> None:
        """Note what was verified whole, by location; durable on return. What is known already costs no write.

        Args:
            accepted: locations, and what was signed of the object there.
            older: locations whose object is to count although a newer one did.
        """
        found = {self._place(location): (signed, location in older) for location, signed in accepted}
        stored = {place: self._open(body, place) for place, body in self._bodies(found).items()}
        if all(self._settled(signed, stored.get(place), force) for place, (signed, force) in found.items()):
            return
        with self._db.transaction() as connection:
            for place, (signed, force) in found.items():
                rows = connection.execute("SELECT body FROM versions WHERE place=?", (place,)).fetchall()
                if self._settled(signed, self._open(rows[0][0], place) if rows else None, force):
                    continue
                version = _Version(signed.object_id, signed.created, signed.sender)
                body = self._seal.seal(msgspec.msgpack.encode(version), _context(place))
                connection.execute("DELETE FROM versions WHERE place=?", (place,))
                connection.execute("INSERT INTO versions (place, body) VALUES (?, ?)", (place, body))
            newest = connection.execute("SELECT max(number) FROM versions").fetchone()[0]
            connection.execute("DELETE FROM versions WHERE number BETWEEN 1 AND ?", (newest - self.remembered,))

    def look(self, after: int, limit: int) -> tuple[int, int]:
        """Open what is remembered behind number ``after``, at most ``limit`` of it.

        Returns:
            How many of these are damaged, and the number of the last; 0 where there are none.
        """
        sql = "SELECT number, place, body FROM versions WHERE number > ? ORDER BY number LIMIT ?"
        rows = self._db.rows(sql, (after, limit))
        damaged = sum(self._open(body, place) is None for _, place, body in rows)
        return damaged, rows[-1][0] if rows else 0

    @staticmethod
    def _settled(signed: Signed, known: _Version | None, force: bool) -> bool:
        """Whether nothing is to be noted: it is the one, or another job took a newer one meanwhile."""
        if known is None:
            return False
        return known.object_id == signed.object_id or (signed.created < known.created and not force)

    def _bodies(self, places: Collection[bytes]) -> dict[bytes, bytes]:
        sql = f"SELECT place, body FROM versions WHERE place IN ({','.join('?' * len(places))})"  # noqa: S608 - marks
        return dict(self._db.rows(sql, places)) if places else {}

    def _known(self, body: bytes, place: bytes) -> _Version:
        found = self._open(body, place)
        if found is None:
            raise IntegrityError(
                "corrupt",
                "what is remembered of the object at this place was changed on this box's disk",
                hint="look at the disk; to take what is there now: smpctl quarantine retry ID --accept-older",
            )
        return found

    def _open(self, body: bytes, place: bytes) -> _Version | None:
        try:
            return msgspec.msgpack.decode(self._seal.open(body, _context(place)), type=_Version)
        except (IntegrityError, msgspec.MsgspecError):
            return None

    def _place(self, location: str) -> bytes:
        return self._seal.digest("location", location)


def _context(place: bytes) -> str:
    return f"version {place.hex()}"


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
