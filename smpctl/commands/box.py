"""The box itself: status, doctor, processors, and what is shown when nothing is asked."""

from typing import Any

import click
import msgspec

from smp_proto.control import Check, ProcessorInfo, Reloaded, Status, SyncView
from smp_proto.errors import DaemonError, NotFoundError
from smpctl.render import duration, facts, limit_line, plain, remote_health, size, state, sync_line, table
from smpctl.session import Session, verb

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


@verb()
def status(session: Session) -> None:
    """How the daemon is."""
    found = session.client.status()
    syncs = [] if session.as_json else session.client.syncs()
    session.show(found, lambda: _status(found, syncs))


def _quarantine(found: Status) -> str:
    """What was refused and waits for a person; nothing where there is none."""
    if not found.quarantine_items:
        return ""
    kept = f"{size(found.quarantine_bytes)} of at most {size(found.quarantine_max_bytes)}"
    return f"{found.quarantine_items} objects, {kept}: smpctl quarantine ls"


def _configuration(found: Status) -> str:
    """What of the configuration is not in effect; nothing where all is."""
    refused = f"REFUSED, the one before goes on: {found.config_refused}" if found.config_refused else ""
    restart = f"needs a restart: {', '.join(found.config_restart)}" if found.config_restart else ""
    return "; ".join(filter(None, (refused, restart)))


def _status(found: Status, syncs: list[SyncView]) -> None:
    before = f", {found.retired_keys} before it only open" if found.retired_keys else ""
    jobs = ", ".join(f"{count} {name}" for name, count in found.jobs.items() if count) or "none"
    facts(
        [
            ("smpd", f"{found.version}, process {found.pid}, up {duration(found.uptime_s)}"),
            ("", "STOPPING: jobs may end, none is started" if found.stopping else ""),
            ("you are", found.role),
            ("box key", found.fingerprint + before),
            ("jobs", jobs),
            ("remotes", ", ".join(found.remotes) or "none; add one with: smpctl remote add NAME URL"),
            ("vault", f"{found.vault_items} items"),
            ("quarantine", _quarantine(found)),
            ("disk", _disk(found)),
            ("audit", f"{found.audit_size} records, {'ok' if found.audit_ok else 'BROKEN: smpctl audit verify'}"),
            ("memory", f"{size(found.peak_rss_bytes)} at most"),
            ("configuration", _configuration(found)),
        ]
    )
    for each in found.health:
        if each.state != "up":
            click.echo(f"remote {remote_health(each)}")
    for limit in found.limits:
        click.echo(f"limit {limit_line(limit)}")
    for sync in syncs:
        click.echo(plain(f"sync {sync_line(sync)}"))
    if found.workers:
        click.echo()
        rows = [
            (
                worker.role,
                worker.label,
                str(worker.pid),
                worker.state,
                str(worker.restarts),
                size(worker.peak_rss_bytes),
                worker.device,
            )
            for worker in found.workers
        ]
        table(("worker", "for", "process", "state", "restarts", "memory", "device"), rows, right=(2, 4, 5))


def _disk(found: Status) -> str:
    text = f"{size(found.free_bytes)} free in {found.state_dir}"
    if found.reserve_bytes:
        text += f", {size(found.reserve_held_bytes)} of {size(found.reserve_bytes)} held in reserve"
    if found.claimed_bytes:
        text += f", {size(found.claimed_bytes)} claimed by running jobs"
    if found.short_jobs:
        text += f"; FULL: {found.short_jobs} jobs wait for {size(found.short_bytes)}: smpctl vault ls"
    return text


@verb()
def reload(session: Session) -> None:
    """Have the daemon read its configuration again. Jobs go on; what needs a restart is named.

    A configuration with a mistake is refused whole, and the one before goes on.
    """
    found = session.client.reload()
    session.show(found, lambda: _reloaded(found))


def _reloaded(found: Reloaded) -> None:
    click.echo(f"taken up: {', '.join(found.changed)}" if found.changed else "nothing to take up has changed")
    if found.restart:
        click.echo(f"needs a restart: {', '.join(found.restart)}")


