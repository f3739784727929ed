"""Reading the configuration: one TOML file, ``SMPD_SECTION_KEY`` overrides, defaults from the environment.

This module reads and checks; it creates nothing.
"""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from smp_proto.errors import UsageError
from smpd.config import (
    LIMITS,
    PERMISSIONS,
    SECTIONS,
    Config,
    Notify,
    Permission,
    RemoteLimits,
    RemoteName,
    Section,
    Table,
    known_keys,
)
from smpd.host.credentials import check_secret
from smpd.host.places import default_file, default_paths
from smpd.links.webhook import check_url
from smpd.schedules import check_times

ENV_PREFIX = "SMPD_"
CLIENT_VARIABLE = "SMPD_SOCKET"  # where smpctl looks for us; whoever has it set can still start a daemon
CREDENTIAL_NAME = "smpd.key"
_LISTS = ("compute.processors", "limits.times", "notify.command")
T = TypeVar("T", bound=Section)


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
        wanted, _, path = str(error).partition(" - at `$")
        words = " or ".join(f'"{word}"' for word in _words(kind)) if wanted.startswith("Invalid enum value") else ""
        hint = f"write {words}" if words else "see docs/reference/configuration.md"
        raise _bad(f"{key}{path.rstrip('`')} in {origin}: {wanted}", hint) from None


def _words(kind: Any) -> list[str]:
    """The words that a key of this type takes."""
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    return [word for part in get_args(kind) for word in _words(part)]


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
        unset = not value and not key.startswith("paths.")  # those have a place by default, and none is no place
        if "\0" in value or not (unset or os.path.isabs(value)):
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
