"""The daemon's configuration: one TOML file, ``SMPD_SECTION_KEY`` overrides, defaults from the environment.

This module reads and checks; it creates nothing. No key holds a secret: secrets are named as files or systemd
credentials. ``docs/reference/configuration.md`` documents each key and is tested against :data:`SECTIONS`.
"""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from smp_proto.errors import UsageError
from smpd.host.credentials import check_secret
from smpd.host.places import default_file, default_paths
from smpd.links.webhook import check_url
from smpd.schedules import check_times

MIB = 1 << 20
ENV_PREFIX = "SMPD_"
CLIENT_VARIABLE = "SMPD_SOCKET"  # where smpctl looks for us; whoever has it set can still start a daemon
CREDENTIAL_NAME = "smpd.key"
_LISTS = ("compute.processors", "limits.times", "notify.command")
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


T = TypeVar("T", bound="Section")


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
    requests_per_s: Annotated[float, Meta(gt=0, le=1e6)] = 200.0
    requests_burst: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    stall_s: Seconds = 10.0


class Fetch(Section, frozen=True):
    """The processes that speak to remotes, and the ring they fill."""

    processes: Few = 2
    slots: Annotated[int, Meta(ge=2, le=1024)] = 16
    slot_bytes: Annotated[int, Meta(ge=MIB, le=256 * MIB, multiple_of=MIB)] = 8 * MIB
    connections: Few = 8
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

    running_max: Few = 8
    unfinished_user_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    attempts: Annotated[int, Meta(ge=1, le=100)] = 4
    backoff_base_s: Seconds = 2.0
    backoff_max_s: Seconds = 60.0
    remote_wait_s: Seconds = 86_400.0
    stuck_s: Seconds = 900.0
    drain_s: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    ended_kept: Annotated[int, Meta(ge=1000, le=100_000_000)] = 100_000


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


