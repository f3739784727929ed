"""Verbs for the quarantine: list, show, try again, remove."""

from functools import partial

import anyio

from smp_proto.aio import Exchange
from smp_proto.control import (
    JobView,
    Quarantine,
    QuarantineItem,
    QuarantineList,
    QuarantineRemove,
    QuarantineRetry,
    QuarantineShow,
)
from smp_proto.errors import StateError
from smpd.control.actor import Actor
from smpd.control.permissions import check, needs_of_job
from smpd.jobs.job import Job
from smpd.transfer.refusing import take_out
from smpd.verbs.batches import in_parts
from smpd.verbs.daemon import Daemon
from smpd.verbs.seen import JobsSeen, all_refused_seen, refused_seen


async def quarantine_list(daemon: Daemon, actor: Actor, request: QuarantineList, exchange: Exchange) -> Quarantine:
    """List what was refused, a page of it."""
    seen = JobsSeen(daemon.box.journal, actor)
    page = partial(all_refused_seen, daemon.box.quarantine, seen, request.job, request.before)
    return await in_parts(exchange, await anyio.to_thread.run_sync(page), Quarantine)


async def quarantine_show(daemon: Daemon, actor: Actor, request: QuarantineShow, exchange: Exchange) -> QuarantineItem:
    """Show one item."""
    return await _item(daemon, actor, request.id)


async def quarantine_retry(daemon: Daemon, actor: Actor, request: QuarantineRetry, exchange: Exchange) -> JobView:
    """Resume the job that refused an item, which takes what submitting it would."""
    async with daemon.resting:
        item, job = await _resting(daemon, actor, request.id)
        check(actor.rights, actor.label, needs_of_job(job.spec))
        act = partial(daemon.box.quarantine.accept_older, item.id) if request.accept_older else None
        fields = {"job": item.job, "accept_older": request.accept_older}
        await daemon.record(actor, "quarantine.retry", item.location, act=act, **fields)
        return daemon.box.journal.view(await daemon.scheduler.resume(item.job))


async def quarantine_remove(daemon: Daemon, actor: Actor, request: QuarantineRemove, exchange: Exchange) -> JobView:
    """Delete an item, and with the last one of its job end the job."""
    async with daemon.resting:
        item, job = await _resting(daemon, actor, request.id)
        await take_out(daemon.box, job, actor.label, [item], "removed")
        if not await anyio.to_thread.run_sync(daemon.box.quarantine.count, job.id):
            await daemon.record(actor, "job.cancel", job_id=job.id)
            job = await daemon.scheduler.cancel(job.id)
        return daemon.box.journal.view(job)


async def record_of_refused(daemon: Daemon, actor: Actor, job: Job, action: str) -> list[QuarantineItem]:
    """Record what resuming or cancelling a job means for what it refused: it is tried again, or removed."""
    if action == "pause" or (action == "resume" and job.state != "quarantined"):
        return []
    items = await anyio.to_thread.run_sync(daemon.box.quarantine.list, job.id)
    if items:
        event, outcome = ("quarantine.retry", "") if action == "resume" else ("quarantine.remove", "cancelled")
        subjects = [item.location for item in items]
        await daemon.record(actor, event, subjects=subjects, job=job.id, outcome=outcome)
    return items


async def _item(daemon: Daemon, actor: Actor, item_id: str) -> QuarantineItem:
    seen = JobsSeen(daemon.box.journal, actor)
    return await anyio.to_thread.run_sync(refused_seen, daemon.box.quarantine, seen, item_id)


async def _resting(daemon: Daemon, actor: Actor, item_id: str) -> tuple[QuarantineItem, Job]:
    """An item, and its job, which rests, and goes on doing so for as long as the caller has ``daemon.resting``."""
    item = await _item(daemon, actor, item_id)
    job = await anyio.to_thread.run_sync(daemon.box.journal.get, item.job)
    if job.state != "quarantined":
        raise StateError(
            "wrong_state",
            f"item {item.id} is being tried again: job {job.id} is {job.state}",
            hint=f"wait for it, or stop it: smpctl job cancel {job.id}",
            details={"state": job.state, "job": job.id},
        )
    return item, job
