"""How many ranges of one remote may be under way: a window that is moved by what it brings.

Pure arithmetic; the clock is the caller's. A trial is an epoch at another window than before: it is kept when the
throughput says so, and taken back when not, and then the next one waits longer. Where the answers come quickly nothing
is tried: with the lanes all in use, a loopback or a LAN is as fast as it can be.
"""

EPOCH_S = 0.25
EPOCH_RANGES = 8
SLOW_S = 1.0  # ranges that take longer than this are queued up somewhere: fewer of them may do as well
GAIN = 1.05  # what a larger window must bring
LOSS = 0.95  # what a smaller one may cost, all steps together
FORGET = 0.98  # of the best throughput, for each epoch: the line may have become slower
HOLD_MAX = 32  # epochs
BUSY_PAUSE_S = 1.0  # a burst of refusals is one refusal


class Pacing:
    """The window of one remote.

    Args:
        lanes: the most there can be.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.window = lanes
        self.ranges = 0  # since the start
        self.bytes = 0
        self._began = 0.0
        self._count = 0
        self._size = 0
        self._latency_s = 0.0
        self._skip = 0  # ranges still to come that were begun with another window
        self._full = False
        self._before: tuple[int, float] | None = None  # the window before the trial, and bytes per second with it
        self._best = 0.0  # bytes per second
        self._hold = 0
        self._patience = 2
        self._busy_at = -BUSY_PAUSE_S

    def started(self, now: float, in_use: int) -> None:
        """A range was begun, the ``in_use``-th at once."""
        if not self._count and in_use <= 1:
            self._began = now  # what comes after a pause says nothing of the pause
        self._full = self._full or in_use >= self.window

    def done(self, now: float, seconds: float, size: int) -> None:
        """A range of ``size`` bytes came, and took so long."""
        self.ranges += 1
        self.bytes += size
        if self._skip:
            self._skip -= 1
            self._next(now)
            return
        self._count += 1
        self._size += size
        self._latency_s += seconds
        if now - self._began >= EPOCH_S and self._count >= max(EPOCH_RANGES, 2 * self.window):
            window = self.window
            if self._full:  # else what is asked limits the throughput, and not the window
                self._judge(self._size / (now - self._began), self._latency_s / self._count)
            self._skip = window if self.window != window else 0
            self._next(now)

    def busy(self, now: float) -> None:
        """The remote refused for want of room (503, too many connections)."""
        if now - self._busy_at < BUSY_PAUSE_S:
            return
        self._busy_at = now
        self.window = max(1, self.window // 2)
        self._before, self._hold, self._patience = None, 2, 2
        self._next(now)

    def _next(self, now: float) -> None:
        self._began, self._count, self._size, self._latency_s, self._full = now, 0, 0, 0.0, False

    def _judge(self, rate: float, latency_s: float) -> None:
        best = self._best
        self._best = max(rate, best * FORGET)
        if self._before is not None:
            window, before = self._before
            self._before = None
            if rate >= (before * GAIN if self.window > window else best * LOSS):
                self._patience = 2
            else:
                self.window = window
                self._hold, self._patience = self._patience, min(HOLD_MAX, self._patience * 2)
        elif self._hold:
            self._hold -= 1
        elif latency_s > SLOW_S and self.window > 1:
            self._before = self.window, rate
            self.window = max(1, self.window * 3 // 4)
        elif self.window < self.lanes:
            self._before = self.window, rate
            self.window = min(self.lanes, self.window + max(1, self.window // 4))
