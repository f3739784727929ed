"""Jobs: what one is to do, how it is submitted and shown, and the events that tell of it."""

from typing import Any, Literal

import msgspec

from smp_proto.control.base import Request
from smp_proto.errors import ErrorBody

Priority = Literal["low", "normal", "high", "critical"]


JobState = Literal["queued", "waiting", "running", "paused", "done", "failed", "quarantined", "cancelled"]


UNFINISHED_STATES: tuple[JobState, ...] = ("queued", "waiting", "running", "paused")
FINAL_STATES: frozenset[str] = frozenset({"done", "failed", "quarantined", "cancelled"})


class JobSpec(msgspec.Struct, tag_field="kind"):
    """Base of what a job is to do. Sources and targets are ``REMOTE:PATH``."""


class GetSpec(JobSpec, tag="get"):
    """Bring an object into the vault, sealed. In a ``standard`` remote a path ending in ``/`` is a whole folder.

    With a ``pin`` (of an ``ObjectInfo``) only that version of one object, else ``no_such_object``. ``accept_older``:
    also an object that is older than what was accepted at its location before.
    """

    source: str
    accept_older: bool = False
    pin: str = ""


class RunSpec(JobSpec, tag="run"):
    """Run a processor over an object's entries.

    The sealed results go to ``target``, or to the vault when it is empty. ``recipients`` are public keys as text;
    empty means the object's sender and this box. ``accept_older`` and ``pin`` are as of a GetSpec.
    """

    source: str
    processor: str
    params: dict[str, Any] = {}
    target: str = ""
    recipients: list[str] = []
    accept_older: bool = False
    pin: str = ""


class PutSpec(JobSpec, tag="put"):
    """Seal the files handed over and upload the bundle to ``target``. ``recipients`` are public keys as text.

    For each target in ``also``, at most 16, there is another job that uploads the same bundle: sealed once. The reply
    names them in ``also``.
    """

    target: str
    recipients: list[str]
    also: list[str] = []


AnyJobSpec = GetSpec | RunSpec | PutSpec


class Result(msgspec.Struct):
    """What a finished job delivered.

    One sealed object, at ``vault_id`` or at ``target``; or, of a get over a prefix, ``objects`` in the vault, each
    with this job's id in its ``VaultItem.job``.
    """

    object_id: str = ""
    vault_id: str = ""
    target: str = ""
    entries: int = 0
    plain_bytes: int = 0
    sealed_bytes: int = 0
    content_digest: str = ""
    objects: int = 1


class Transfer(msgspec.Struct):
    """What moved: for the closing table, the benches and the resume figures."""

    fetched_bytes: int = 0
    resumed_bytes: int = 0
    seconds: float = 0.0
    device: str = ""


class JobStage(msgspec.Struct):
    """A stage of a job: ``at`` seconds after its submission it began, and it took ``seconds``.

    ``queued``, ``waiting`` and ``paused`` are states. Of an attempt, ``prepare`` lasts until the first bytes are asked
    for, ``device`` is the wait for the compute process, ``fetch`` and ``open`` bring the data to it while it works,
    ``compute`` is what it takes after the last of it; ``seal``, ``deliver``, ``upload``, ``store`` are of the result.
    ``interrupted`` is what is not known of an attempt that a crash cut off.
    """

    name: str
    at: float
    seconds: float


class JobView(msgspec.Struct):
    """A job as shown. A list of jobs has ``stages`` of those that run alone."""

    id: str
    kind: str
    state: JobState
    priority: Priority
    source: str
    target: str
    processor: str
    owner: str
    created: float
    updated: float
    attempt: int = 0
    retry_at: float = 0.0
    total_bytes: int = 0
    done_bytes: int = 0
    phase: str = ""
    also: list[str] = []
    error: ErrorBody | None = None
    result: Result | None = None
    transfer: Transfer = msgspec.field(default_factory=Transfer)
    stages: list[JobStage] = msgspec.field(default_factory=list)


class Submit(Request, tag="submit"):
    """Accept a job. ``key`` makes it idempotent: the same key again returns the same job. Reply: JobView.

    For a PutSpec, DATA messages PutFile bring the files, each with its descriptor, and the last has ``last`` set;
    the reply comes when they are sealed in the spool.
    """

    job: AnyJobSpec
    key: str
    priority: Priority = "normal"


class PutFile(msgspec.Struct):
    """One file of a put: DATA from the client, with one descriptor open for reading."""

    name: str
    size: int
    media_type: str = ""
    last: bool = False


class Sealing(msgspec.Struct):
    """DATA to the client while a put seals its files: after each file, and within large ones.

    A client keeps at most 128 files ahead of ``done_files``: their descriptors wait, and a connection holds 256.
    """

    done_bytes: int
    done_files: int = 0


class JobsRequest(Request, tag="jobs"):
    """Reply: Jobs, newest first, at most ``limit`` and as many as fit one frame.

    With ``begins`` only those whose id begins so.
    """

    states: list[JobState] = msgspec.field(default_factory=list)
    limit: int = 100
    begins: str = ""


class Jobs(msgspec.Struct):
    """A list of jobs."""

    jobs: list[JobView]


class JobRequest(Request, tag="job"):
    """Reply: JobView."""

    id: str


class JobControl(Request, tag="job-control"):
    """Reply: JobView after the move. Errors: no_such_job, wrong_state."""

    id: str
    action: Literal["pause", "resume", "cancel"]


class Watch(Request, tag="watch"):
    """A snapshot of the jobs, then events, until cancelled. DATA: Event. Reply when every ``jobs`` is final: None.

    Args:
        since: resume after this sequence number; 0 asks for the snapshot. A number too old is ``lagged``.
        ago_s: without ``since``, no snapshot but what happened in the last so many seconds, as far as it is kept.
        jobs: only these; empty means all, and then the watch has no end of its own.
    """

    since: int = 0
    jobs: list[str] = msgspec.field(default_factory=list)
    ago_s: float = 0.0


class Event(msgspec.Struct):
    """Something that happened. ``kind`` is open: ``snapshot`` and ``job`` carry a JobView in ``body``, ``quarantine`` a
    QuarantineChange, ``remote`` a RemoteHealth: it went down, or came back.

    State changes are never left out; progress of one job is coalesced. ``at`` is when it happened, 0 for a snapshot.
    """

    seq: int
    kind: str
    body: msgspec.Raw = msgspec.Raw(b"\xc0")
    at: float = 0.0
