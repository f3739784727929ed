"""The composition root: puts the rooms together, runs them, and takes them down in order."""

import contextlib
import gc
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup

from smp_proto import __version__
from smp_proto.control import JobState, JobView, PutSpec, QuarantineChange, RemoteHealth, Result, SyncChanged
from smp_proto.errors import AuditError, ErrorBody, IntegrityError, SmpError
from smp_proto.sealed.keys import PublicIdentity
from smpd.audit.kept import KeptLog
from smpd.config import Config
from smpd.control.actor import Actor, RoleGroups, owner_of, unknown_accounts
from smpd.control.permissions import Permissions, remotes_of
from smpd.control.roles import require_owner
from smpd.control.server import ControlServer
from smpd.control.watch import Events
from smpd.host.descriptors import bounded, raise_limit
from smpd.host.folders import ensure_dir, lock_state
from smpd.host.memory import machine_bytes
from smpd.host.notify import Notifier
from smpd.host.process import trim_memory
from smpd.host.sockets import bind_socket, inherited_sockets
from smpd.host.space import Space
from smpd.jobs.job import Job, Progress
from smpd.jobs.journal import Journal
from smpd.jobs.retention import Retention
from smpd.jobs.salvage import Salvaged
from smpd.jobs.scheduler import Scheduler
from smpd.jobs.seal import StateSeal
from smpd.links.fetching import Deadlines
from smpd.state import State, lost_jobs, open_state
from smpd.sync.store import SyncStore
from smpd.sync.syncs import Syncs
from smpd.transfer.box import Box, Senders
from smpd.transfer.breaker import BreakerSettings
from smpd.transfer.device import ComputePools, ComputeSettings
from smpd.transfer.ends import Ends
from smpd.transfer.pool import FetchSettings
from smpd.transfer.pools import Pools
from smpd.transfer.refusing import Refusals
from smpd.transfer.runner import Runner
from smpd.vault.keys import BoxKeys
from smpd.vault.objects import Vault
from smpd.vault.quarantine import Quarantine
from smpd.vault.remotes import RemoteStore
from smpd.vault.trust import TrustStore
from smpd.vault.versions import Versions
from smpd.verbs import handlers
from smpd.verbs.daemon import Daemon
from smpd.verbs.seen import JobsSeen
from smpd.verbs.syncs import SyncWorld

_log = structlog.get_logger("smpd")
_SNAPSHOT_JOBS = 1000
_AUDIT_RETRY_S = 10.0
_TRIM_S = 11.0
_JOB_BYTES = 1 << 20  # a job whose size is not known yet is not begun with less


