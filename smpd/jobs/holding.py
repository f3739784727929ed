"""Jobs that wait for what is not their own fault: room on this box, or a remote that is down. No attempt is counted.

For the box's own trouble a job waits as long as it takes; for a remote at most so long, since it may never come back.
"""

from collections.abc import Callable

from smp_proto.errors import ErrorBody, SmpError

# The box's own trouble, which passes.
PATIENT_CODES = frozenset({"disk_full", "audit_unwritable", "audit_broken"})
LOOK_AGAIN_S = 1.0


def is_held(error: SmpError | ErrorBody) -> bool:
    """Whether an error says that a remote was not even asked: it is down, or pauses."""
    return "held" in error.details


class Holding:
    """Who waits for a remote, and since when.

    Args:
        limit_s: how long at most.
        clock: the monotonic clock.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float]) -> None:
        self.limit_s = limit_s
        self._clock = clock
        self._since: dict[str, float] = {}

    def waits(self, job_id: str, error: SmpError | ErrorBody) -> bool:
        """Whether a job is to wait, without an attempt, for what an error says to pass."""
        if not is_held(error):
            return error.code in PATIENT_CODES
        now = self._clock()
        if error.code == "quiet_hours":  # they end, however long they are
            self._since[job_id] = now
            return True
        return now - self._since.setdefault(job_id, now) < self.limit_s

    @staticmethod
    def again_s(error: SmpError | ErrorBody) -> float:
        """When to look again, in seconds."""
        asked = error.details.get("retry_after", 0.0) if is_held(error) else 0.0
        return max(LOOK_AGAIN_S, float(asked)) if isinstance(asked, int | float) else LOOK_AGAIN_S

    def held(self) -> tuple[str, ...]:
        """The jobs that wait for a remote."""
        return tuple(self._since)

    def forget(self, job_id: str) -> None:
        """It waits no more."""
        self._since.pop(job_id, None)
