"""Jobs that wait for what is not their own fault: room on this box, or a remote that is down. No attempt is counted.

For the box's own trouble a job waits as long as it takes; for a remote at most so long, since it may never come back.
"""

import math
import random
from collections.abc import Callable
from typing import NamedTuple

from smp_proto.errors import ErrorBody, SmpError
from smpd.jobs.job import Job

# The box's own trouble, which passes.
PATIENT_CODES = frozenset({"disk_full", "audit_unwritable", "audit_broken", "program_replaced"})
LOOK_AGAIN_S = 1.0
LOOKS_PER_S = 200.0  # of all that wait together: a look opens a job's record, and costs a fifth of a millisecond


class Short(NamedTuple):
    """How many jobs wait for room on this box, and for how many bytes as far as that is known."""

    jobs: int
    bytes: int


def is_held(error: SmpError | ErrorBody) -> bool:
    """Whether an error says that a remote was not even asked: it is down, or pauses."""
    return "held" in error.details


class Holding:
    """Who waits for a remote, and since when; and who for room.

    Args:
        limit_s: how long at most.
        clock: the monotonic clock.
        on_short: is told of each job that waits for room, also of those that did at the start.

    Attributes:
        short: those that wait for room; kept, since there may be very many.
    """

    def __init__(
        self, limit_s: float, clock: Callable[[], float], on_short: Callable[[Job], None] = lambda job: None
    ) -> None:
        self.limit_s = limit_s
        self._on_short = on_short
        self._clock = clock
        self._since: dict[str, float] = {}
        self._needed: dict[str, int] = {}
        self.short = Short(0, 0)

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

    def next_look(self, error: SmpError | ErrorBody, now: float, waiting: int, rng: random.Random) -> float:
        """The same as a time, for one of so many that wait: however long they do, it takes a small part of one core."""
        spread_s = rng.uniform(0.0, 2.0 * waiting / LOOKS_PER_S)
        soon_s = self.again_s(error)
        return now + soon_s if spread_s <= soon_s else math.ceil(now + spread_s)  # many are looked at together

    def held(self) -> tuple[str, ...]:
        """The jobs that wait for a remote."""
        return tuple(self._since)

    def note(self, job: Job) -> None:
        """A job without a slot is as it is now: see whether it waits for room."""
        self._forget_room(job.id)
        if job.state == "waiting" and job.error is not None and job.error.code == "disk_full":
            needed = self._needed[job.id] = int(job.error.details.get("needed_bytes", 0))
            self.short = Short(len(self._needed), self.short.bytes + needed)
            self._on_short(job)
        if job.state not in ("queued", "waiting"):
            self.forget(job.id)

    def forget(self, job_id: str) -> None:
        """It waits no more."""
        self._since.pop(job_id, None)
        self._forget_room(job_id)

    def _forget_room(self, job_id: str) -> None:
        needed = self._needed.pop(job_id, None)
        if needed is not None:
            self.short = Short(len(self._needed), self.short.bytes - needed)
