"""A job as it was read, what it is pinned to, and how far it is."""

import base64
import os
import time
from collections.abc import Callable

import msgspec

from smp_proto.control import AnyJobSpec, JobState, JobView, Priority, Result, Transfer
from smp_proto.errors import ErrorBody
from smpd.jobs.timeline import Stages, added, shown

_BYTES_MAX = (1 << 63) - 1  # SQLite's largest integer


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it was when read.

    Args:
        id: 16 characters, sorted by time for people only.
        number: order of submission.
        owner: ``uid:label`` of who submitted it.
        created, updated: seconds since the epoch, for display only.
        attempt: which try this is, from 1; 0 before the first.
        delay: seconds of the last backoff.
        due: when a waiting job is due, on the system's monotonic clock.
        error: why it is waiting, failed or quarantined.
        stages: where its time went.
        first: the attempt that has just begun is known to be its first, so that there is nothing of an earlier one.
    """

    id: str
    number: int
    spec: AnyJobSpec
    state: JobState
    priority: Priority
    owner: str
    created: float
    updated: float
    attempt: int = 0
    delay: float = 0.0
    due: float = 0.0
    total_bytes: int = 0
    done_bytes: int = 0
    phase: str = ""
    error: ErrorBody | None = None
    result: Result | None = None
    transfer: Transfer = msgspec.field(default_factory=Transfer)
    stages: Stages = ()
    first: bool = False


class Source(msgspec.Struct, frozen=True):
    """What a job is pinned to: the object may not change between its attempts.

    Args:
        pin: as in ``ObjectInfo.pin``.
        size: bytes of the object.
        envelope: the tail of a sealed object, once it was fetched and verified.
    """

    pin: str
    size: int
    envelope: bytes | None = None


class Progress:
    """How far a running job is. Its runner calls this on the event loop; ``changed`` announces it.

    ``transfer`` is what this attempt moved; the runner counts it up.
    """

    def __init__(self, job: Job, changed: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.total_bytes = job.total_bytes
        self.done_bytes = job.done_bytes
        self.phase = job.phase
        self.transfer = Transfer()
        self._changed = changed
        self._clock = clock
        self._began = clock() - (job.updated - job.created)  # the submission, on this clock
        self._stages: list[tuple[str, float]] = [("prepare", clock())]

    def of(self, job: Job) -> Job:
        """The job with this progress; in any thread."""
        return msgspec.structs.replace(
            job,
            total_bytes=self.total_bytes,
            done_bytes=self.done_bytes,
            phase=self.phase,
            transfer=_sum(job.transfer, self.transfer),
            stages=self._with_stages(job.stages),
        )

    def stage(self, name: str) -> None:
        """What the attempt is at from now on."""
        self._stages.append((name, self._clock()))

    def _with_stages(self, stages: Stages) -> Stages:
        told = tuple(self._stages)  # the event loop may add to it while a thread is here
        ends = [*(begin for _, begin in told[1:]), self._clock()]
        for (name, begin), end in zip(told, ends, strict=True):
            stages = added(stages, name, begin - self._began, end - self._began)
        return stages

    def update(
        self, *, total_bytes: int | None = None, done_bytes: int | None = None, phase: str | None = None
    ) -> None:
        """Set what is given."""
        if total_bytes is not None:
            self.total_bytes = _bounded(total_bytes)
        if done_bytes is not None:
            self.done_bytes = _bounded(done_bytes)
        if phase is not None:
            self.phase = phase
            self.stage(phase)
        self._changed()

    def advance(self, count: int) -> None:
        """Add ``count`` bytes to those done."""
        self.update(done_bytes=self.done_bytes + count)


def _bounded(count: int) -> int:
    """A count that the database can hold: what is added up here comes from servers and workers."""
    return min(max(count, 0), _BYTES_MAX)


def new_job_id(now: float) -> str:
    """Return 16 characters of ``[0-9a-v]``: 32 bits of seconds, 48 random bits."""
    return base64.b32hexencode((int(now) & 0xFFFFFFFF).to_bytes(4, "big") + os.urandom(6)).decode().lower()


def view(job: Job) -> JobView:
    """Return the job as shown."""
    return JobView(
        kind=str(job.spec.__struct_config__.tag),
        source=getattr(job.spec, "source", ""),
        target=getattr(job.spec, "target", ""),
        processor=getattr(job.spec, "processor", ""),
        retry_at=job.updated + job.delay if job.state == "waiting" else 0.0,
        stages=shown(job.stages),
        **{name: getattr(job, name) for name in _SHOWN},
    )


def _sum(before: Transfer, added: Transfer) -> Transfer:
    return Transfer(
        fetched_bytes=before.fetched_bytes + added.fetched_bytes,
        resumed_bytes=before.resumed_bytes + added.resumed_bytes,
        seconds=before.seconds + added.seconds,
        device=added.device or before.device,
    )


_SHOWN = tuple(name for name in Job.__struct_fields__ if name in JobView.__struct_fields__ and name != "stages")
