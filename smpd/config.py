"""The daemon's configuration: which keys there are, of which types, with which defaults.

No key holds a secret: secrets are named as files or systemd credentials. ``docs/reference/configuration.md`` documents
each key and is tested against :data:`SECTIONS`; :mod:`smpd.configuring` reads them.
"""

import os
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MIB = 1 << 20
BUILT_IN_PROCESSORS = ("digest", "tensor.stats", "image.resize", "image.blur", "image.sharpen", "image.edges")

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Few = Annotated[int, Meta(ge=1, le=64)]
Count = Annotated[int, Meta(ge=1, le=4096)]
Group = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{0,32}$")]
# Of a group or a user of a directory service, which may hold a domain and spaces.
Account = Annotated[str, Meta(pattern=r"^[^\x00-\x1f:/]{1,128}$")]
RemoteName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Table = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
RemoteNames = tuple[Annotated[str, Meta(pattern=r"^([a-z0-9][a-z0-9._-]{0,63})?\*?$", min_length=1)], ...]
ProcessorNames = tuple[Annotated[str, Meta(pattern=r"^[^*]{0,128}\*?$", min_length=1)], ...]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the sections."""


class Paths(Section, frozen=True):
    """Where things are. Absolute; the defaults depend on who runs the daemon (:mod:`smpd.host.places`)."""

    state: str = ""
    runtime: str = ""
    socket: str = ""


class Space(Section, frozen=True):
    """What ordinary work leaves free of the state's disk, for the journal and the audit log."""

    reserve_bytes: Annotated[int, Meta(ge=MIB, le=1 << 40)] = 64 * MIB


class Control(Section, frozen=True):
    """Who may ask for what, and how much one caller may hold."""

    viewer_group: Group = "smpd"
    operator_group: Group = "smpd-operator"
    admin_group: Group = "smpd-admin"
    socket_mode: Annotated[str, Meta(pattern="^0[67][0-7]0$")] = "0660"
    connections_max: Count = 64
    connections_user_max: Count = 16
    requests_max: Annotated[int, Meta(ge=1, le=256)] = 64
    watches_user_max: Count = 256
    requests_per_s: Annotated[float, Meta(gt=0, le=1e6)] = 200.0
    requests_burst: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    stall_s: Seconds = 10.0


