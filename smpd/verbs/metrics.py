"""The verb ``metrics``: what was counted, with what can only be looked up."""

import os
import time
from collections.abc import Iterator

import anyio

from smp_proto import __version__
from smp_proto.aio import Exchange
from smp_proto.control import MetricFamily, MetricsRequest, SyncView
from smpd.control.actor import Actor
from smpd.control.permissions import Need, remotes_of
from smpd.host import descriptors
from smpd.host.bounds import bounds
from smpd.host.memory import usage
from smpd.metrics.counting import Gauge, gathered
from smpd.transfer.device import Compute
from smpd.transfer.pool import RemotePool
from smpd.verbs.daemon import Daemon

_SAMPLES = 1000  # of one message, so that it fits a frame
_STATES = ("waiting", "in_flight", "done", "failed", "quarantined", "gone")


async def metrics(daemon: Daemon, actor: Actor, request: MetricsRequest, exchange: Exchange) -> None:
    """Send every metric, of remotes and syncs those that the caller may see."""
    seen = [each for each in await daemon.syncs.views() if actor.sees(each.owner, _remotes(each))]
    gauges = gathered(_live(daemon, seen))
    looked = gathered(iter(await anyio.to_thread.run_sync(lambda: [*_looked_up(daemon)])))
    names = frozenset(each.spec.name for each in seen)
    for family in daemon.metrics.families({**gauges, **looked}):
        samples = [each for each in family.samples if _shown(actor, names, each.labels)]
        for start in range(0, max(1, len(samples)), _SAMPLES):
            part = samples[start : start + _SAMPLES]
            await exchange.send(MetricFamily(family.name, family.kind, family.help, part))


def _shown(actor: Actor, syncs: frozenset[str], labels: dict[str, str]) -> bool:
    remote = labels.get("remote") or (labels["label"] if labels.get("role") == "fetch" else "")
    return (not remote or actor.rights.allow(Need("any", remote))) and labels.get("sync", "") in {"", *syncs}


def _remotes(sync: SyncView) -> tuple[str, ...]:
    return remotes_of(sync.spec.source, sync.spec.target)


def _live(daemon: Daemon, syncs: list[SyncView]) -> Iterator[Gauge]:
    """What is known in the event loop."""
    box, log = daemon.box, daemon.audit
    yield Gauge("smp_build_info", 1, (__version__,))
    yield Gauge("smp_uptime_seconds", time.monotonic() - daemon.started)
    yield Gauge("smp_journal_waiting", box.journal.waiting)
    yield Gauge("smp_audit_ok", not log.failure)
    yield Gauge("smp_audit_records", log.size)
    yield Gauge("smp_audit_unsigned_records", log.unsigned)
    yield Gauge("smp_quarantine_limit_bytes", daemon.config.quarantine.max_bytes)
    for pool in daemon.pools.open.values():
        yield from _of_remote(pool)
    for compute in box.compute.all:
        yield from _of_compute(compute)
    for each in syncs:
        yield from _of_sync(each)


def _of_remote(pool: RemotePool) -> Iterator[Gauge]:
    name, health = (pool.name,), pool.gate.health
    for state in ("up", "paused", "down"):
        yield Gauge("smp_remote_state", health.state == state, (pool.name, state))
    yield Gauge("smp_remote_failures", health.failures, name)
    yield Gauge("smp_lanes", pool.lanes, name)
    yield Gauge("smp_lanes_in_use", pool.lanes_in_use, name)
    yield Gauge("smp_lanes_window", pool.pacing.window, name)
    yield Gauge("smp_range_bytes", pool.sizing.range_bytes, name)
    yield Gauge("smp_ring_bytes", pool.processes.ring_bytes)


def _of_compute(compute: Compute) -> Iterator[Gauge]:
    name = (compute.distribution,)
    if compute.ready is not None:
        yield Gauge("smp_compute_info", 1, (*name, compute.ready.device, compute.ready.device_name))
    yield Gauge("smp_compute_busy", compute.busy, name)
    if compute.health is not None:
        yield Gauge("smp_compute_kept_bytes", compute.health.kept_bytes, name)
        yield Gauge("smp_compute_growth_bytes", compute.health.growth_bytes, name)
        yield Gauge("smp_compute_device_bytes", compute.health.device_bytes, name)
    yield Gauge("smp_compute_slots", compute.slots, name)
    yield Gauge("smp_compute_slots_in_use", compute.slots_in_use, name)
    yield Gauge("smp_ring_bytes", compute.ring_bytes)


def _of_sync(sync: SyncView) -> Iterator[Gauge]:
    name = sync.spec.name
    yield Gauge("smp_sync_active", sync.state == "active", (name,))
    for state in _STATES:
        yield Gauge("smp_sync_objects", getattr(sync, state), (name, state))
    yield Gauge("smp_sync_seen_objects", sync.seen, (name,))
    yield Gauge("smp_sync_lag_seconds", sync.lag_s, (name,))
    yield Gauge("smp_sync_listed_timestamp_seconds", sync.last_poll, (name,))
    yield Gauge("smp_sync_listing_ok", sync.error is None, (name,))


def _looked_up(daemon: Daemon) -> Iterator[Gauge]:
    """What the database, the disk and the kernel know; blocking."""
    box = daemon.box
    for (state, priority), count in box.journal.unfinished().items():
        yield Gauge("smp_jobs", count, (state, priority))
    yield Gauge("smp_quarantine_objects", box.quarantine.count())
    yield Gauge("smp_quarantine_bytes", box.quarantine.kept_bytes())
    objects, size = box.vault.kept()
    yield Gauge("smp_vault_objects", objects)
    yield Gauge("smp_vault_bytes", size)
    room = box.space.look()
    yield Gauge("smp_disk_free_bytes", room.free)
    yield Gauge("smp_disk_claimed_bytes", room.claimed)
    yield Gauge("smp_disk_reserve_bytes", room.reserve)
    yield Gauge("smp_disk_reserve_held_bytes", room.held)
    files, taken = _spool(box.spool_dir)
    yield Gauge("smp_spool_files", files)
    yield Gauge("smp_spool_bytes", taken)
    yield from _process()
    for host in daemon.hosts:
        label = (host.role, host.label)
        yield Gauge("smp_workers", host.worker is not None, label)
        yield Gauge("smp_worker_resident_bytes", host.sample().resident_bytes, label)
        yield Gauge("smp_worker_starts_total", host.restarts + 1, label)


def _process() -> Iterator[Gauge]:
    spent = os.times()
    yield Gauge("smp_process_resident_bytes", usage(os.getpid()).resident_bytes)
    yield Gauge("smp_process_cpu_seconds_total", spent.user + spent.system)
    yield Gauge("smp_process_open_files", len(os.listdir("/proc/self/fd")))
    yield Gauge("smp_process_open_files_limit", descriptors.limit())
    left = min((bound.left for bound in bounds()), default=None)
    if left is not None:
        yield Gauge("smp_memory_left_bytes", left)


def _spool(folder: str) -> tuple[int, int]:
    """How many files there are, and what they take of the disk."""
    files = taken = 0
    with os.scandir(folder) as found:
        for entry in found:
            try:
                taken += entry.stat(follow_symlinks=False).st_blocks * 512
            except FileNotFoundError:
                continue
            files += 1
    return files, taken
