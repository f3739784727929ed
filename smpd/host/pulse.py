"""Whether something moves, seen from outside: marks that change as long as it does. Pure; the clock is the caller's."""

from collections.abc import Callable


class Pulse:
    """How long nothing has moved.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._marks: object = None
        self._since = clock()

    def still_s(self, marks: object, *, busy: bool) -> float:
        """Seconds since anything moved, or since there was nothing to do.

        Args:
            marks: other than the last ones if something moved since.
            busy: whether there is something that ought to move.
        """
        now = self._clock()
        if not busy or marks != self._marks:
            self._marks, self._since = marks, now
        return now - self._since
