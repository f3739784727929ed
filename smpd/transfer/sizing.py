"""How large the ranges of one remote are: what a lane brings in a second, and less where ranges do not come through.

Pure arithmetic, as :mod:`smpd.transfer.pacing`, which says how many are under way. On a quick line a range fills its
slot, so that there are few requests. On a slow one a range of that size takes a minute: the processor waits so long
for its first byte, and a crash or a reset costs so much.
"""

from smp_proto.sealed.layout import SEGMENT_BYTES

TARGET_S = 1.0
FIRST_BYTES = 2 << 20  # while nothing is known; the first range that comes says more
WEIGHT = 0.25  # of the newest range


class Sizing:
    """The size of the ranges that are begun now.

    Args:
        most: what fits a slot, bytes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._brought: float | None = None  # bytes that a lane brings in TARGET_S, of late
        self._limit = most

    @property
    def range_bytes(self) -> int:
        """Whole segments, at least one."""
        wanted = min(FIRST_BYTES if self._brought is None else int(self._brought), self._limit, self._most)
        return max(1, wanted // SEGMENT_BYTES) * SEGMENT_BYTES

    def came(self, seconds: float, size: int) -> None:
        """A range of ``size`` bytes came, and took so long."""
        self._limit = min(self._most, self._limit + SEGMENT_BYTES)
        if size < SEGMENT_BYTES:  # the rest of an object: its time is the latency
            return
        # No more than twice a slot, so that some slow ones show after many quick ones.
        brought = min(size * TARGET_S / max(seconds, 1e-9), 2.0 * self._most)
        self._brought = brought if self._brought is None else self._brought + (brought - self._brought) * WEIGHT

    def lost(self) -> None:
        """A range was cut off, and has to be fetched again."""
        self._limit = max(SEGMENT_BYTES, self.range_bytes // 2)
