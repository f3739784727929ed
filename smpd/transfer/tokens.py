"""A token bucket that may go into debt: what is begun is begun whole, and paid for before the next. Pure.

Over any time, what is taken is at most what flowed in, a second's worth besides, and the last thing that was begun.
"""

import math

BURST_S = 1.0  # of the rate may be taken at once after a pause


class Bucket:
    """A bucket.

    Args:
        rate: tokens a second; infinite for no limit.
        now: monotonic seconds.
    """

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._level = self._most()
        self._at = now

    def set_rate(self, rate: float, now: float) -> None:
        """Go on at another rate. A debt stays; without a limit there is none."""
        if rate == self.rate:
            return
        self._flow(now)
        self.rate = rate
        self._level = 0.0 if math.isinf(rate) else min(self._level, self._most())

    def wait_s(self, now: float) -> float:
        """How long until something may be begun."""
        if math.isinf(self.rate):
            return 0.0
        self._flow(now)
        return max(0.0, -self._level / self.rate)

    def take(self, count: float, now: float) -> None:
        """Begin something of this size; negative for what was taken and not used."""
        if math.isinf(self.rate):
            return
        self._flow(now)
        self._level -= count

    def _flow(self, now: float) -> None:
        if not math.isinf(self.rate):
            self._level = min(self._most(), self._level + max(0.0, now - self._at) * self.rate)
        self._at = now

    def _most(self) -> float:
        return 0.0 if math.isinf(self.rate) else self.rate * BURST_S