def load_config(path: str | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read, merge and check the configuration: overrides, then the file, then the defaults.

    Raises:
        UsageError: ``bad_config``, with a message that names the key and where it was set.
    """
    keys = known_keys()
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    permissions: dict[str, Permission] = {}
    remote_limits: dict[str, RemoteLimits] = {}
    for key, value, origin in (*_from_file(path, environ), *_from_environ(environ)):
        if key.startswith(f"{PERMISSIONS}."):
            permissions[key.partition(".")[2]] = _table(key, value, Permission, Table, origin)
            continue
        if key.startswith(f"{LIMITS}.") and isinstance(value, dict):
            remote_limits[key.partition(".")[2]] = _table(key, value, RemoteLimits, RemoteName, origin)
            continue
        if key not in keys:
            raise _bad(f"{origin} sets {key}, which is not known", _nearest(key, keys))
        values[key] = _typed(key, value, keys[key], origin)
        origins[key] = origin
    for key, value in _from_surroundings(environ, values).items():
        values.setdefault(key, value)
        origins.setdefault(key, "environment")
    sections: dict[str, Any] = {}
    for name, kind in SECTIONS.items():
        given = {f.name: values.get(f"{name}.{f.name}", msgspec.UNSET) for f in msgspec.structs.fields(kind)}
        sections[name] = kind(**{key: value for key, value in given.items() if value is not msgspec.UNSET})
    config = Config(
        **sections,
        origins={key: origins.get(key, "default") for key in keys},
        permissions=permissions,
        remote_limits=remote_limits,
        file=os.path.abspath(found) if os.path.exists(found := path or default_file(environ)) else "",
    )
    _check(config, environ)
    check_times(config.limits.zone, {LIMITS: config.limits.times, **_times(remote_limits)})
    return config


def check_config(config: Config) -> str:
    """The effective values, as TOML, with a comment on each that says where it came from."""
    lines: list[str] = []
    for name, kind in SECTIONS.items():
        lines.append(f"[{name}]")
        section = getattr(config, name)
        for field in msgspec.structs.fields(kind):
            value = msgspec.json.encode(getattr(section, field.name)).decode()
            lines.append(f"{field.name} = {value}  # {config.origins[f'{name}.{field.name}']}")
        lines.append("")
    tables: dict[str, Section] = {f"{PERMISSIONS}.{name}": table for name, table in config.permissions.items()}
    tables |= {f"{LIMITS}.{name}": table for name, table in config.remote_limits.items()}
    for name, table in tables.items():
        lines.append(f"[{name}]")
        fields = msgspec.structs.asdict(table).items()
        lines += [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in fields]
        lines.append("")
    return "\n".join(lines)


def _from_file(path: str | None, environ: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    source = path or default_file(environ)
    try:
        with open(source, "rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        if path is None:
            return
        raise _bad(f"the configuration {source} does not exist", "check the path after --config") from None
    except OSError as error:
        raise _bad(f"the configuration {source} cannot be read: {error.strerror}", "check its permissions") from None
    except (ValueError, RecursionError) as error:  # also of text that is no UTF-8, and of a number of 5000 digits
        raise _bad(f"the configuration {source} is no TOML: {error}", "mend the line named") from None
    for name, section in table.items():
        if name not in SECTIONS and name != PERMISSIONS:
            known = {**SECTIONS, PERMISSIONS: Permission}
            raise _bad(f"{source} has a section [{name}], which is not known", _nearest(name, known))
        if not isinstance(section, dict):
            raise _bad(f"{source} sets {name} to a value; it is a section", f"write [{name}] and its keys below it")
        yield from ((f"{name}.{key}", value, source) for key, value in section.items())


def _from_environ(environ: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    names = {ENV_PREFIX + key.replace(".", "_").upper(): key for key in known_keys()}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX) or variable == CLIENT_VARIABLE:
            continue
        if variable not in names:
            raise _bad(f"the environment sets {variable}, which is not known", _nearest(variable, names))
        key = names[variable]
        value = [part.strip() for part in text.split(",") if part.strip()] if key in _LISTS else text
        yield key, value, variable


def _table(key: str, value: Any, kind: type[T], name: Any, origin: str) -> T:
    """What a table ``[SECTION.NAME]`` says."""
    section, _, given = key.partition(".")
    if not isinstance(value, dict):
        raise _bad(f"{origin} sets {key} to a value; it is a table", f"write [{section}.NAME] and its keys below it")
    _typed(key, given, name, origin)
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    for field in value:
        if field not in fields:
            raise _bad(f"{origin} sets {key}.{field}, which is not known", _nearest(field, fields))
    table: T = _typed(key, value, kind, origin)
    if isinstance(table, Permission) and not table.groups and not table.users:
        raise _bad(f"{key} in {origin} names nobody", "write groups = [...] or users = [...]")
    return table


def _typed(key: str, value: Any, kind: Any, origin: str) -> Any:
    try:
        return msgspec.convert(value, kind, strict=not origin.startswith(ENV_PREFIX))
    except msgspec.ValidationError as error:
        raise _bad(
            f"{key} in {origin}: {str(error).split(' - at')[0]}", "see docs/reference/configuration.md"
        ) from None


def _from_surroundings(environ: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, str]:
    paths = default_paths(environ)
    runtime = values.get("paths.runtime", paths["runtime"])
    found = {f"paths.{key}": value for key, value in paths.items()}
    found["paths.socket"] = os.path.join(runtime, "smpd.sock")
    credential = os.path.join(environ.get("CREDENTIALS_DIRECTORY", ""), CREDENTIAL_NAME)
    if os.path.isabs(credential) and os.path.exists(credential) and "keys.passphrase_file" not in values:
        found["keys.credential_file"] = credential
    return found


def _check(config: Config, environ: Mapping[str, str]) -> None:
    paths = [(f"{s}.{k}", v) for s in ("paths", "keys") for k, v in msgspec.structs.asdict(getattr(config, s)).items()]
    notify = config.notify
    paths += [("notify.header_file", notify.header_file), ("notify.ca_file", notify.ca_file)]
    for key, value in [*paths, *(("notify.command", program) for program in notify.command[:1])]:
        if "\0" in value or (value and not os.path.isabs(value)):
            raise _bad(f"{key} is {value!r}", "write an absolute path")
    for key, path in (("paths.socket", config.paths.socket), ("compute.socket", config.compute.socket)):
        if len(os.fsencode(path)) > 107:
            raise _bad(f"{key} is longer than the 107 bytes of unix(7)", "choose a shorter path")
    if config.jobs.backoff_max_s < config.jobs.backoff_base_s:
        raise _bad("jobs.backoff_max_s is less than jobs.backoff_base_s", "raise the first or lower the second")
    if config.fetch.probe_max_s < config.fetch.probe_s:
        raise _bad("fetch.probe_max_s is less than fetch.probe_s", "raise the first or lower the second")
    if config.control.connections_user_max > config.control.connections_max:
        raise _bad("control.connections_user_max is more than control.connections_max", "lower it")
    if len(set(config.compute.processors)) != len(config.compute.processors):
        raise _bad("compute.processors names a processor twice", "name each once")
    if config.keys.credential_file and config.keys.passphrase_file:
        raise _bad("keys.credential_file and keys.passphrase_file are both set", "keep the one that is in use")
    _check_webhook(notify)
    for path in (config.keys.credential_file, config.keys.passphrase_file, notify.header_file):
        if path:
            check_secret(path, environ)


def _check_webhook(notify: Notify) -> None:
    if notify.url:
        check_url(notify.url, plain_http=notify.plain_http)
    elif notify.header_file or notify.ca_file:
        raise _bad("notify.header_file or notify.ca_file is set, and notify.url is not", "set notify.url, or neither")


def _times(tables: Mapping[str, RemoteLimits]) -> dict[str, tuple[str, ...]]:
    return {f"{LIMITS}.{name}": table.times for name, table in tables.items()}


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "see docs/reference/configuration.md"


def _bad(message: str, hint: str) -> UsageError:
    return UsageError("bad_config", message, hint=hint)
