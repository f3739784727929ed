"""The verb ``doctor``: what this box can and cannot do, and for what is wrong, what to type."""

import time

import anyio

from smp_proto import __version__
from smp_proto.aio import Exchange
from smp_proto.control import Check, Doctor, DoctorRequest, RemoteTest, RemoteView
from smp_proto.errors import SmpError
from smpd.control.actor import Actor
from smpd.control.permissions import Need
from smpd.control.roles import LEAST_ROLE, RANK
from smpd.host import descriptors
from smpd.transfer.device import Compute
from smpd.transfer.openers import Openers
from smpd.vault.versions import Versions
from smpd.verbs import checkup
from smpd.verbs.daemon import Daemon
from smpd.verbs.inspect import pools_of
from smpd.verbs.remotes import sender_shown

_REMOTE_S = 20.0
_REMOTES_AT_ONCE = 4
_VERSIONS = 10_000
_PINNING = ("cuda", "rocm")
_OFF = "off by configuration"
_OFF_HINT = 'what came off may do what the user of smpd may: take compute.sandbox = "off" out of the configuration'
_KERNEL_HINT = 'a newer kernel or another container profile may have it; sandbox = "required" refuses to run without'


async def doctor(daemon: Daemon, actor: Actor, request: DoctorRequest, exchange: Exchange) -> Doctor:
    """Check what this box can do; starts compute processes, and of each remote a process that tries it."""
    space, box = daemon.box.space, daemon.box

    def machine() -> list[Check]:
        config = daemon.config
        return [
            checkup.disk_check(space.look(), daemon.scheduler.short),
            checkup.files_check(descriptors.look(config)),
            *checkup.clock_checks(daemon.clock, daemon.audit),
            *checkup.rights_checks(config),
            *checkup.program_checks(),
        ]

    checks = [
        Check("daemon", "ok", f"smpd {__version__}, state in {daemon.state_dir}"),
        Check("identity", "ok", _identity(daemon)),
        Check(
            "audit",
            "fail" if daemon.audit.failure else "ok",
            daemon.audit.failure or _audit(daemon),
            "see docs/guides/operating.md; then, as an admin: smpctl audit renew --reason TEXT"
            if daemon.audit.broken
            else "",
        ),
        *await anyio.to_thread.run_sync(machine),
    ]
    checks += _config_checks(daemon)
    strays = await anyio.to_thread.run_sync(box.vault.strays)
    notes = [*daemon.notes, *(f"the vault has a file that no job brought: {name}" for name in strays)]
    checks += [Check("daemon", "warn", note) for note in notes]
    checks += await _record_checks(daemon)
    senders = [each for each in await anyio.to_thread.run_sync(daemon.trust.list) if sender_shown(actor, each)]
    checks += checkup.trust_checks(senders, time.time())
    checks += _notify_checks(daemon)
    for name in box.compute.missing:
        checks.append(Check("processor", "warn", f"{name} is listed but not installed", "install it, or unlist it"))
    for compute in box.compute.all:
        checks += await _compute_checks(compute)
    checks += await _remote_checks(daemon, actor)
    for pool in pools_of(daemon, actor):
        checks += _wall_checks(f"fetch {pool.name}", pool.processes.walls)
    checks += _opening_checks(daemon.pools.openers)
    mapped = daemon.ring_bytes
    checks.append(await anyio.to_thread.run_sync(checkup.memory_check, daemon.config, mapped))
    checks.append(await anyio.to_thread.run_sync(checkup.locked_check, mapped))
    return Doctor(checks)


def _audit(daemon: Daemon) -> str:
    text, unseen = f"{daemon.audit.size} records", daemon.audit.unseen
    return f"{text}, of which {unseen} are still to be verified since the start" if unseen else text


def _identity(daemon: Daemon) -> str:
    text, before = f"{daemon.public.fingerprint()}, {daemon.keys.protection}", len(daemon.keys.identities) - 1
    if before:
        text += f"; {before} before it only open: give senders the new one, smpctl keys export --box"
    return text


def _config_checks(daemon: Daemon) -> list[Check]:
    """Nothing, where the configuration that was read last is the one in effect."""
    checks = []
    if refused := daemon.reloading.refused:
        checks.append(
            Check("configuration", "fail", f"the one before goes on: {refused}", "mend it, then: smpctl reload")
        )
    if keys := daemon.reloading.restart:
        checks.append(Check("configuration", "warn", f"needs a restart: {', '.join(keys)}", "systemctl restart smpd"))
    return checks


def _notify_checks(daemon: Daemon) -> list[Check]:
    """Nothing, where nobody is to be told."""
    checks = []
    for notices in daemon.notices:
        if notices.failure:
            text = f"nobody could be told: {notices.failure}"
            checks.append(Check("notify", "fail", text, "mend it, then: smpctl notify test"))
        else:
            checks.append(Check("notify", "ok", f"{notices.way.name} tells somebody"))
    return checks


