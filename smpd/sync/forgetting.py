"""Lets go of what syncs know of objects that are gone from their sources, so that it does not grow for ever.

By count and not by age, since a clock may jump: of each sync the newest stay. An object counts as gone once a row of
complete listings did not name it. Which they name is kept as a few bits for each (a Bloom filter): that may take one
for named that was not, and never the other way round. Where nothing at all is named, the source itself may be away,
and all stays. All calls block.
"""

import struct
from collections.abc import Iterable

from smpd.jobs.database import Database

LISTINGS = 3  # complete ones, one after the other, that do not name an object which is gone
GONE_KEPT = 100_000
_LOOKED_AT = 5_000  # rows in one step
_PIECE = 500  # rows deleted in one transaction
_BITS_EACH = 16
_BITS_MIN, _BITS_MAX = 1 << 13, 1 << 27
_PLACES = struct.Struct(">4I")  # of a token, a keyed digest: its bytes are as good as random
_COUNT = "SELECT count(*) FROM sync_objects WHERE sync=? AND state IN ({})"
_OVER, _DAMAGED = "'done', 'away', 'gone'", "'damaged'"
_ROWS = f"""SELECT number, token, state FROM sync_objects NOT INDEXED
    WHERE number<? AND sync=? AND state IN ({_OVER}, {_DAMAGED}) ORDER BY number DESC LIMIT ?"""  # noqa: S608
_DELETE = f"DELETE FROM sync_objects WHERE number=? AND state IN ({_OVER}, {_DAMAGED})"  # noqa: S608


class Sight:
    """What was named of one sync's objects since it began.

    Args:
        objects: how many there may be.
    """

    def __init__(self, objects: int) -> None:
        bits = 1 << max(objects * _BITS_EACH - 1, 0).bit_length()
        bits = min(max(bits, _BITS_MIN), _BITS_MAX)
        self._mask = bits - 1
        self._bits = bytearray(bits // 8)
        self.any = False  # whether anything was named
        self.listings = 0  # that came to their end
        self.before = 1 << 62  # rows from this one on were looked at
        self.spared = 0  # of those that are gone

    def add(self, token: bytes) -> None:
        """It was named."""
        self.any = True
        for place in _PLACES.unpack(token):
            at = place & self._mask
            self._bits[at >> 3] |= 1 << (at & 7)

    def __contains__(self, token: object) -> bool:
        """Whether it may have been named; a damaged token was not."""
        if not isinstance(token, bytes) or len(token) != _PLACES.size:
            return False
        for place in _PLACES.unpack(token):
            at = place & self._mask
            if not self._bits[at >> 3] >> (at & 7) & 1:
                return False
        return True


class Forgetting:
    """Forgets objects of all syncs.

    Args:
        db: the open database.

    Attributes:
        kept: how many objects that are gone stay known to each sync.
    """

    def __init__(self, db: Database, kept: int = GONE_KEPT) -> None:
        self._db = db
        self.kept = kept
        self._sights: dict[int, Sight] = {}

    def named(self, sync: int, tokens: Iterable[bytes]) -> None:
        """Objects are there; to be called in the transaction that notes them."""
        if (sight := self._sights.get(sync)) is not None:
            for token in tokens:
                sight.add(token)

    def listed(self, sync: int) -> None:
        """A listing came to its end: the next one is the first of those that count, where there may be too much."""
        if (sight := self._sights.get(sync)) is not None:
            sight.listings += 1
            return
        over, damaged = (int(self._db.rows(_COUNT.format(each), (sync,))[0][0]) for each in (_OVER, _DAMAGED))
        if over > self.kept or damaged:
            self._sights[sync] = Sight(over + damaged)

    def step(self, sync: int) -> bool:
        """Forget some of those that are gone, the newest first looked at; whether there is more to look at.

        Raises:
            ResourceError: ``disk_full``, ``disk_failed``.
        """
        sight = self._sights.get(sync)
        if sight is None or sight.listings < LISTINGS or not sight.any:
            return False
        rows = self._db.rows(_ROWS, (sight.before, sync, _LOOKED_AT))
        going: list[tuple[int, object]] = []
        for number, token, state in rows:
            if token in sight:
                continue
            if state == "damaged" or sight.spared >= self.kept:
                going.append((number, token))
            else:
                sight.spared += 1
        for start in range(0, len(going), _PIECE):
            with self._db.transaction() as connection:  # in which nobody else can name one
                still = [(number,) for number, token in going[start : start + _PIECE] if token not in sight]
                connection.executemany(_DELETE, still)
        if len(rows) < _LOOKED_AT:
            self.drop(sync)
            return False
        sight.before = rows[-1][0]
        return True

    def drop(self, sync: int) -> None:
        """Begin anew, or it was removed."""
        self._sights.pop(sync, None)