@verb()
def doctor(session: Session) -> int:
    """What this box can and cannot do. Fails (exit code 8) when a check fails."""
    checks = session.client.doctor()
    session.show(checks, lambda: _checks(checks))
    return 8 if any(check.state == "fail" for check in checks) else 0


def _checks(checks: list[Check]) -> None:
    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        click.echo(f"{state(check.state)}{' ' * (5 - len(check.state))} {check.name.ljust(width)}  {plain(check.text)}")
        if check.hint and check.state != "ok":
            click.echo(f"      {' ' * width}  hint: {plain(check.hint)}")


@verb()
@click.argument("name", required=False)
def processors(session: Session, name: str | None) -> None:
    """The processors that are loaded; with a NAME, its parameters."""
    found = [each for each in session.client.processors() if name in (None, each.name)]
    if name and not found:
        raise NotFoundError("no_such_processor", f"no processor is named {name}", hint="list them: smpctl processors")
    session.show(found, lambda: _processor(found[0]) if name else _processors(found))


def _processors(found: list[ProcessorInfo]) -> None:
    rows = [(each.name, each.accepts, each.distribution, each.trouble or each.summary) for each in found]
    table(("name", "accepts", "from", "what it does"), rows)


def _processor(info: ProcessorInfo) -> None:
    takes = "all entries at once" if info.group else "windows of an entry" if info.stream else "one entry"
    facts(
        [
            ("name", info.name),
            ("does", info.summary),
            ("accepts", f"{info.accepts}, {takes}"),
            ("from", info.distribution),
            *([("trouble", info.trouble)] if info.trouble else []),
        ]
    )
    # A struct's schema is a reference to where it is defined (JSON Schema 2020-12, section 8.2.3.1).
    defined: dict[str, dict[str, Any]] = info.params.get("$defs", {})
    params = defined.get(info.params.get("$ref", "").removeprefix("#/$defs/"), info.params)
    required = set(params.get("required", []))
    for name, schema in params.get("properties", {}).items():
        default = "required" if name in required else f"default {_json(schema.get('default'))}"
        about = f"; {schema['description']}" if "description" in schema else ""
        click.echo(plain(f"  -p {name}=…  {_wanted(schema)}, {default}{about}"))


def _wanted(schema: dict[str, Any]) -> str:
    """The values that a parameter takes, by its schema."""
    if choices := [_wanted(each) for each in schema.get("anyOf", [])]:
        return " or ".join(choices)
    if words := schema.get("enum", []):
        return " or ".join(map(_json, words))
    bounds = [f"{said} {schema[key]}" for key, said in _BOUNDS.items() if key in schema]
    return " ".join([str(schema.get("type", "value")), *bounds])


def _json(value: object) -> str:
    """A value as ``-p NAME=`` takes it."""
    return msgspec.json.encode(value).decode()


def overview(session: Session) -> None:
    """What to type next."""
    try:
        found = session.client.status()
    except DaemonError as error:
        if session.as_json:
            raise
        click.echo(f"{error.message}\n  {error.hint}\n\nWithout a daemon you can make keys, seal and open files:\n")
        steps = [("smpctl keys new NAME", "make a key"), ("smpctl seal FILE -o FILE.smp --to KEY", "seal for someone")]
    else:
        if session.as_json:
            session.json_line(found)
            return
        click.echo(f"smpd {found.version} is up; you are {found.role}\n")
        steps = _steps(found)
    facts([(f"  {command}", what) for command, what in [*steps, ("smpctl --help", "all commands")]])


def _steps(found: Status) -> list[tuple[str, str]]:
    if not found.remotes:
        return [
            ("smpctl remote add NAME s3://BUCKET", "say where your objects are"),
            ("smpctl keys export --box", "the key to seal for this box"),
            ("smpctl doctor", "what this box can do"),
        ]
    remote = found.remotes[0]
    return [
        (f"smpctl ls {remote}:", "what is there"),
        (f"smpctl get {remote}:PATH", "bring an object into the vault"),
        (f"smpctl run PROCESSOR {remote}:PATH", "work on one"),
        ("smpctl jobs", "what is going on"),
    ]