async def _record_checks(daemon: Daemon) -> list[Check]:
    """Records of the database that do not open any more, and that no start looks at."""
    damaged = await _damaged_versions(daemon.box.versions)
    checks = []
    if damaged:
        text = f"of {damaged} places it is damaged what was accepted there: the next object there is refused"
        hint = "look at the disk; to take the object then: smpctl quarantine retry ID --accept-older"
        checks.append(Check("versions", "fail", text, hint))
    for item in await anyio.to_thread.run_sync(daemon.box.quarantine.damaged):
        text = f"the record of quarantined item {item} is damaged"
        checks.append(Check("quarantine", "fail", text, f"look at the disk; to forget it: smpctl quarantine rm {item}"))
    return checks


async def _damaged_versions(versions: Versions) -> int:
    damaged, last = await anyio.to_thread.run_sync(versions.look, 0, _VERSIONS)
    found = damaged
    while last:
        damaged, last = await anyio.to_thread.run_sync(versions.look, last, _VERSIONS)
        found += damaged
    return found


async def _remote_checks(daemon: Daemon, actor: Actor) -> list[Check]:
    """Try each remote that the caller may use, or say how those in use are, to one who may not try them."""
    if RANK[actor.role] < RANK[LEAST_ROLE[RemoteTest]]:
        pools = [pool for pool in pools_of(daemon, actor) if pool.gate.health.state != "up"]
        hint = "an operator runs: smpctl doctor"
        return [Check(f"remote {pool.name}", "warn", f"is {pool.gate.health.state}", hint) for pool in pools]
    found: dict[str, list[Check]] = {}
    limit = anyio.CapacityLimiter(_REMOTES_AT_ONCE)

    async def look(remote: RemoteView) -> None:
        async with limit:
            found[remote.name] = await _try_remote(daemon, remote.name)

    remotes = [each for each in await anyio.to_thread.run_sync(daemon.remotes.list) if _may(actor, each)]
    async with anyio.create_task_group() as group:
        for remote in remotes:
            group.start_soon(look, remote)
    return [check for remote in remotes for check in found[remote.name]]


def _may(actor: Actor, remote: RemoteView) -> bool:
    return actor.rights.allow(Need("any", remote.name))


async def _try_remote(daemon: Daemon, name: str) -> list[Check]:
    called = f"remote {name}"
    try:
        pool = await daemon.pools.get(name)
        resting = [host for host in pool.processes.hosts if host.worker is None]
        try:
            with anyio.fail_after(_REMOTE_S):
                probed = await pool.probe()
        finally:
            for host in resting:  # or each remote that nobody uses would hold its rings until it idled out
                host.rest()
    except TimeoutError:
        hint = "see whether its network is up; smpctl remote test waits for longer"
        return [Check(called, "fail", f"{name} does not answer within {_REMOTE_S:g} s", hint)]
    except SmpError as error:
        return [checkup.failed(called, error)]
    facts = ", ".join(f"{key} {value}" for key, value in probed.facts.items() if key != "date")
    skew = checkup.skew_check(name, probed.facts.get("date", ""))
    return [Check(called, "ok", f"works, {probed.milliseconds:.0f} ms, {facts}"), *([skew] if skew else [])]


async def _compute_checks(compute: Compute) -> list[Check]:
    name = f"compute {compute.distribution}"
    try:
        ready = await compute.describe()
    except SmpError as error:
        return [checkup.failed(name, error)]
    checks = [Check(name, "ok", f"{ready.device} ({ready.device_name}), torch {ready.torch}, pinned {ready.pinned}")]
    if ready.device.partition(":")[0] in _PINNING and not ready.pinned:
        text = "the rings are not pinned for the device, so that copies to it are slower"
        checks.append(Check(name, "warn", text, "set LimitMEMLOCK=infinity in the unit (ulimit -l unlimited)"))
    checks.append(Check(name, "ok", f"started {compute.started}"))
    checks.append(_health_check(name, compute))
    checks += _wall_checks("sandbox", ready.sandbox)
    return checks + [Check(name, "warn", note) for note in ready.notes]


def _wall_checks(name: str, walls: dict[str, str]) -> list[Check]:
    hints = {"on": "", _OFF: _OFF_HINT}
    return [
        Check(f"{name} {wall}", "ok" if state == "on" else "warn", state, hints.get(state, _KERNEL_HINT))
        for wall, state in walls.items()
    ]


def _opening_checks(openers: Openers) -> list[Check]:
    """Nothing, before there was anything for them to do."""
    checks = _wall_checks("opening", openers.walls)
    if openers.trouble is not None:
        text = f"many small objects are opened by one thread only: {openers.trouble.message}"
        checks.append(Check("opening", "warn", text, openers.trouble.hint))
    return checks


def _health_check(name: str, compute: Compute) -> Check:
    """What it keeps from run to run; one that had to be replaced leaks, or keeps too much."""
    health = compute.health
    assert health is not None  # it was described
    text = f"keeps {health.kept_bytes >> 20} MiB after {health.runs} runs, {health.growth_bytes / 2**20:+.1f} MiB a run"
    if health.device_bytes:
        text += f", {health.device_bytes >> 20} MiB of the device"
    if not compute.recycled:
        return Check(name, "ok", text)
    hint = "a processor keeps what it should let go of: tell its author"
    return Check(name, "warn", f"{text}; replaced {compute.recycled} times for what it kept", hint)
