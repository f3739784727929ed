"""The wall clock beside one that nobody sets."""

import time


class Clock:
    """Notices when the wall clock is set.

    CLOCK_BOOTTIME goes on while the machine sleeps and is slewed as the wall clock is (clock_gettime(2)), so any change
    between the two is a step.
    """

    def __init__(self) -> None:
        self._begun = _ahead()

    def moved_s(self) -> float:
        """By how many seconds the wall clock was set forward since this was made; less than 0, if back."""
        return _ahead() - self._begun


def _ahead() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
