"""Verbs for syncs, and what a sync is given of the daemon."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import anyio

from smp_proto.aio import Exchange
from smp_proto.control import (
    AnyJobSpec,
    Priority,
    S3Config,
    SyncAdd,
    SyncControl,
    SyncList,
    Syncs,
    SyncShow,
    SyncShown,
    SyncSpec,
    SyncView,
)
from smp_proto.errors import UsageError
from smp_proto.sealed.keys import PublicIdentity
from smpd.control.actor import Actor
from smpd.control.limits import is_master
from smpd.control.permissions import EVERYTHING, check, needs_of_sync, remotes_of
from smpd.jobs.job import Job
from smpd.jobs.journal import Journal
from smpd.jobs.scheduler import Scheduler
from smpd.links.queue import Place
from smpd.sync.syncs import unknown_sync
from smpd.transfer.box import Audit
from smpd.transfer.pool import RemotePool
from smpd.transfer.pools import Pools
from smpd.vault.remotes import check_name
from smpd.verbs.batches import batches, in_parts
from smpd.verbs.daemon import Daemon
from smpd.verbs.places import pool_of


class SyncWorld:
    """The daemon as a sync sees it; see :class:`smpd.sync.world.World`."""

    def __init__(
        self,
        pools: Pools,
        journal: Journal,
        scheduler: Scheduler,
        audit: Audit,
        require: Callable[[str, SyncSpec], Coroutine[Any, Any, None]],
    ) -> None:
        self.require = require
        self._journal = journal
        self._scheduler = scheduler
        self.audit = audit
        self._pools = pools

    async def remote(self, name: str) -> RemotePool:
        """The pool of a remote."""
        return await self._pools.get(name)

    async def submit(self, spec: AnyJobSpec, *, owner: str, key: str, priority: Priority, job_id: str) -> Job:
        """Record and keep a job, and have it run."""
        add = partial(self._journal.add, spec, owner=owner, key=key, priority=priority, job_id=job_id)
        kind, subject = str(spec.__struct_config__.tag), str(getattr(spec, "source", ""))
        fields = {"job": job_id, "kind": kind, "priority": priority, "by": "sync"}
        job, created = await self.audit("job.submit", actor=owner, subject=subject, act=add, **fields)
        if created:
            self._scheduler.submitted(job)
        found: Job = job
        return found

    async def job(self, job_id: str) -> Job:
        """A job as it is now."""
        return await anyio.to_thread.run_sync(self._journal.get, job_id)

    async def resume(self, job_id: str) -> Job:
        """Let a job that failed try again."""
        return await self._scheduler.resume(job_id)


async def sync_add(daemon: Daemon, actor: Actor, request: SyncAdd, exchange: Exchange) -> SyncView:
    """Begin to watch, once what can be checked now is right."""
    spec = request.sync
    check_name(spec.name, "sync")
    source = await pool_of(daemon, spec.source)
    if spec.target:
        await pool_of(daemon, spec.target)
    if spec.events and source.kind != "s3":
        hint = "leave out --events: a folder tells by itself, an SFTP server is listed"
        raise UsageError("bad_request", f"remote {source.name} is no bucket, which a queue could tell of", hint=hint)
    if spec.events:
        config = (await anyio.to_thread.run_sync(daemon.remotes.view, source.name)).config
        assert isinstance(config, S3Config)
        Place.of(spec.events, config.endpoint, config.region)
    if spec.processor:
        daemon.box.compute.of(spec.processor)
    for text in spec.recipients:
        PublicIdentity.parse(text)
    await daemon.record(actor, "sync.add", spec.source, sync=spec.name, after=spec.after)
    most = 0 if is_master(actor.uid) else daemon.config.jobs.syncs_user_max
    return await daemon.syncs.add(spec, actor.label, most=most)


async def sync_list(daemon: Daemon, actor: Actor, request: SyncList, exchange: Exchange) -> Syncs:
    """List the syncs."""
    shown = (view for view in await daemon.syncs.views() if _sees(actor, view.owner, view.spec))
    return await in_parts(exchange, shown, Syncs)


async def sync_show(daemon: Daemon, actor: Actor, request: SyncShow, exchange: Exchange) -> SyncShown:
    """Show one, with its troubles."""
    shown = await daemon.syncs.shown(request.name)
    if not _sees(actor, shown.sync.owner, shown.sync.spec):
        raise unknown_sync(request.name)
    return SyncShown(shown.sync, next(batches(shown.troubles)))


async def sync_control(daemon: Daemon, actor: Actor, request: SyncControl, exchange: Exchange) -> SyncView:
    """Pause, resume, list now, retry, remove."""
    name, action = check_name(request.name, "sync"), request.action
    standing = daemon.syncs.standing(name)
    if standing is None:
        if action != "remove" or actor.rights != EVERYTHING:
            raise unknown_sync(name)
    elif not _sees(actor, standing.owner, standing.spec):
        raise unknown_sync(name)
    elif action in ("resume", "retry"):
        check(actor.rights, actor.label, needs_of_sync(standing.spec))
    fields: dict[str, Any] = {"sync": name}
    await daemon.record(actor, f"sync.{action}", **fields)
    return await daemon.syncs.control(name, action)


def _sees(actor: Actor, owner: str, spec: SyncSpec) -> bool:
    return actor.sees(owner, remotes_of(spec.source, spec.target))
