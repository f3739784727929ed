"""Verbs that look: status, processors, the audit log."""

import os
import time
from functools import partial

import anyio

from smp_proto import __version__
from smp_proto.aio import Exchange
from smp_proto.control import (
    AuditLines,
    AuditProof,
    AuditRead,
    AuditRenew,
    AuditRenewed,
    ProcessorInfo,
    Processors,
    ProcessorsRequest,
    RemoteLoad,
    Status,
    StatusRequest,
    Worker,
)
from smp_proto.errors import SmpError, UsageError
from smpd.control.actor import Actor
from smpd.control.permissions import Need
from smpd.host.memory import Usage, usage
from smpd.host.space import Room
from smpd.transfer.device import Compute
from smpd.transfer.pool import RemotePool
from smpd.transfer.workers import WorkerHost
from smpd.verbs.batches import batches, in_parts
from smpd.verbs.daemon import Daemon

_LINES = 1000


async def status(daemon: Daemon, actor: Actor, request: StatusRequest, exchange: Exchange) -> Status:
    """What the daemon is doing."""
    box, log = daemon.box, daemon.audit
    pools = pools_of(daemon, actor)
    hosts = [host for pool in pools for host in pool.processes.hosts] + daemon.pools.openers.hosts
    workers = [_worker(host) for host in hosts if host.worker or host.peak_rss]
    workers += [_compute_worker(compute) for compute in box.compute.all if compute.host.worker or compute.host.peak_rss]

    def look() -> tuple[dict[str, int], list[str], int, tuple[int, int], Room, Usage]:
        counts = box.journal.counts()
        refused = (box.quarantine.count(), box.quarantine.kept_bytes())
        return counts, daemon.remotes.names(), box.vault.count(), refused, box.space.look(), usage(os.getpid())

    counts, remotes, items, refused, room, memory = await anyio.to_thread.run_sync(look)
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
        peak_rss_bytes=memory.peak_bytes,
        audit_size=log.size,
        audit_ok=not log.failure,
        vault_items=items,
        free_bytes=room.free,
        state_dir=daemon.state_dir,
        rss_bytes=memory.resident_bytes,
        ring_bytes=daemon.ring_bytes,
        loads=[_load(pool) for pool in pools],
        audit_unsigned=log.unsigned,
        journal_waiting=box.journal.waiting,
        reserve_bytes=room.reserve,
        reserve_held_bytes=room.held,
        claimed_bytes=room.claimed,
        short_jobs=daemon.scheduler.short.jobs,
        short_bytes=daemon.scheduler.short.bytes,
        health=[pool.gate.health for pool in pools],
        quarantine_items=refused[0],
        quarantine_bytes=refused[1],
        quarantine_max_bytes=daemon.config.quarantine.max_bytes,
        config_restart=daemon.reloading.restart,
        config_refused=daemon.reloading.refused,
        stopping=daemon.scheduler.draining,
        limits=[each for each in daemon.limiter.views() if not each.name or actor.rights.allow(Need("any", each.name))],
    )


def _load(pool: RemotePool) -> RemoteLoad:
    pacing = pool.pacing
    return RemoteLoad(
        pool.name,
        pool.lanes,
        pacing.window,
        pool.lanes_in_use,
        pacing.ranges,
        pacing.bytes,
        pool.sizing.range_bytes,
    )


def pools_of(daemon: Daemon, actor: Actor) -> list[RemotePool]:
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
        rss_bytes=now.resident_bytes,
    )


def _compute_worker(compute: Compute) -> Worker:
    worker = _worker(compute.host)
    if compute.host.worker is not None and compute.ready is not None:
        worker.device = compute.ready.device
        worker.slots, worker.slots_in_use = compute.slots, compute.slots_in_use
    return worker


async def processors(daemon: Daemon, actor: Actor, request: ProcessorsRequest, exchange: Exchange) -> Processors:
    """All processors, from the processes that loaded them; where one could not, those it was to load, and why."""
    found: list[ProcessorInfo] = []
    for compute in daemon.box.compute.all:
        try:
            found += (await compute.describe()).processors
        except SmpError as error:
            owner, reason = compute.distribution, error.message
            found += [ProcessorInfo(name, "", owner, "", trouble=reason) for name in compute.processors]
    return await in_parts(exchange, found, Processors)


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
        for batch in batches(lines):
            await exchange.send(AuditLines(batch))
    notes = await anyio.to_thread.run_sync(log.checkpoints)
    wanted = notes[-1:] if request.newest else notes
    *earlier, newest = batches([note.decode(errors="replace") for note in wanted])
    for texts in earlier:
        await exchange.send(AuditLines([], texts))
    key, *before = log.keys
    broken = log.broken.message if log.broken else ""
    return AuditProof(newest, key.name, key.public, [each.public for each in before], broken)


async def audit_renew(daemon: Daemon, actor: Actor, request: AuditRenew, exchange: Exchange) -> AuditRenewed:
    """Set a broken log aside and begin a new one."""
    if not request.reason.strip():
        message = "a new audit log begins with why there is one, and the reason is blank"
        raise UsageError("bad_request", message, hint="say what happened to the one before: --reason TEXT")
    renew = partial(daemon.audit.renew, actor=actor.label, reason=request.reason)
    with anyio.CancelScope(shield=True):
        aside = await anyio.to_thread.run_sync(renew)
    await daemon.record(actor, "daemon.start", version=__version__, boot_id=daemon.boot_id)
    return AuditRenewed(f"{daemon.audit.directory}/{aside.name}", aside.size, aside.root)