class Fetch(Section, frozen=True):
    """The processes that speak to remotes, and the ring they fill. ``processes`` is of each remote, at most."""

    processes: Few | Literal["auto"] = "auto"
    slots: Annotated[int, Meta(ge=2, le=1024)] = 16
    slot_bytes: Annotated[int, Meta(ge=MIB, le=256 * MIB, multiple_of=MIB)] = 8 * MIB
    connections: Few = 64
    idle_s: Seconds = 300.0
    connect_s: Seconds = 10.0
    login_s: Seconds = 30.0
    stall_s: Seconds = 30.0
    rate_min: Annotated[int, Meta(ge=0, le=MIB)] = 256
    window_s: Seconds = 60.0
    answer_s: Seconds = 120.0
    breaker_failures: Count = 5
    probe_s: Seconds = 1.0
    probe_max_s: Seconds = 60.0

    @property
    def processes_max(self) -> int:
        """``processes``, or a quarter of the cores, from 2 to 8: the others open, and run the processors."""
        cores = len(os.sched_getaffinity(0))
        return max(2, min(8, cores // 4)) if self.processes == "auto" else self.processes


class Compute(Section, frozen=True):
    """The processes that hold the device. ``memory_bytes`` 0 means no limit, ``auto`` a share of the machine's.

    ``start`` is ``spawn``, or ``socket`` to have them started by systemd, as another user.
    """

    device: Annotated[str, Meta(pattern=r"^(auto|cpu|mps|(cuda|rocm|xpu)(:\d{1,2})?)$")] = "auto"
    sandbox: Literal["auto", "required", "off"] = "auto"
    start: Literal["spawn", "socket"] = "spawn"
    socket: Annotated[str, Meta(pattern=r"^/[^\0]+$")] = "/run/smpd-compute.sock"
    processors: tuple[Annotated[str, Meta(min_length=1, max_length=128)], ...] = BUILT_IN_PROCESSORS
    timeout_s: Seconds = 600.0
    memory_bytes: Annotated[int, Meta(ge=0, le=1 << 46)] | Literal["auto"] = "auto"
    kept_bytes: Annotated[int, Meta(ge=0, le=1 << 46)] | Literal["auto"] = "auto"
    leak_bytes: Annotated[int, Meta(ge=0, le=1 << 46)] = 64 * MIB
    leak_runs: Annotated[int, Meta(ge=2, le=1000)] = 16
    slots: Annotated[int, Meta(ge=2, le=1024)] = 16
    result_slots: Annotated[int, Meta(ge=2, le=1024)] = 4
    idle_s: Seconds = 900.0
    probe: Literal["auto", "start", "use"] = "auto"


class Jobs(Section, frozen=True):
    """How many jobs run at once, how failed ones are tried again, and how many that are over are kept."""

    running_max: Few = 16
    unfinished_user_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    syncs_user_max: Count = 64
    attempts: Annotated[int, Meta(ge=1, le=100)] = 4
    backoff_base_s: Seconds = 2.0
    backoff_max_s: Seconds = 60.0
    remote_wait_s: Seconds = 86_400.0
    stuck_s: Seconds = 900.0
    drain_s: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    ended_kept: Annotated[int, Meta(ge=1000, le=100_000_000)] = 100_000
    gone_kept: Annotated[int, Meta(ge=1000, le=100_000_000)] = 100_000


class Quarantine(Section, frozen=True):
    """What is kept of refused objects, and of how many locations it is remembered what was accepted there."""

    max_bytes: Annotated[int, Meta(ge=0, le=1 << 46)] = 10 * 1024 * MIB
    remembered: Annotated[int, Meta(ge=1000, le=100_000_000)] = 1_000_000


class Keys(Section, frozen=True):
    """What unlocks the identity: files, never the secret itself."""

    credential_file: str = ""
    passphrase_file: str = ""


class Audit(Section, frozen=True):
    """When a checkpoint is signed: after so many records or so many seconds, whichever is first."""

    checkpoint_records: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    checkpoint_s: Seconds = 60.0


class Notify(Section, frozen=True):
    """What tells somebody what is wrong, a command, a webhook or both: how often at most, and how long it may take."""

    command: tuple[Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\0]+$")], ...] = ()
    url: str = ""
    plain_http: bool = False
    header_file: str = ""
    ca_file: str = ""
    every_s: Seconds = 300.0
    timeout_s: Seconds = 30.0


class Log(Section, frozen=True):
    """The daemon's log, on standard error. ``auto`` is ``console`` on a terminal and ``json`` elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class RemoteLimits(Section, frozen=True):
    """A table ``[limits.NAME]``: how fast one remote may be asked, and when not at all. 0 is no limit."""

    bytes_per_s: Annotated[int, Meta(ge=0, le=1 << 46)] = 0
    requests_per_s: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    times: tuple[str, ...] = ()


class Limits(RemoteLimits, frozen=True):
    """How fast all remotes together may be asked, and whose clocks ``times`` are of: an IANA name, or the system's."""

    zone: str = ""


class Permission(Section, frozen=True):
    """A table ``[permissions.NAME]``: what its groups and users may use. What is left out is not permitted."""

    groups: tuple[Account, ...] = ()
    users: tuple[Account, ...] = ()
    read: RemoteNames = ()
    list: RemoteNames = ()
    write: RemoteNames = ()
    run: ProcessorNames = ()
    jobs: Literal["own", "all"] = "own"


class Config(msgspec.Struct, frozen=True):
    """The effective configuration. ``origins`` says of each ``section.key`` where it came from; ``file`` was read."""

    paths: Paths
    space: Space
    control: Control
    fetch: Fetch
    compute: Compute
    jobs: Jobs
    quarantine: Quarantine
    keys: Keys
    audit: Audit
    notify: Notify
    log: Log
    origins: dict[str, str]
    permissions: dict[str, Permission] = {}
    limits: Limits = Limits()
    remote_limits: dict[str, RemoteLimits] = {}
    file: str = ""


PERMISSIONS = "permissions"
LIMITS = "limits"
SECTIONS: dict[str, type[Section]] = {
    "paths": Paths,
    "space": Space,
    "control": Control,
    "fetch": Fetch,
    "compute": Compute,
    "jobs": Jobs,
    "quarantine": Quarantine,
    "keys": Keys,
    "audit": Audit,
    "notify": Notify,
    "log": Log,
    "limits": Limits,
}


def known_keys() -> dict[str, Any]:
    """Every ``section.key`` with its type."""
    return {f"{name}.{f.name}": f.type for name, kind in SECTIONS.items() for f in msgspec.structs.fields(kind)}
