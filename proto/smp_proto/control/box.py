"""The box itself: status, doctor, processors, the audit log."""

from typing import Any, Literal

import msgspec

from smp_proto.control.base import Request
from smp_proto.control.service import LimitView


class StatusRequest(Request, tag="status"):
    """Reply: Status."""


class Worker(msgspec.Struct):
    """A process of the daemon. A compute process has a ``device``, and ``slots`` for plaintext, some of them in use."""

    role: str
    pid: int
    label: str
    peak_rss_bytes: int
    restarts: int = 0
    state: str = "up"
    rss_bytes: int = 0
    device: str = ""
    slots: int = 0
    slots_in_use: int = 0


class RemoteLoad(msgspec.Struct):
    """What is under way with a remote: ``in_use`` ranges, at most ``window`` of ``lanes`` at once.

    ``ranges`` and ``bytes`` are those that came since the daemon began with this remote; a range that is begun now
    is ``range_bytes`` long at most.
    """

    name: str
    lanes: int
    window: int
    in_use: int
    ranges: int = 0
    bytes: int = 0
    range_bytes: int = 0


class RemoteHealth(msgspec.Struct):
    """Whether a remote in use can be asked: ``up``; ``paused``, because it asked for patience; or ``down``.

    One that failed too often in a row is ``down``: jobs wait for it, and it is tried again in ``next_try_s`` seconds.
    ``since_s`` is how long ago it went down or came back, 0 where it never did; ``code`` is of the last failure.
    """

    name: str
    state: Literal["up", "paused", "down"] = "up"
    since_s: float = 0.0
    code: str = ""
    failures: int = 0
    next_try_s: float = 0.0


class Status(msgspec.Struct):
    """What ``smpctl status`` and ``smpctl top`` show.

    Before the box's key there were ``retired_keys``, which still open.
    ``audit_unsigned`` records have no checkpoint yet; ``journal_waiting`` changes wait for the disk. Of the disk
    ``free_bytes`` are free, ``claimed_bytes`` of them set aside by running jobs, and beside them ``reserve_held_bytes``
    of a reserve of ``reserve_bytes`` are held; ``short_jobs`` wait for ``short_bytes``, as far as known. In quarantine
    are ``quarantine_items``, of which ``quarantine_bytes`` of ciphertext are kept, at most ``quarantine_max_bytes``.
    ``config_restart`` are keys of the configuration that were changed and need a restart, ``config_refused`` says why
    the configuration that was read last was not taken up. While it is ``stopping`` jobs may end and none is started.
    ``limits`` are those that hold now, of all remotes and of those that one may use.
    """

    version: str
    boot_id: str
    pid: int
    uptime_s: float
    role: str
    key_id: str
    fingerprint: str
    jobs: dict[str, int]
    remotes: list[str]
    workers: list[Worker]
    peak_rss_bytes: int
    audit_size: int
    audit_ok: bool
    vault_items: int
    free_bytes: int
    state_dir: str
    retired_keys: int = 0
    rss_bytes: int = 0
    ring_bytes: int = 0
    loads: list[RemoteLoad] = msgspec.field(default_factory=list)
    audit_unsigned: int = 0
    journal_waiting: int = 0
    reserve_bytes: int = 0
    reserve_held_bytes: int = 0
    claimed_bytes: int = 0
    short_jobs: int = 0
    short_bytes: int = 0
    health: list[RemoteHealth] = msgspec.field(default_factory=list)
    quarantine_items: int = 0
    quarantine_bytes: int = 0
    quarantine_max_bytes: int = 0
    config_restart: list[str] = msgspec.field(default_factory=list)
    config_refused: str = ""
    stopping: bool = False
    limits: list[LimitView] = msgspec.field(default_factory=list)


class DoctorRequest(Request, tag="doctor"):
    """Check what this box can do; starts a compute process if none runs. Reply: Doctor."""


class Check(msgspec.Struct):
    """One line of ``doctor``."""

    name: str
    state: Literal["ok", "warn", "fail"]
    text: str
    hint: str = ""


class Doctor(msgspec.Struct):
    """What this box can and cannot do."""

    checks: list[Check]


class ProcessorsRequest(Request, tag="processors"):
    """DATA: Processors. Reply: Processors. Starts a compute process if none runs.

    The reply has the last of them; those that do not fit come before it, as DATA.
    """


class ProcessorInfo(msgspec.Struct):
    """A processor that is listed. ``params`` is a JSON schema; ``trouble`` says why it could not be loaded."""

    name: str
    accepts: str
    distribution: str
    summary: str
    group: bool = False
    stream: bool = False
    params: dict[str, Any] = {}
    trouble: str = ""


class Processors(msgspec.Struct):
    """Processors that are listed and installed, or the next of them."""

    processors: list[ProcessorInfo]


class AuditRead(Request, tag="audit-read"):
    """Records from ``since`` on, as stored. DATA: AuditLines. Reply: AuditProof.

    Checkpoints that do not fit the reply come before it, as DATA: the client puts those of the reply after them. Who
    does not verify the log wants the ``newest`` alone.
    """

    since: int = 0
    last: int = 0
    newest: bool = False


class AuditRenew(Request, tag="audit-renew"):
    """Set an audit log that is broken aside, as it is, and begin a new one; ``reason`` is not blank.

    Reply: AuditRenewed.
    """

    reason: str = ""


class AuditRenewed(msgspec.Struct):
    """Where the old log is on the box, and what was last signed of it: records, and their root in hex."""

    path: str
    signed: int
    root: str


class AuditLines(msgspec.Struct):
    """Records as stored, one canonical JSON line each; or, after the last of them, checkpoints, oldest first."""

    lines: list[bytes]
    checkpoints: list[str] = []


class AuditProof(msgspec.Struct):
    """What is needed to verify: checkpoints (signed notes), and the log's origin, public key and earlier ones.

    As sent it has the newest of the checkpoints, which are all of them where no AuditLines brought some.
    ``broken`` says what the daemon itself found wrong with the log, against the checkpoint that it keeps apart.
    """

    checkpoints: list[str]
    origin: str
    public_key: bytes
    earlier_keys: list[bytes] = []
    broken: str = ""
