"""The messages of the control socket: what smpctl asks and what smpd answers.

Requests are a closed tagged union; events are an open record, so that an older client passes over kinds it
does not know. Bodies are msgpack maps; new fields always have defaults. Sizes are bytes, times are seconds
since the epoch (UTC) unless a name says otherwise.
"""

from typing import Any, Literal

import msgspec

from smp_proto.errors import ErrorBody

Role = Literal["viewer", "operator", "admin"]
Priority = Literal["low", "normal", "high", "critical"]
Mode = Literal["zero-knowledge", "standard", "streaming"]
JobState = Literal["queued", "waiting", "running", "paused", "done", "failed", "quarantined", "cancelled"]

FINAL_STATES: frozenset[str] = frozenset({"done", "failed", "quarantined", "cancelled"})


class Hello(msgspec.Struct):
    """The first frame each way. The daemon answers once the client's has come.

    ``error`` is set when the daemon will not serve this connection, which it then closes.
    """

    protocol_min: int
    protocol_max: int
    version: str
    boot_id: str = ""
    role: str = ""
    error: ErrorBody | None = None


# ── remotes ────────────────────────────────────────────────────────────────────────────────────────────


class RemoteConfig(msgspec.Struct, tag_field="kind"):
    """Base of the three kinds of remote."""


class S3Config(RemoteConfig, tag="s3"):
    """A bucket. ``endpoint`` empty means AWS; ``profile`` names one of the daemon user's AWS profiles.

    ``ca_pem`` are extra trusted certificates, as text, for a server with its own authority.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = "us-east-1"
    addressing: Literal["auto", "path", "virtual"] = "auto"
    profile: str = ""
    ca_pem: str = ""


class SftpConfig(RemoteConfig, tag="sftp"):
    """An SFTP server. ``known_hosts`` holds the lines that apply, as text: nothing is trusted on first use."""

    host: str
    user: str
    known_hosts: str
    port: int = 22
    root: str = ""
    use_agent: bool = False


class LocalConfig(RemoteConfig, tag="local"):
    """A folder of the daemon's machine. Only an admin adds one."""

    root: str


AnyRemoteConfig = S3Config | SftpConfig | LocalConfig


class RemoteSecret(msgspec.Struct, tag_field="kind"):
    """Base of the credentials; their repr shows nothing."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class S3Secret(RemoteSecret, tag="s3"):
    """An access key."""

    access_key: str
    secret_key: str
    session_token: str = ""

    __repr__ = RemoteSecret.__repr__


class SftpSecret(RemoteSecret, tag="sftp"):
    """A private key in OpenSSH or PEM form, with its passphrase if it has one, or a password."""

    private_key: str = ""
    passphrase: str = ""
    password: str = ""

    __repr__ = RemoteSecret.__repr__


AnyRemoteSecret = S3Secret | SftpSecret


class RemoteView(msgspec.Struct):
    """A remote as shown; whether it has a secret, never the secret."""

    name: str
    mode: Mode
    config: AnyRemoteConfig
    has_secret: bool


class ObjectInfo(msgspec.Struct):
    """An object of a remote. ``pin`` is ``etag:…`` or ``stat:SIZE:MTIME_NS``: what must not change in a job."""

    path: str
    size: int
    pin: str = ""
    modified: float = 0.0


# ── jobs ───────────────────────────────────────────────────────────────────────────────────────────────


class JobSpec(msgspec.Struct, tag_field="kind"):
    """Base of what a job is to do. Sources and targets are ``REMOTE:PATH``."""


class GetSpec(JobSpec, tag="get"):
    """Bring an object into the vault, sealed. In a ``standard`` remote a path ending in ``/`` is a whole folder."""

    source: str


class RunSpec(JobSpec, tag="run"):
    """Run a processor over an object's entries.

    The sealed results go to ``target``, or to the vault when it is empty. ``recipients`` are public keys as text;
    empty means the object's sender and this box.
    """

    source: str
    processor: str
    params: dict[str, Any] = {}
    target: str = ""
    recipients: list[str] = []


class PutSpec(JobSpec, tag="put"):
    """Seal the files handed over and upload the bundle to ``target``. ``recipients`` are public keys as text."""

    target: str
    recipients: list[str]


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


class JobView(msgspec.Struct):
    """A job as shown."""

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
    error: ErrorBody | None = None
    result: Result | None = None
    transfer: Transfer = msgspec.field(default_factory=Transfer)


# ── requests ───────────────────────────────────────────────────────────────────────────────────────────


class Request(msgspec.Struct, tag_field="op"):
    """Base of the requests."""


class StatusRequest(Request, tag="status"):
    """Reply: Status."""


class DoctorRequest(Request, tag="doctor"):
    """Check what this box can do; starts a compute process if none runs. Reply: Doctor."""


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
    """Reply: Jobs, newest first."""

    states: list[JobState] = []
    limit: int = 100


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
        jobs: only these; empty means all, and then the watch has no end of its own.
    """

    since: int = 0
    jobs: list[str] = []


class Event(msgspec.Struct):
    """Something that happened. ``kind`` is open: ``snapshot`` and ``job`` carry a JobView in ``body``.

    State changes are never left out; progress of one job is coalesced.
    """

    seq: int
    kind: str
    body: msgspec.Raw = msgspec.Raw(b"\xc0")


class RemoteAdd(Request, tag="remote-add"):
    """Keep a remote; its secret is sealed at rest. Reply: RemoteView. Errors: exists, bad_name."""

    name: str
    config: AnyRemoteConfig
    mode: Mode = "zero-knowledge"
    secret: AnyRemoteSecret | None = None


