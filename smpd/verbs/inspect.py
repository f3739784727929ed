"""Verbs that look: status, doctor, processors, the audit log."""

import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Literal

import anyio

from smp_proto import __version__
from smp_proto.aio import Exchange
from smp_proto.control import (
    AuditLines,
    AuditProof,
    AuditRead,
    AuditRenew,
    AuditRenewed,
    Check,
    Doctor,
    DoctorRequest,
    Processors,
    ProcessorsRequest,
    RemoteLoad,
    Status,
    StatusRequest,
    Worker,
)
from smp_proto.errors import SmpError
from smpd.control.actor import Actor
from smpd.control.permissions import Need
from smpd.host import descriptors
from smpd.host.bounds import bounds
from smpd.host.memory import Rss, rss
from smpd.host.space import Room
from smpd.jobs.journal import Journal
from smpd.transfer.device import Compute
from smpd.transfer.pool import RemotePool
from smpd.transfer.workers import WorkerHost
from smpd.verbs.daemon import Daemon

_LINES_BYTES = 512 << 10
_LINES = 1000
_FREE_LOW_BYTES = 1 << 30


async def status(daemon: Daemon, actor: Actor, request: StatusRequest, exchange: Exchange) -> Status:
    """What the daemon is doing."""
    box, log = daemon.box, daemon.audit
    pools = _pools(daemon, actor)
    workers = [_worker(host) for pool in pools for host in pool.hosts if host.worker or host.peak_rss]
    workers += [_compute_worker(compute) for compute in box.compute.all if compute.host.worker or compute.host.peak_rss]

    def look() -> tuple[dict[str, int], list[str], int, tuple[int, int], Room, Rss, list[int]]:
        counts = box.journal.counts()
        short = _short(box.journal) if counts["waiting"] else []
        refused = (box.quarantine.count(), box.quarantine.kept_bytes())
        return counts, daemon.remotes.names(), box.vault.count(), refused, box.space.look(), rss(os.getpid()), short

    counts, remotes, items, refused, room, memory, short = await anyio.to_thread.run_sync(look)
    return Status(
        version=__version__,
        boot_id=daemon.boot_id,
        pid=os.getpid(),
        uptime_s=time.monotonic() - daemon.started,
        role=actor.role or "",
        key_id=daemon.public.key_id.hex(),
        fingerprint=daemon.public.fingerprint(),
        retired_keys=len(daemon.keys.identities) - 1,
        jobs=counts,
        remotes=[name for name in remotes if actor.rights.allow(Need("any", name))],
        workers=workers,
        peak_rss_bytes=memory.peak,
        audit_size=log.size,
        audit_ok=not log.failure,
        vault_items=items,
        free_bytes=room.free,
        state_dir=daemon.state_dir,
        rss_bytes=memory.now,
        ring_bytes=sum(pool.ring_bytes for pool in daemon.pools.open.values())
        + sum(each.ring_bytes for each in box.compute.all),
        loads=[_load(pool) for pool in pools],
        audit_unsigned=log.unsigned,
        journal_waiting=box.journal.waiting,
        reserve_bytes=room.reserve,
        reserve_held_bytes=room.held,
        claimed_bytes=room.claimed,
        short_jobs=len(short),
        short_bytes=sum(short),
        health=[pool.gate.health for pool in pools],
        quarantine_items=refused[0],
        quarantine_bytes=refused[1],
        quarantine_max_bytes=daemon.config.quarantine.max_bytes,
        config_restart=daemon.reloading.restart,
        config_refused=daemon.reloading.refused,
        stopping=daemon.scheduler.draining,
        limits=[each for each in daemon.limiter.views() if not each.name or actor.rights.allow(Need("any", each.name))],
    )


def _short(journal: Journal) -> list[int]:
    """What each job needs that waits for room; 0 where it is not known."""
    errors = [job.error for job in journal.list(("waiting",)) if job.error is not None]
    return [int(error.details.get("needed_bytes", 0)) for error in errors if error.code == "disk_full"]


def _load(pool: RemotePool) -> RemoteLoad:
    pacing = pool.pacing
    return RemoteLoad(pool.name, pool.lanes, pacing.window, pool.lanes_in_use, pacing.ranges, pacing.bytes)


def _pools(daemon: Daemon, actor: Actor) -> list[RemotePool]:
    """The remotes in use that the caller may use, too."""
    return [pool for name, pool in daemon.pools.open.items() if actor.rights.allow(Need("any", name))]


def _worker(host: WorkerHost) -> Worker:
    now = host.sample()
    running = host.worker is not None
    return Worker(
        role=host.role,
        pid=host.worker.pid if host.worker else 0,
        label=host.label,
        peak_rss_bytes=host.peak_rss,
        restarts=max(host.restarts, 0),
        state="up" if running else "idle",
        rss_bytes=now,
    )


def _compute_worker(compute: Compute) -> Worker:
    worker = _worker(compute.host)
    if compute.host.worker is not None and compute.ready is not None:
        worker.device = compute.ready.device
        worker.slots, worker.slots_in_use = compute.slots, compute.slots_in_use
    return worker


async def processors(daemon: Daemon, actor: Actor, request: ProcessorsRequest, exchange: Exchange) -> Processors:
    """All processors that are loaded, from the processes that loaded them."""
    ready = [await compute.describe() for compute in daemon.box.compute.all]
    return Processors([info for each in ready for info in each.processors])


