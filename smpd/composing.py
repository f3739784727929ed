"""The rooms of a daemon put together: who is given what. :mod:`smpd.app` runs what comes of it."""

import os
import secrets
import time
from collections.abc import Callable, Collection
from functools import lru_cache, partial
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup

from smp_proto.control import (
    JobView,
    PutSpec,
    QuarantineChange,
    RemoteHealth,
    Result,
    SyncChanged,
)
from smp_proto.errors import AuditError, SmpError
from smp_proto.sealed.keys import Identity, PublicIdentity
from smp_proto.structs import learn_all
from smpd.audit.kept import KeptLog
from smpd.config import Config
from smpd.configuring import load_config
from smpd.control.accounts import Accounts, UserDatabase
from smpd.control.actor import Actor
from smpd.control.permissions import remotes_of
from smpd.control.watch import Events
from smpd.host.folders import ensure_dir
from smpd.host.memory import machine_bytes
from smpd.host.program import is_replaced, replaced
from smpd.host.space import Space
from smpd.jobs.failures import Pace
from smpd.jobs.job import Job, Progress
from smpd.jobs.journal import Journal
from smpd.jobs.retention import Retention
from smpd.jobs.scheduler import Scheduler
from smpd.links.fetching import Deadlines
from smpd.metrics.counting import Metrics
from smpd.reloading import Reloading
from smpd.state import State
from smpd.sync.standing import Standing
from smpd.sync.store import SyncStore
from smpd.sync.syncs import Syncs
from smpd.transfer.box import Box
from smpd.transfer.breaker import BreakerSettings
from smpd.transfer.device import ComputeSettings
from smpd.transfer.distributions import ComputePools
from smpd.transfer.ends import Ends
from smpd.transfer.health import HealthSettings
from smpd.transfer.limiting import Limiter
from smpd.transfer.pool import FetchSettings
from smpd.transfer.pools import Pools
from smpd.transfer.runner import Runner
from smpd.vault.keys import BoxKeys
from smpd.vault.objects import Vault
from smpd.vault.quarantine import Quarantine
from smpd.vault.remotes import RemoteStore
from smpd.vault.trust import TrustStore
from smpd.vault.versions import Versions
from smpd.verbs.counting import count_job
from smpd.verbs.daemon import Daemon
from smpd.verbs.notices import notices_of
from smpd.verbs.seen import JobsSeen
from smpd.verbs.syncs import SyncWorld

_log = structlog.get_logger("smpd")
_SNAPSHOT_JOBS = 1000
_JOB_BYTES = 1 << 20  # a job whose size is not known yet is not begun with less


