"""How many fetch processes of a remote take part, where all they do is to receive.

One alone keeps pace with what a few cores can open, and each one more takes its share of the caches and the cores. So
one begins, and another joins when those that take part have hardly any time left, or the line is so slow that their
lanes are too few. Pure arithmetic; the clocks are the caller's.
"""

from collections.abc import Sequence

LOOK_S = 0.5
LOOKS = 2  # in a row, since to start a process takes as much of a core as a GB does
PAUSE_S = 60.0  # without a range for so long, one begins again
AGAIN_S = 60.0  # between two tries to start one that does not come
FULL = 0.9  # of a core, for each that takes part: then one more joins
LONG_S = 0.25  # that a range takes: it is the line that is slow, and more lanes are worth a process


class Packing:
    """The processes of one remote that take part: those with the lowest numbers.

    Args:
        processes: how many there can be.
        least: how many begin.

    Attributes:
        used: how many they are.
    """

    def __init__(self, processes: int, least: int = 1) -> None:
        self._processes = processes
        self._least = least
        self.used = least
        self._full = 0  # looks in a row
        self._again_at = 0.0  # one that is starting, or could not, is not asked for again before
        self._at = 0.0
        self._spent: Sequence[float] = ()

    def due(self, now: float) -> bool:
        """Whether it is time to look. The first ranges after a pause say nothing of what comes."""
        if now - self._at > PAUSE_S:
            self.used = self._least
        return self._processes > self._least and now - self._at >= LOOK_S

    def look(self, now: float, spent: Sequence[float], *, lacking: bool = False) -> bool:
        """Judge whether one more pays.

        Args:
            spent: what each process that takes part has spent in all, in CPU seconds; one that is not there, none.
            lacking: ranges take :data:`LONG_S`, and more of them could be under way than there are lanes.

        Returns:
            Whether one more is to join, which is for the caller, who then says whether it did: see :meth:`joined`.
        """
        elapsed, before = now - self._at, self._spent
        self._at, self._spent = now, tuple(spent)
        if elapsed > 10 * LOOK_S or len(before) != len(spent):  # it was not looked at all the time, or others were
            return False
        cores = sum(max(0.0, after - earlier) for earlier, after in zip(before, spent, strict=True)) / elapsed
        self._full = self._full + 1 if lacking or cores >= FULL * self.used else 0
        if now < self._again_at or self.used == self._processes or self._full < LOOKS:
            return False
        self._again_at = now + AGAIN_S
        return True

    def joined(self, *, there: bool) -> None:
        """One more takes part now, if it is there."""
        if there:
            self.used = min(self._processes, self.used + 1)
            self._again_at, self._full = 0.0, 0
