"""Runs a daemon: starts what :mod:`smpd.composing` put together, and takes it down in order."""

import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import anyio
import structlog

from smp_proto import __version__
from smp_proto.errors import AuditError, ErrorBody, IntegrityError, SmpError
from smpd.composing import compose
from smpd.config import Config
from smpd.control.actor import RoleGroups
from smpd.control.server import ControlServer
from smpd.host.descriptors import bounded, raise_limit
from smpd.host.folders import ensure_dir, lock_state
from smpd.host.logs import configure_logs
from smpd.host.notify import Notifier
from smpd.host.process import collect_seldom, ignore, trim_memory
from smpd.host.sockets import bind_socket, inherited_sockets
from smpd.jobs.job import Job
from smpd.jobs.salvage import Salvaged
from smpd.state import State, lost_jobs, open_state, revived_remotes, revived_senders
from smpd.telling import Telling, probe_device
from smpd.transfer.refusing import Refusals
from smpd.verbs import handlers
from smpd.verbs.counting import probe_loop
from smpd.verbs.daemon import Daemon

_log = structlog.get_logger("smpd")
_AUDIT_RETRY_S = 10.0
_TRIM_S = 11.0
_LOOK_BACK_SHARE = 5  # takes one part in so many of the time
_CLOSE_S = 30.0  # for all that comes after the last job
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def run(config: Config, read: Callable[[], Config], hung_up: Sequence[int] = ()) -> None:
    """Run the daemon until SIGTERM or SIGINT; SIGHUP has it take up what ``read`` gives then.

    Args:
        hung_up: holds something if there was a SIGHUP before those were obeyed.

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
            await _serve(config, read, opened, notifier, hung_up)
        finally:
            notifier.stopping()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(opened.close)
    finally:
        os.close(lock)


async def _serve(
    config: Config, read: Callable[[], Config], state: State, notifier: Notifier, hung_up: Sequence[int]
) -> None:
    async with anyio.create_task_group() as workers:
        daemon = await anyio.to_thread.run_sync(compose, config, state, workers, read)
        collect_seldom()
        try:
            await _serve_until_told(config, state, daemon, notifier, hung_up)
        finally:
            # Only now, when no job and no request uses them any more, may the workers and their rings go.
            with anyio.CancelScope(shield=True):
                await daemon.pools.aclose()
                with contextlib.suppress(SmpError):  # what is not struck out is recorded again at the next start
                    await anyio.to_thread.run_sync(daemon.box.journal.endings.flush)
            workers.cancel_scope.cancel()


async def _serve_until_told(
    config: Config, state: State, daemon: Daemon, notifier: Notifier, hung_up: Sequence[int]
) -> None:
    sockets = [each for named in inherited_sockets().values() for each in named]
    async with anyio.create_task_group() as group:
        await _record_start(daemon, created=state.keys.created, salvaged=state.salvaged, torn=state.torn)
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
            groups=daemon.accounts.groups,
            permissions=daemon.accounts.permissions,
            database=daemon.accounts.database,
            metrics=daemon.metrics,
            handed=daemon.handed,
        )
        _take_up_changes(daemon, server, notifier)
        await group.start(daemon.syncs.run)
        group.start_soon(server.serve)
        group.start_soon(daemon.scheduler.run)
        group.start_soon(daemon.runner.courier.run)
        group.start_soon(daemon.retention.run)
        group.start_soon(daemon.runner.yielding.run, lambda: daemon.scheduler.short)
        for notices in daemon.notices:
            group.start_soon(notices.run)
        group.start_soon(_mend, daemon)
        group.start_soon(_look_back, daemon)
        group.start_soon(_trim_when_idle, daemon)
        group.start_soon(probe_loop, daemon.metrics)
        probed = await probe_device(daemon) if _probes(config, notifier) else "tried when first used"
        group.start_soon(Telling(daemon, notifier).run)
        with anyio.open_signal_receiver(*_SIGNALS) as signals:  # before anybody is told to send one
            notifier.ready(f"{daemon.public.fingerprint()}, listening; device: {probed}")
            for unknown in daemon.accounts.unknown:
                _log.warning("configuration", text=unknown)
            _log.info("started", version=__version__, boot_id=daemon.boot_id, fingerprint=daemon.public.fingerprint())
            if hung_up:
                await _reload(daemon)
            if await _until_told(signals, daemon) == signal.SIGTERM:
                await _drain(signals, daemon, notifier)
        ignore(_SIGNALS)  # another would end what is closing
        group.cancel_scope.cancel()


async def _until_told(signals: AsyncIterator[signal.Signals], daemon: Daemon) -> signal.Signals:
    """Obey signals until one says to stop; return that."""
    async for number in signals:
        if number != signal.SIGHUP:
            _log.info("stopping", signal=signal.Signals(number).name)
            return number
        await _reload(daemon)
    raise AssertionError("signals end")


async def _reload(daemon: Daemon) -> None:
    with contextlib.suppress(SmpError):  # which the log and the status tell
        await daemon.reload("smpd")


async def _drain(signals: AsyncIterator[signal.Signals], daemon: Daemon, notifier: Notifier) -> None:
    """Let what runs end, as long as it may; whoever asks meanwhile is answered. A second signal ends it."""
    limit_s = daemon.config.jobs.drain_s
    notifier.stopping(f"stopping: jobs may end within {limit_s:g} s", limit_s + _CLOSE_S)
    async with anyio.create_task_group() as group:

        async def hurry() -> None:
            await _until_told(signals, daemon)
            group.cancel_scope.cancel()

        group.start_soon(hurry)
        if left := await daemon.scheduler.drain(limit_s):
            _log.info("jobs go on at the next start", count=left)
        group.cancel_scope.cancel()


def _probes(config: Config, notifier: Notifier) -> bool:
    """Whether the device is tried before anybody is told that the daemon is ready."""
    return config.compute.probe == "start" or (config.compute.probe == "auto" and notifier.listens)


def _take_up_changes(daemon: Daemon, server: ControlServer, notifier: Notifier) -> None:
    """Have what :mod:`smpd.composing` does not know follow the configuration, too."""

    async def take_up(config: Config) -> None:
        configure_logs(config.log.level, config.log.format)
        await server.configure(bounded(config), daemon.accounts.groups)
        for unknown in daemon.accounts.unknown:
            _log.warning("configuration", text=unknown)

    daemon.reloading.when(take_up)
    daemon.reloading.around = notifier.reloading


async def _record_start(daemon: Daemon, *, created: bool, salvaged: Salvaged | None, torn: bool) -> None:
    key_id = daemon.public.key_id.hex()
    if daemon.audit.broken:
        _log.error("audit log is broken: nothing that needs a record is done", reason=daemon.audit.broken.message)
        if salvaged is not None:  # nobody can tell later: the log that knows them is set aside then
            daemon.notes += map(_lost, await anyio.to_thread.run_sync(lost_jobs, daemon.audit, daemon.box.journal))
        return
    if created:
        await daemon.box.audit("key.create", actor="smpd", key_id=key_id)
    if salvaged is not None:
        rows: dict[str, Any] = {f"kept_{table}": count for table, count in salvaged.rows.items()}
        await daemon.box.audit("state.salvaged", actor="smpd", set_aside=salvaged.aside, **rows)
        for job in await anyio.to_thread.run_sync(lost_jobs, daemon.audit, daemon.box.journal):
            daemon.notes.append(_lost(job))
            await daemon.box.audit("job.lost", actor="smpd", job=job)
    if salvaged is not None or torn:
        await _remove_again(daemon)
    await daemon.box.audit("daemon.start", actor="smpd", key_id=key_id, version=__version__, boot_id=daemon.boot_id)


async def _remove_again(daemon: Daemon) -> None:
    """That somebody is not believed any more, or a remote forgotten, is not to be lost with what held it."""
    for what, event, revived, remove in (
        ("sender", "trust.remove", partial(revived_senders, daemon.audit, daemon.trust), daemon.trust.remove),
        ("remote", "remote.remove", partial(revived_remotes, daemon.audit, daemon.remotes), daemon.remotes.remove),
    ):
        for name in await anyio.to_thread.run_sync(revived):
            await daemon.box.audit(event, actor="smpd", subject=name)
            await anyio.to_thread.run_sync(remove, name)
            daemon.notes.append(f"that {what} {name} was removed was lost with the damaged database: removed again")


def _lost(job: str) -> str:
    return f"job {job} was lost with the damaged database: submit it again"


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
    """Make the reserve whole when there is space, and sign what is due.

    After a failure of the audit log try until the disk holds it.
    """
    owed: set[int] = set()
    while True:
        await anyio.sleep(min(_AUDIT_RETRY_S, daemon.config.audit.checkpoint_s))
        try:
            if mended := await anyio.to_thread.run_sync(_mended, daemon):
                _log.info("audit log mended")
            # Whoever wrote a record meanwhile may have mended it before this did.
            pending = {ending.number for ending in daemon.box.journal.endings.pending()}
            if mended or (owed & pending and not daemon.audit.failure):
                await daemon.ends.catch_up(again=True)
            owed = pending
        except SmpError as error:
            _log.error("audit log cannot be written", code=error.code)


def _mended(daemon: Daemon) -> bool:
    """Do what time makes due, in one thread, as each wakes a machine at rest; whether the audit log was mended."""
    daemon.box.space.restore()
    if daemon.audit.broken:
        return False
    if daemon.audit.failure:
        daemon.audit.retry()
        return True
    daemon.audit.checkpoint_if_due()
    return False


async def _look_back(daemon: Daemon) -> None:
    """Verify what the opening of a long audit log passed over, in a part of the time, since jobs go on beside it."""
    while daemon.audit.unseen:
        began = anyio.current_time()
        try:
            await anyio.to_thread.run_sync(daemon.audit.look_back)
        except SmpError as error:
            _log.error("older records of the audit log are not verified", code=error.code, reason=error.message)
            await anyio.sleep(_AUDIT_RETRY_S)
        else:
            await anyio.sleep((_LOOK_BACK_SHARE - 1) * (anyio.current_time() - began))


async def _clean_spool(daemon: Daemon) -> None:
    """Remove what belongs to no job that may still need it; a crash may have left it."""

    def stale() -> list[str]:
        jobs = {name.partition(".")[0] for name in os.listdir(daemon.box.spool_dir)}
        return sorted(job_id for job_id in jobs if not daemon.box.journal.needs_spool(job_id))

    for job_id in await anyio.to_thread.run_sync(stale):
        await daemon.runner.leavings.clean(job_id)


async def _complete_quarantine(daemon: Daemon) -> None:
    """Give each quarantined job an item that says why; an older smpd made none."""

    def bare() -> list[Job]:
        found = daemon.box.journal.list(("quarantined",))
        return [job for job in found if not daemon.box.quarantine.count(job.id)]

    for job in await anyio.to_thread.run_sync(bare):
        body = job.error or ErrorBody("corrupt", f"job {job.id} was quarantined; nobody knows why any more")
        await Refusals(daemon.box, job).complete(IntegrityError(body.code, body.message, hint=body.hint))


def _bind(config: Config) -> socket.socket:
    folder = os.path.dirname(config.paths.socket)
    group = RoleGroups.lookup(config.control).viewer
    ensure_dir(folder, 0o700 if group is None else 0o750)
    if group is not None:
        os.chown(folder, -1, group)
    return bind_socket(config.paths.socket, int(config.control.socket_mode, 8), -1 if group is None else group)