def compose(config: Config, state: State, group: TaskGroup, read: Callable[[], Config] = load_config) -> Daemon:
    """The daemon of an open state; its workers live in ``group``, and ``read`` reads another configuration. Blocks."""
    learn_all()  # before there are threads that could meet one at once
    reloading = Reloading(config, read)
    keys, database, audit, seal = state.keys, state.database, state.audit, state.seal
    spool = os.path.join(state.folder, "spool")
    ensure_dir(spool)
    journal, vault = Journal(database, seal), Vault(os.path.join(state.folder, "vault"), database, seal)
    remotes, trust = RemoteStore(database, seal), TrustStore(database, seal)

    def health_changed(health: RemoteHealth) -> None:
        _log.warning("remote", remote=health.name, state=health.state, code=health.code)
        events.publish("remote", health, remotes=(health.name,))
        if health.state != "down":
            scheduler.release()

    counted = Metrics()
    limiter = Limiter(config.limits, config.remote_limits)
    pools = Pools(remotes.view, remotes.get, _fetch(config), group, health_changed, counted, limiter, keys.identities)

    async def snapshot(actor: Actor, ids: list[str]) -> list[JobView]:
        def views() -> list[JobView]:
            seen = JobsSeen(journal, actor)
            found = [seen.get(each) for each in ids] if ids else seen.list(limit=_SNAPSHOT_JOBS)
            return [journal.view(job) for job in found]

        return await anyio.to_thread.run_sync(views)

    events = Events(snapshot)

    def publish(change: QuarantineChange, job: Job) -> None:
        events.publish("quarantine", change, job_id=job.id, owner=job.owner, remotes=_remotes(job))

    box = Box(
        identities=keys.identities,
        senders=partial(_Senders, keys.identities, trust),
        journal=journal,
        vault=vault,
        quarantine=Quarantine(database, seal, config.quarantine.max_bytes),
        versions=Versions(database, seal, config.quarantine.remembered),
        audit=_Recorder(audit),
        publish=publish,
        remote=pools.get,
        compute=ComputePools(config.compute.processors, _compute(config), group, counted),
        spool_dir=spool,
        space=state.space,
        metrics=counted,
    )
    runner = Runner(box)

    def changed(job: Job, progress: Progress | None) -> None:
        if progress is not None:

            def view() -> JobView:
                return journal.view(progress.of(job))

            events.publish("job", view, job_id=job.id, progress=True, owner=job.owner, remotes=_remotes(job))
            return
        for room in (syncs, retention, runner.yielding):
            room.moved(job)
        count_job(counted, job)
        events.publish("job", journal.view(job), job_id=job.id)
        code = job.error.code if job.error else ""
        _log.info("job", job_id=job.id, state=job.state, attempt=job.attempt, code=code)

    def seen(sync: str) -> None:
        _tell_of_sync(events, sync, syncs.standing(sync))

    ends, retention = Ends(box, runner), Retention(database, journal, config.jobs.ended_kept)
    accounts = Accounts(config, UserDatabase())

    async def run_as_owner(job: Job, progress: Progress) -> Result | Job:
        await accounts.require(job.owner, job.spec)
        return await runner(job, progress)

    scheduler = Scheduler(
        journal,
        run_as_owner,
        running_max=config.jobs.running_max,
        attempts=config.jobs.attempts,
        backoff_base_s=config.jobs.backoff_base_s,
        backoff_max_s=config.jobs.backoff_max_s,
        on_change=changed,
        on_final=ends.ended,
        on_fault=lambda job_id, error: _log.error("job fault", job_id=job_id, exc_info=error),
        room=partial(_room, state.space, audit, pools),
        hold_max_s=config.jobs.remote_wait_s,
        on_short=runner.yielding.waits,
    )
    syncs_store = SyncStore(database, seal)
    syncs_store.forgetting.kept = config.jobs.gone_kept
    _follow(reloading, scheduler, retention, box, accounts, limiter, syncs_store)
    world = SyncWorld(pools, journal, scheduler, box.audit, accounts.require)
    syncs = Syncs(syncs_store, world, changed=seen, clock=time.monotonic)
    daemon = Daemon(
        reloading=reloading,
        state_dir=state.folder,
        boot_id=secrets.token_hex(8),
        started=time.monotonic(),
        box=box,
        runner=runner,
        ends=ends,
        scheduler=scheduler,
        retention=retention,
        events=events,
        pools=pools,
        syncs=syncs,
        remotes=remotes,
        trust=trust,
        audit=audit,
        keys=keys,
        accounts=accounts,
        metrics=counted,
        limiter=limiter,
        notes=[*state.notes, *_notes(keys, vault, journal, remotes, trust, syncs_store), *accounts.unknown],
    )
    daemon.notices = notices_of(daemon, _fetch(config))
    return daemon


def _tell_of_sync(events: Events, name: str, standing: Standing | None) -> None:
    """Announce that a sync changed; of one that is no more nothing is kept."""
    topic = f"sync {name}"
    if standing is None:
        events.forget(topic)
        return
    remotes = remotes_of(standing.spec.source, standing.spec.target)
    events.publish("sync", SyncChanged(name), job_id=topic, progress=True, owner=standing.owner, remotes=remotes)


def _follow(
    reloading: Reloading,
    scheduler: Scheduler,
    retention: Retention,
    box: Box,
    accounts: Accounts,
    limiter: Limiter,
    syncs: SyncStore,
) -> None:
    """Have the rooms take up what of a changed configuration is theirs."""

    async def take_up(config: Config) -> None:
        jobs = config.jobs
        pace = Pace(jobs.running_max, jobs.attempts, jobs.backoff_base_s, jobs.backoff_max_s)
        scheduler.configure(pace, jobs.remote_wait_s)
        retention.kept = jobs.ended_kept
        retention.look()
        syncs.forgetting.kept = jobs.gone_kept
        limiter.configure(config.limits, config.remote_limits)
        scheduler.release()
        box.quarantine.max_bytes, box.versions.remembered = config.quarantine.max_bytes, config.quarantine.remembered

    reloading.first(accounts.prepare)
    reloading.when(accounts.take_up)
    reloading.when(take_up)