async def run(config: Config) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    Raises:
        SmpError: why it could not start.
    """
    state = config.paths.state
    notifier = Notifier()
    ensure_dir(state)
    lock = lock_state(state)
    raise_limit()
    try:
        opened = await anyio.to_thread.run_sync(open_state, config)
        try:
            await _serve(config, opened, notifier)
        finally:
            notifier.stopping()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(opened.close)
    finally:
        os.close(lock)


async def _serve(config: Config, state: State, notifier: Notifier) -> None:
    async with anyio.create_task_group() as workers:
        daemon = await anyio.to_thread.run_sync(_compose, config, state, workers)
        gc.freeze()  # what lives for ever is not looked through again in the middle of a transfer
        try:
            await _serve_until_told(config, state, daemon, notifier)
        finally:
            # Only now, when no job and no request uses them any more, may the workers and their rings go.
            with anyio.CancelScope(shield=True):
                await daemon.pools.aclose()
                with contextlib.suppress(SmpError):  # what is not struck out is recorded again at the next start
                    await anyio.to_thread.run_sync(daemon.box.journal.endings.flush)
            workers.cancel_scope.cancel()


async def _serve_until_told(config: Config, state: State, daemon: Daemon, notifier: Notifier) -> None:
    sockets = [each for named in inherited_sockets().values() for each in named]
    async with anyio.create_task_group() as group:
        await _record_start(daemon, created=state.keys.created, salvaged=state.salvaged)
        await _clean_spool(daemon)
        with contextlib.suppress(AuditError):  # later then, when the log can be written
            await daemon.ends.catch_up(again=True)
        await _complete_quarantine(daemon)
        server = ControlServer(
            sockets or [await anyio.to_thread.run_sync(_bind, config)],
            handlers(daemon),
            bounded(config),
            version=__version__,
            boot_id=daemon.boot_id,
            permissions=daemon.permissions,
        )
        await group.start(daemon.syncs.run)
        group.start_soon(server.serve)
        group.start_soon(daemon.scheduler.run)
        group.start_soon(daemon.runner.courier.run)
        group.start_soon(daemon.retention.run)
        group.start_soon(_mend, daemon)
        group.start_soon(_trim_when_idle, daemon)
        group.start_soon(notifier.feed_watchdog)
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:  # before anybody is told to send one
            notifier.ready(f"{daemon.public.fingerprint()}, listening")
            for unknown in unknown_accounts(config):
                _log.warning("configuration", text=unknown)
            _log.info("started", version=__version__, boot_id=daemon.boot_id, fingerprint=daemon.public.fingerprint())
            async for number in signals:
                _log.info("stopping", signal=signal.Signals(number).name)
                break
        group.cancel_scope.cancel()


def _compose(config: Config, state: State, group: TaskGroup) -> Daemon:
    keys, database, audit, seal = state.keys, state.database, state.audit, StateSeal(state.keys.state)
    spool = os.path.join(state.folder, "spool")
    ensure_dir(spool)
    journal, vault = Journal(database, seal), Vault(os.path.join(state.folder, "vault"), database, seal)
    remotes, trust = RemoteStore(database, seal), TrustStore(database, seal)

    def health_changed(health: RemoteHealth) -> None:
        _log.warning("remote", remote=health.name, state=health.state, code=health.code)
        events.publish("remote", health, remotes=(health.name,))
        if health.state != "down":
            scheduler.release()

    pools = Pools(remotes.view, remotes.get, _fetch(config), group, health_changed)

    async def snapshot(actor: Actor, ids: list[str]) -> list[JobView]:
        def views() -> list[JobView]:
            seen = JobsSeen(journal, actor)
            found = [seen.get(each) for each in ids] if ids else seen.list(limit=_SNAPSHOT_JOBS)
            return [journal.view(job) for job in found]

        return await anyio.to_thread.run_sync(views)

    events = Events(snapshot)

    def publish(change: QuarantineChange, job: Job) -> None:
        view = journal.view(job)
        remotes = remotes_of(view.source, view.target)
        events.publish("quarantine", change, job_id=job.id, owner=job.owner, remotes=remotes)

    box = Box(
        identities=[keys.identity],
        senders=partial(_senders, keys.identity.public, trust),
        journal=journal,
        vault=vault,
        quarantine=Quarantine(database, seal, config.quarantine.max_bytes),
        versions=Versions(database, seal, config.quarantine.remembered),
        audit=_recorder(audit),
        publish=publish,
        remote=pools.get,
        compute=ComputePools(config.compute.processors, _compute(config), group),
        spool_dir=spool,
        space=state.space,
    )
    runner = Runner(box)

    def changed(job: Job, progress: bool) -> None:
        if not progress:
            syncs.moved(job)
            retention.moved(job)
        events.publish("job", journal.view(job), job_id=job.id, progress=progress)
        if not progress:
            code = job.error.code if job.error else ""
            _log.info("job", job_id=job.id, state=job.state, attempt=job.attempt, code=code)

    def seen(sync: str) -> None:
        events.publish("sync", SyncChanged(sync), job_id=f"sync {sync}", progress=True)

    ends, retention = Ends(box, runner), Retention(database, journal, config.jobs.ended_kept)
    permissions = Permissions(config.permissions)
    groups = RoleGroups.lookup(config.control)

    async def run_as_owner(job: Job, progress: Progress) -> Result:
        """Every attempt has the rights that its owner has now."""
        if permissions.configured:
            owner = await anyio.to_thread.run_sync(owner_of, job.owner, groups, permissions)
            require_owner(owner, job.spec, config.control)
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
    )
    world = SyncWorld(pools, journal, scheduler, box.audit)
    syncs_store = SyncStore(database, seal)
    syncs = Syncs(syncs_store, world, changed=seen, clock=time.monotonic)
    return Daemon(
        config=config,
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
        audit_key=state.verifier,
        keys_note=keys.protection,
        permissions=permissions,
        notes=[*state.notes, *_notes(keys, vault, journal, remotes, trust, syncs_store), *unknown_accounts(config)],
    )


def _notes(
    keys: BoxKeys, vault: Vault, journal: Journal, remotes: RemoteStore, trust: TrustStore, syncs: SyncStore
) -> list[str]:
    """What ``doctor`` should warn of: found at start, changed by nobody. Of stray files it asks the vault itself."""
    notes = [] if keys.protected else [f"the identity is {keys.protection}; set keys.credential_file"]
    found = vault.recover()
    notes += [f"the file of vault object {item} is gone" for item in found.missing]
    notes += [f"the file of vault object {item} has another size than it came with" for item in found.damaged]
    notes += [f"the record of vault object {item} is damaged: smpctl vault rm {item}" for item in found.unproved]
    notes += [f"the record of remote {name} is damaged: remove it and add it again" for name in remotes.damaged()]
    if count := trust.damaged():
        notes.append(f"the record of {count} senders is damaged, who are not believed: add those that are not listed")
    notes += [
        f"the record of sync {name} is damaged: smpctl sync remove {name}, then add it again"
        for name in syncs.damaged()
    ]
    return notes + [f"the record of job {job} is damaged" for job in journal.damaged()]


def _room(space: Space, audit: KeptLog, pools: Pools, job: Job) -> SmpError | None:
    """Why a job had better not start: the audit log is broken, there is no space, or a remote of it is down.

    A put's files are sealed already; of others the size may be known.
    """
    if audit.broken:
        return AuditError("audit_broken", f"the job waits: {audit.failure}", hint="an admin runs: smpctl audit renew")
    needed = 0 if isinstance(job.spec, PutSpec) else _JOB_BYTES
    if needed and job.error is not None:
        needed = max(needed, int(job.error.details.get("needed_bytes", 0)))
    try:
        space.require(needed, "this job")
    except SmpError as error:
        return error
    return pools.held(remotes_of(getattr(job.spec, "source", ""), getattr(job.spec, "target", "")))


def _fetch(config: Config) -> FetchSettings:
    fetch = config.fetch
    return FetchSettings(
        processes=fetch.processes,
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
    )


def _senders(own: PublicIdentity, trust: TrustStore) -> Senders:
    """How a sender is believed: this box itself, or whom the trust store names for that location, as it is now."""
    believed = trust.read()
    parse = lru_cache(PublicIdentity.parse)

    def sender(key_id: bytes, location: str) -> PublicIdentity:
        return own if key_id == own.key_id else parse(believed.lookup(key_id, location, time.time()))

    return sender


def _recorder(audit: KeptLog) -> Any:
    def write(act: Callable[[], Any] | None, event: str, fields: dict[str, Any]) -> Any:
        if audit.failure:  # tried first: the space may be back
            audit.retry()
        audit.append(event, **fields)
        return act() if act else None

    async def record(event: str, *, act: Callable[[], Any] | None = None, **fields: Any) -> Any:
        # Not to be cancelled half way: the caller would not know whether the record is there.
        with anyio.CancelScope(shield=True):
            return await anyio.to_thread.run_sync(write, act, event, fields)

    return record


async def _record_start(daemon: Daemon, *, created: bool, salvaged: Salvaged | None) -> None:
    key_id = daemon.public.key_id.hex()
    if daemon.audit.broken:
        _log.error("audit log is broken: nothing that needs a record is done", reason=daemon.audit.broken.message)
        return
    if created:
        await daemon.box.audit("key.create", actor="smpd", key_id=key_id)
    if salvaged is not None:
        rows: dict[str, Any] = {f"kept_{table}": count for table, count in salvaged.rows.items()}
        await daemon.box.audit("state.salvaged", actor="smpd", set_aside=salvaged.aside, **rows)
        for job in await anyio.to_thread.run_sync(lost_jobs, daemon.audit, daemon.box.journal):
            daemon.notes.append(f"job {job} was lost with the damaged database: submit it again")
            await daemon.box.audit("job.lost", actor="smpd", job=job)
    await daemon.box.audit("daemon.start", actor="smpd", key_id=key_id, version=__version__, boot_id=daemon.boot_id)


async def _trim_when_idle(daemon: Daemon) -> None:
    """Give memory back once nothing has happened for a while; sleep until something does.

    anyio ends threads that idled for ten seconds when another is used, so it takes two rounds.
    """
    seen = 0
    while True:
        while seen != daemon.events.seq:
            seen = daemon.events.seq
            await anyio.sleep(_TRIM_S)
        for _ in range(2):
            await anyio.to_thread.run_sync(trim_memory)
            await anyio.sleep(_TRIM_S)
        while seen == daemon.events.seq:
            await daemon.events.next()


async def _mend(daemon: Daemon) -> None:
    """Make the reserve whole when there is space, and after a failure of the audit log try until the disk holds it."""
    while True:
        await anyio.sleep(min(_AUDIT_RETRY_S, daemon.config.audit.checkpoint_s))
        await anyio.to_thread.run_sync(daemon.box.space.restore)
        try:
            if daemon.audit.failure and not daemon.audit.broken:
                await anyio.to_thread.run_sync(daemon.audit.retry)
                _log.info("audit log mended")
                await daemon.ends.catch_up(again=True)
        except SmpError as error:
            _log.error("audit log cannot be written", code=error.code)


async def _clean_spool(daemon: Daemon) -> None:
    """Remove what belongs to no job that may still need it; a crash may have left it."""

    def stale() -> list[str]:
        needed = {job.id for job in daemon.box.journal.list(_KEEPING)} | set(daemon.box.journal.damaged())
        return sorted({name.partition(".")[0] for name in os.listdir(daemon.box.spool_dir)} - needed)

    for job_id in await anyio.to_thread.run_sync(stale):
        await daemon.runner.clean(job_id)


async def _complete_quarantine(daemon: Daemon) -> None:
    """Give each quarantined job an item that says why; an older smpd made none."""

    def bare() -> list[Job]:
        found = daemon.box.journal.list(("quarantined",))
        return [job for job in found if not daemon.box.quarantine.count(job.id)]

    for job in await anyio.to_thread.run_sync(bare):
        body = job.error or ErrorBody("corrupt", f"job {job.id} was quarantined; nobody knows why any more")
        await Refusals(daemon.box, job).complete(IntegrityError(body.code, body.message, hint=body.hint))


_KEEPING: tuple[JobState, ...] = ("queued", "waiting", "running", "paused", "failed", "quarantined")


def _bind(config: Config) -> socket.socket:
    folder = os.path.dirname(config.paths.socket)
    group = RoleGroups.lookup(config.control).viewer
    ensure_dir(folder, 0o700 if group is None else 0o750)
    if group is not None:
        os.chown(folder, -1, group)
    return bind_socket(config.paths.socket, int(config.control.socket_mode, 8), -1 if group is None else group)
