"""How many ranges of one remote may be under way: a window that is moved by what it brings.

Pure arithmetic; the clock is the caller's. It begins with few, since few slots stay in the processor's cache, and
doubles as long as that brings more: a long line has its lanes after some round trips, a short one keeps few. From then
on a trial is an epoch at another window than before: it is kept when the throughput says so, and taken back when not,
and then the next one waits longer. A larger window that nobody fills is taken back, too.
"""

EPOCH_S = 0.25
EPOCH_RANGES = 8
GROWTH_S = 0.05  # the least that is looked at between two doublings
DOUBLED = 1.25  # what twice the window must bring for it to be doubled again
SLOW_S = 1.0  # ranges that take longer than this are queued up somewhere: fewer than the first may do as well
GAIN = 1.05  # what a larger window must bring
LOSS = 0.95  # what a smaller one may cost, all steps together
FORGET = 0.98  # of the best throughput, for each epoch: the line may have become slower
HOLD_MAX = 32  # epochs
BUSY_PAUSE_S = 1.0  # a burst of refusals is one refusal
IDLE_S = 0.05  # without a range for so long, it was not the window that kept the throughput down


class Pacing:
    """The window of one remote.

    Args:
        lanes: the most there can be.
        first: how many it begins with, and does not go below as long as the remote is quick.
    """

    def __init__(self, lanes: int, first: int) -> None:
        self.lanes = lanes
        self.window = self._first = min(lanes, first)
        self.ranges = 0  # since the start
        self.bytes = 0
        self._began = 0.0
        self._last = 0.0  # when a range came
        self._count = 0
        self._size = 0
        self._latency_s = 0.0
        self._skip = self.window  # ranges still to come that were begun with another window, or while it all started
        self._under_way = 0
        self._peak = 0  # lanes in use at once
        self._growing = self.window < lanes
        self._before: tuple[int, float] | None = None  # the window before the trial, and bytes per second with it
        self._down = True  # whether a smaller window is tried next
        self._best = 0.0  # bytes per second
        self._hold = 0
        self._patience = 2
        self._busy_at = -BUSY_PAUSE_S

    def started(self, now: float, in_use: int) -> None:
        """A range is asked for, and so many lanes are handed out. It ends by :meth:`done` or :meth:`failed`."""
        if not self._under_way and now - self._last > IDLE_S:
            self._next(now)  # what comes after a pause says nothing of the pause
        self._under_way += 1
        self._peak = max(self._peak, in_use)

    def done(self, now: float, seconds: float, size: int) -> None:
        """A range of ``size`` bytes came, and took so long."""
        self.ranges += 1
        self.bytes += size
        self._last = now
        self._under_way -= 1
        if self._skip:
            self._skip -= 1
            self._next(now)
            return
        self._count += 1
        self._size += size
        self._latency_s += seconds
        if now - self._began >= self._epoch_s and self._count >= self._epoch_ranges:
            window = self.window
            if self._peak >= window:  # else what is asked limits the throughput, and not the window
                self._judge(self._size / (now - self._began), self._latency_s / self._count)
            elif self._before is not None and self._before[0] <= self._peak:  # nobody uses the room that was added
                self.window, self._growing, self._before = self._before[0], False, None
            self._skip = window if self.window != window else 0
            self._next(now)

    def failed(self) -> None:
        """A range did not come."""
        self._under_way -= 1

    def busy(self, now: float) -> None:
        """The remote refused for want of room (503, too many connections)."""
        if now - self._busy_at < BUSY_PAUSE_S:
            return
        self._busy_at = now
        self.window = max(1, self.window // 2)
        self._growing, self._before, self._hold, self._patience = False, None, 2, 2
        self._next(now)

    @property
    def _epoch_s(self) -> float:
        return GROWTH_S if self._growing else EPOCH_S

    @property
    def _epoch_ranges(self) -> int:
        return self.window if self._growing else max(EPOCH_RANGES, 2 * self.window)

    def _next(self, now: float) -> None:
        self._began, self._count, self._size, self._latency_s, self._peak = now, 0, 0, 0.0, 0

    def _judge(self, rate: float, latency_s: float) -> None:
        if self._growing:
            self._grow(rate)
            return
        best = self._best
        self._best = max(rate, best * FORGET)
        if self._before is not None:
            window, before = self._before
            self._before = None
            if rate >= (before * GAIN if self.window > window else best * LOSS):
                self._patience = 2
            else:
                self.window = window
                self._down = not self._down
                self._hold, self._patience = self._patience, min(HOLD_MAX, self._patience * 2)
        elif self._hold:
            self._hold -= 1
        else:
            self._try(rate, latency_s)

    def _grow(self, rate: float) -> None:
        self._best = max(rate, self._best)
        if self._before is not None and rate < self._before[1] * DOUBLED:
            self.window, self._growing, self._before = self._before[0], False, None
        elif self.window == self.lanes:
            self._growing, self._before = False, None
        else:
            self._before = self.window, rate
            self.window = min(self.lanes, 2 * self.window)

    def _try(self, rate: float, latency_s: float) -> None:
        least = 1 if latency_s > SLOW_S else self._first
        if self.window > least and (self._down or self.window == self.lanes):
            self._before, self._down = (self.window, rate), True
            self.window = max(least, self.window * 3 // 4)
        elif self.window < self.lanes:
            self._before, self._down = (self.window, rate), False
            self.window = min(self.lanes, self.window + max(1, self.window // 4))
