"""The jobs that wait for a slot: by priority, then in the order in which they were submitted."""

import heapq

from smp_proto.control import Priority
from smpd.jobs.job import Job

RANKS: dict[Priority, int] = {"critical": 0, "high": 1, "normal": 2, "low": 3}
_STALE_MAX = 64  # entries beyond those that are of use


class Queue:
    """A queue that any job may leave at any time. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, str]] = []  # rank, number, id; some of them left
        self._jobs: dict[str, Priority] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Let a job wait."""
        self._jobs[job.id] = job.priority
        heapq.heappush(self._heap, (RANKS[job.priority], job.number, job.id))
        self._sweep()

    def discard(self, job_id: str) -> None:
        """Let a job wait no longer, if it does."""
        self._jobs.pop(job_id, None)
        self._sweep()

    @property
    def first(self) -> tuple[str, Priority] | None:
        """The job whose turn is next, and its priority; it stays."""
        while self._heap and self._heap[0][2] not in self._jobs:
            heapq.heappop(self._heap)
        job_id = self._heap[0][2] if self._heap else ""
        return (job_id, self._jobs[job_id]) if job_id else None

    def _sweep(self) -> None:
        # Behind one that waits for long those that left would never go by themselves.
        if len(self._heap) > 2 * len(self._jobs) + _STALE_MAX:
            self._heap = sorted({each for each in self._heap if each[2] in self._jobs})