async def doctor(daemon: Daemon, actor: Actor, request: DoctorRequest, exchange: Exchange) -> Doctor:
    """Check what this box can do."""
    space = daemon.box.space
    room, short = await anyio.to_thread.run_sync(lambda: (space.look(), _short(daemon.box.journal)))
    checks = [
        Check("daemon", "ok", f"smpd {__version__}, state in {daemon.state_dir}"),
        Check("identity", "ok", _identity(daemon)),
        Check(
            "audit",
            "fail" if daemon.audit.failure else "ok",
            daemon.audit.failure or f"{daemon.audit.size} records",
            "see docs/operations.md; then, as an admin: smpctl audit renew" if daemon.audit.broken else "",
        ),
        _disk_check(room, short),
        _files_check(descriptors.look(daemon.config)),
        _memory_check(),
    ]
    strays = await anyio.to_thread.run_sync(daemon.box.vault.strays)
    checks += _config_checks(daemon)
    notes = [*daemon.notes, *(f"the vault has a file that no job brought: {name}" for name in strays)]
    checks += [Check("daemon", "warn", note) for note in notes]
    for name in daemon.box.compute.missing:
        checks.append(Check("processor", "warn", f"{name} is listed but not installed", "install it, or unlist it"))
    for compute in daemon.box.compute.all:
        checks += await _compute_checks(compute)
    for pool in _pools(daemon, actor):
        checks += _wall_checks(f"fetch {pool.name}", pool.walls)
    return Doctor(checks)


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


def _identity(daemon: Daemon) -> str:
    text, before = f"{daemon.public.fingerprint()}, {daemon.keys.protection}", len(daemon.keys.identities) - 1
    if before:
        text += f"; {before} before it only open: give senders the new one, smpctl keys export --box"
    return text


def _disk_check(room: Room, short: list[int]) -> Check:
    text = f"{room.free >> 20} MiB free, {room.held >> 20} of {room.reserve >> 20} MiB held in reserve"
    if room.claimed:
        text += f", {room.claimed >> 20} MiB claimed by running jobs"
    if short:
        text += f"; {len(short)} jobs wait for {sum(short) >> 20} MiB"
    low = room.free < _FREE_LOW_BYTES or room.held < room.reserve
    state: Literal["ok", "warn", "fail"] = "fail" if short or room.held < room.reserve else "warn" if low else "ok"
    return Check("disk", state, text, "free some space: smpctl vault ls, smpctl vault rm ID" if state != "ok" else "")


def _files_check(files: descriptors.Descriptors) -> Check:
    text = f"{files.open} open of {files.limit} (RLIMIT_NOFILE); this configuration may come to {files.needed}"
    if files.limit >= files.needed:
        return Check("files", "ok", text)
    return Check("files", "warn", text, "raise LimitNOFILE; until then fewer connections are accepted")


def _memory_check() -> Check:
    tightest = min(bounds(), key=lambda bound: bound.left, default=None)
    if tightest is None:
        return Check("memory", "warn", "how much there is cannot be told", "see that /proc is mounted")
    return Check("memory", "ok", f"{tightest.left >> 20} MiB left of {tightest.name}")


async def _compute_checks(compute: Compute) -> list[Check]:
    name = f"compute {compute.distribution}"
    try:
        ready = await compute.describe()
    except SmpError as error:
        return [Check(name, "fail", error.message, error.hint)]
    checks = [Check(name, "ok", f"{ready.device} ({ready.device_name}), torch {ready.torch}, pinned {ready.pinned}")]
    checks.append(Check(name, "ok", f"started {compute.started}"))
    checks.append(_health_check(name, compute))
    checks += _wall_checks("sandbox", ready.sandbox)
    return checks + [Check(name, "warn", note) for note in ready.notes]


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


def _wall_checks(name: str, walls: dict[str, str]) -> list[Check]:
    return [
        Check(f"{name} {wall}", "ok" if state == "on" else "warn", state, "" if state == "on" else _KERNEL_HINT)
        for wall, state in walls.items()
    ]


_KERNEL_HINT = 'a newer kernel may have it; sandbox = "required" refuses to run without'


async def audit_read(daemon: Daemon, actor: Actor, request: AuditRead, exchange: Exchange) -> AuditProof:
    """Send the log as it is stored, and what is needed to verify it."""
    log = daemon.audit
    if not log.broken:  # one that is, is shown as it is
        if log.failure:
            await anyio.to_thread.run_sync(log.retry)
        await anyio.to_thread.run_sync(log.checkpoint)
    since = max(0, log.size - request.last) if request.last else request.since
    while True:
        lines = await anyio.to_thread.run_sync(log.read, since, _LINES)
        if not lines:
            break
        since += len(lines)
        for batch in _batches(lines):
            await exchange.send(AuditLines(batch))
    notes = await anyio.to_thread.run_sync(log.checkpoints)
    key, *before = log.keys
    texts = [note.decode(errors="replace") for note in notes]
    return AuditProof(texts, key.name, key.public, [each.public for each in before])


async def audit_renew(daemon: Daemon, actor: Actor, request: AuditRenew, exchange: Exchange) -> AuditRenewed:
    """Set a broken log aside and begin a new one."""
    renew = partial(daemon.audit.renew, actor=actor.label, reason=request.reason)
    with anyio.CancelScope(shield=True):
        aside = await anyio.to_thread.run_sync(renew)
    await daemon.record(actor, "daemon.start", version=__version__, boot_id=daemon.boot_id)
    return AuditRenewed(f"{daemon.audit.directory}/{aside.name}", aside.size, aside.root)


def _batches(lines: list[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for line in lines:
        if batch and size + len(line) > _LINES_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line)
    yield batch
