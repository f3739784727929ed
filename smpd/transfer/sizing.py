"""How large the ranges of one remote are: what a lane brings in a second, and less where ranges do not come through.

Pure arithmetic, as :mod:`smpd.transfer.pacing`, which says how many are under way. On a quick line a range fills its
slot, so that there are few requests. On a slow one a range of that size takes a minute: the processor waits so long
for its first byte, and a crash or a reset costs so much. Where it takes long until an answer begins, ranges that come
in less time than that would leave the lane empty for most of the time, so they are made to last as long.
"""

from collections import deque

from smp_proto.sealed.layout import SEGMENT_BYTES

TARGET_S = 1.0
FIRST_BYTES = 2 << 20  # while nothing is known; the first range that comes says more
WEIGHT = 0.25  # of the newest range
_LATENCIES = 8  # the least of so many answers to short requests: others had to wait for a connection, too


class Sizing:
    """The size of the ranges that are begun now.

    Args:
        most: what fits a slot, bytes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._rate: float | None = None  # bytes a second of a lane, once they come, of late
        self._limit = most
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)

    @property
    def _latency_s(self) -> float:
        """Until an answer begins, at most; short ones of a slow line add little, as all that follows is as slow."""
        return min(self._latencies, default=0.0)

    @property
    def range_bytes(self) -> int:
        """Whole segments, at least one."""
        brought = FIRST_BYTES if self._rate is None else int(self._rate * max(TARGET_S, self._latency_s))
        wanted = min(brought, self._limit, self._most)
        return max(1, wanted // SEGMENT_BYTES) * SEGMENT_BYTES

    def came(self, seconds: float, size: int) -> None:
        """A range of ``size`` bytes came, and took so long."""
        self._limit = min(self._most, self._limit + SEGMENT_BYTES)
        if size < SEGMENT_BYTES:  # the rest of an object
            self.answered(seconds)
            return
        # A quarter of it at least is taken for bytes: short requests may have waited for what this one did not, as a
        # login. No more than twice a slot, so that some slow ones show after many quick ones.
        moving_s = max(seconds - self._latency_s, seconds / 4, 1e-9)
        rate = min(size / moving_s, 2.0 * self._most / TARGET_S)
        self._rate = rate if self._rate is None else self._rate + (rate - self._rate) * WEIGHT

    def answered(self, seconds: float) -> None:
        """A short request was answered after so long."""
        self._latencies.append(seconds)

    def lost(self) -> None:
        """A range was cut off, and has to be fetched again."""
        self._limit = max(SEGMENT_BYTES, self.range_bytes // 2)