def _notes(
    keys: BoxKeys, vault: Vault, journal: Journal, remotes: RemoteStore, trust: TrustStore, syncs: SyncStore
) -> list[str]:
    """What ``doctor`` should warn of: found at start, changed by nobody. Of stray files it asks the vault itself."""
    notes = (
        [] if keys.protected else [f"the identity is {keys.protection}; move it away and name it: keys.credential_file"]
    )
    found = vault.recover()
    again = "restore it from a backup, or: smpctl vault rm"
    notes += [f"the file of vault object {item} is gone: {again} {item}" for item in found.missing]
    notes += [
        f"the file of vault object {item} has another size than it came with: {again} {item}" for item in found.damaged
    ]
    notes += [f"the record of vault object {item} is damaged: smpctl vault rm {item}" for item in found.unproved]
    notes += [f"the record of remote {name} is damaged: remove it and add it again" for name in remotes.damaged()]
    if count := trust.damaged():
        notes.append(f"the record of {count} senders is damaged, who are not believed: add those that are not listed")
    notes += [
        f"the record of sync {name} is damaged: smpctl sync remove {name}, then add it again"
        for name in syncs.damaged()
    ]
    if count := journal.endings.damaged:
        notes.append(f"of {count} jobs the note of their end was damaged: smpctl audit tail does not tell of that end")
    return notes + [f"the record of job {job} is damaged" for job in journal.damaged()]


def _room(space: Space, audit: KeptLog, pools: Pools, job: Job) -> SmpError | None:
    """Why a job had better not start: the audit log is broken, there is no space, or a remote of it is down.

    Nor one that waits for a restart. A put's files are sealed already; of others the size may be known.
    """
    if audit.broken:
        hint = "an admin runs: smpctl audit renew --reason TEXT"
        return AuditError("audit_broken", f"the job waits: {audit.failure}", hint=hint)
    needed = 0 if isinstance(job.spec, PutSpec) else _JOB_BYTES
    if needed and job.error is not None:
        needed = max(needed, int(job.error.details.get("needed_bytes", 0)))
    if job.error is not None and job.error.code == "program_replaced" and is_replaced():
        return replaced("what this job needs")
    try:
        space.require(needed, "this job")
    except SmpError as error:
        return error
    return pools.held(_remotes(job))


def _remotes(job: Job) -> tuple[str, ...]:
    """The names of those that a job is about."""
    return remotes_of(getattr(job.spec, "source", ""), getattr(job.spec, "target", ""))


def _fetch(config: Config) -> FetchSettings:
    fetch = config.fetch
    return FetchSettings(
        processes=fetch.processes_max,
        slots=fetch.slots,
        slot_bytes=fetch.slot_bytes,
        connections=fetch.connections,
        idle_s=fetch.idle_s,
        sandbox=config.compute.sandbox,
        deadlines=Deadlines(
            connect_s=fetch.connect_s,
            login_s=fetch.login_s,
            stall_s=fetch.stall_s,
            rate_min=fetch.rate_min,
            window_s=fetch.window_s,
            answer_s=fetch.answer_s,
        ),
        breaker=BreakerSettings(fetch.breaker_failures, fetch.probe_s, fetch.probe_max_s),
    )


def _compute(config: Config) -> ComputeSettings:
    compute, slot_bytes = config.compute, config.fetch.slot_bytes
    return ComputeSettings(
        slots=compute.slots,
        slot_bytes=slot_bytes,
        result_slots=compute.result_slots,
        result_slot_bytes=slot_bytes,
        device=compute.device,
        sandbox=compute.sandbox,
        memory_bytes=machine_bytes() // 2 if compute.memory_bytes == "auto" else compute.memory_bytes,
        timeout_s=compute.timeout_s,
        idle_s=compute.idle_s,
        keeper=compute.socket if compute.start == "socket" else "",
        health=HealthSettings(
            -1 if compute.kept_bytes == "auto" else compute.kept_bytes, compute.leak_bytes, compute.leak_runs
        ),
    )


# Parsing checks that its points are on their curves, which takes longer than a signature.
_parsed = lru_cache(1024)(PublicIdentity.parse)


class _Senders:
    """How a sender is believed: this box itself, or whom the trust store names for that location, as it is now."""

    def __init__(self, identities: list[Identity], trust: TrustStore) -> None:
        self._believed = trust.read()
        self._own = {each.public.key_id: each.public for each in identities}

    def __call__(self, key_id: bytes, location: str) -> PublicIdentity:
        return self._own.get(key_id) or _parsed(self._believed.lookup(key_id, location, time.time()))

    def everyone(self) -> Collection[PublicIdentity]:
        """See :class:`smpd.transfer.box.Senders`."""
        return [*self._own.values(), *map(_parsed, self._believed.keys)]


class _Recorder:
    """Writes records; see :class:`smpd.transfer.box.Audit`."""

    def __init__(self, log: KeptLog) -> None:
        self._log = log

    def write(self, event: str, *, act: Callable[[], Any] | None = None, **fields: Any) -> Any:
        if self._log.failure:  # tried first: the space may be back
            self._log.retry()
        self._log.append(event, **fields)
        return act() if act else None

    async def __call__(self, event: str, **fields: Any) -> Any:
        # Not to be cancelled half way: the caller would not know whether the record is there.
        with anyio.CancelScope(shield=True):
            return await anyio.to_thread.run_sync(partial(self.write, event, **fields))