class RemoteList(Request, tag="remote-list"):
    """Reply: Remotes."""


class Remotes(msgspec.Struct):
    """All remotes."""

    remotes: list[RemoteView]


class RemoteTest(Request, tag="remote-test"):
    """Connect, authenticate, list. Reply: RemoteTested."""

    name: str


class RemoteTested(msgspec.Struct):
    """A remote that works, with what it said of itself."""

    name: str
    milliseconds: float
    facts: dict[str, str] = {}


class RemoteRemove(Request, tag="remote-remove"):
    """Forget a remote and its secret. Reply: None. Errors: no_such_remote, wrong_state while jobs use it."""

    name: str


class ListObjects(Request, tag="ls"):
    """DATA: Objects, in batches. Reply: None."""

    location: str
    recursive: bool = True


class Objects(msgspec.Struct):
    """A batch of a listing."""

    objects: list[ObjectInfo]


class VaultList(Request, tag="vault-list"):
    """What is kept, newest first, at most :data:`VAULT_PAGE` items. Reply: Vault.

    ``job``: only what this job brought. ``before``: go on after the item of this id.
    """

    job: str = ""
    before: str = ""


VAULT_PAGE = 1000  # items, which fit one frame


class VaultItem(msgspec.Struct):
    """A sealed object kept on this box. Its names are inside and sealed."""

    id: str
    object_id: str
    size: int
    entries: int
    sender: str
    created: float
    job: str


class Vault(msgspec.Struct):
    """All that the vault holds."""

    items: list[VaultItem]


class VaultEntries(Request, tag="vault-entries"):
    """The names inside one item, which opens its index. Reply: Entries. Audited."""

    id: str


class EntryView(msgspec.Struct):
    """One entry of a bundle."""

    name: str
    size: int
    sha256: str
    media_type: str
    attributes: dict[str, Any] = {}


class Entries(msgspec.Struct):
    """The entries of one bundle."""

    entries: list[EntryView]


class VaultOpen(Request, tag="vault-open"):
    """Open an item in the clear into files of the caller. Audited before the first byte. Reply: Entries.

    DATA messages OpenInto from the client bring one descriptor, open for writing, for each entry wanted.
    The whole object is verified before the reply; the caller keeps its files only then.
    """

    id: str


class OpenInto(msgspec.Struct):
    """Where one entry goes: DATA from the client, with one descriptor."""

    name: str
    last: bool = False


class VaultRemove(Request, tag="vault-remove"):
    """Delete an item. Reply: None. Audited."""

    id: str


class ProcessorsRequest(Request, tag="processors"):
    """Reply: Processors. Starts a compute process if none runs."""


class ProcessorInfo(msgspec.Struct):
    """A processor that is loaded. ``params`` is a JSON schema."""

    name: str
    accepts: str
    distribution: str
    summary: str
    group: bool = False
    stream: bool = False
    params: dict[str, Any] = {}


class Processors(msgspec.Struct):
    """All processors that are loaded."""

    processors: list[ProcessorInfo]


class TrustAdd(Request, tag="trust-add"):
    """Believe a sender from now on. Reply: TrustView. ``key`` is a public key as text."""

    name: str
    key: str
    prefixes: list[str] = []
    until: float = 0.0


class TrustList(Request, tag="trust-list"):
    """Reply: Trusted."""


class TrustView(msgspec.Struct):
    """A sender. ``prefixes`` are ``REMOTE:PREFIX``, empty for any; ``removed`` is set once it is a tombstone."""

    name: str
    key_id: str
    fingerprint: str
    added: float
    until: float = 0.0
    prefixes: list[str] = []
    removed: float = 0.0


class Trusted(msgspec.Struct):
    """The trust store, tombstones included."""

    senders: list[TrustView]


class TrustRemove(Request, tag="trust-remove"):
    """Stop believing a sender. Reply: TrustView."""

    name: str


class BoxKey(Request, tag="box-key"):
    """The public key of this box, to seal for it. Reply: PublicKey."""


class PublicKey(msgspec.Struct):
    """A public key as text, with its short form."""

    text: str
    key_id: str
    fingerprint: str


class AuditRead(Request, tag="audit-read"):
    """Records from ``since`` on, as stored. DATA: AuditLines. Reply: AuditProof."""

    since: int = 0
    last: int = 0


class AuditLines(msgspec.Struct):
    """Records as stored, one canonical JSON line each."""

    lines: list[bytes]


class AuditProof(msgspec.Struct):
    """What is needed to verify: all checkpoints (signed notes), and the log's public key and origin."""

    checkpoints: list[str]
    origin: str
    public_key: bytes


class Worker(msgspec.Struct):
    """A process of the daemon."""

    role: str
    pid: int
    label: str
    peak_rss_bytes: int
    restarts: int = 0
    state: str = "up"


class Status(msgspec.Struct):
    """What ``smpctl status`` shows."""

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


class Check(msgspec.Struct):
    """One line of ``doctor``."""

    name: str
    state: Literal["ok", "warn", "fail"]
    text: str
    hint: str = ""


class Doctor(msgspec.Struct):
    """What this box can and cannot do."""

    checks: list[Check]


AnyRequest = (
    StatusRequest
    | DoctorRequest
    | Submit
    | JobsRequest
    | JobRequest
    | JobControl
    | Watch
    | RemoteAdd
    | RemoteList
    | RemoteTest
    | RemoteRemove
    | ListObjects
    | VaultList
    | VaultEntries
    | VaultOpen
    | VaultRemove
    | ProcessorsRequest
    | TrustAdd
    | TrustList
    | TrustRemove
    | BoxKey
    | AuditRead
)
