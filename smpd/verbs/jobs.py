"""Verbs for jobs: submit, list, control."""

import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
from msgspec.structs import replace

from smp_proto.aio import Exchange, encode
from smp_proto.control import (
    GetSpec,
    JobControl,
    JobRequest,
    Jobs,
    JobsRequest,
    JobView,
    PutFile,
    PutSpec,
    Result,
    RunSpec,
    Sealing,
    Submit,
)
from smp_proto.durable import also_name
from smp_proto.errors import DaemonError, UsageError
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.entries import guess_media_type
from smp_proto.sealed.keys import PublicIdentity
from smp_proto.wire import BODY_MAX_BYTES
from smpd.control.actor import Actor
from smpd.control.limits import is_master
from smpd.control.permissions import check, needs_of_job
from smpd.host.handed import Handed, Share
from smpd.host.space import disk_errors
from smpd.jobs.job import Job, new_job_id
from smpd.transfer.refusing import publish
from smpd.transfer.runner import result_of
from smpd.transfer.sealing import HandedFile, sealed_file
from smpd.vault.remotes import is_prefix
from smpd.verbs.daemon import Daemon, next_file
from smpd.verbs.places import pool_of
from smpd.verbs.quarantine import record_of_refused
from smpd.verbs.seen import JobsSeen

_PROGRESS_BYTES = 32 << 20
_FILES_MAX = 100_000
_ALSO_MAX = 16
_JOBS_MAX = 10_000
_JOBS_BYTES = BODY_MAX_BYTES - 1024
_LONG_BYTES = 16 << 10


async def submit(daemon: Daemon, actor: Actor, request: Submit, exchange: Exchange) -> JobView:
    """Accept a job: durable, audited, then acknowledged."""
    journal = daemon.box.journal
    spec = request.job
    await _check(daemon, spec)
    sealed: Result | None = None
    job_id = new_job_id(time.time())
    if isinstance(spec, PutSpec):
        sealed = await _seal_files(daemon, job_id, spec, exchange, daemon.handed.of(actor.uid))
    parts = _one_each(request, job_id)
    accepted: list[Job] = []
    # From here on a client that goes away must not leave a job that is kept and not run, or files of none.
    with anyio.CancelScope(shield=True):
        try:
            for each_id in parts:
                if each_id != job_id:
                    link = partial(also_name, daemon.runner.leavings.out(job_id), daemon.runner.leavings.out(each_id))
                    with disk_errors("the spool"):
                        await anyio.to_thread.run_sync(link)
            for each_id, each in parts.items():
                accepted.append(await _record(daemon, actor, each, each_id, sealed))
        finally:
            for each_id in parts.keys() - {job.id for job in accepted}:
                if sealed is not None:  # refused, or the same request came before
                    await daemon.runner.leavings.clean(each_id)
            for job in accepted:
                if job.id in parts:
                    daemon.scheduler.submitted(job)
    view = journal.view(accepted[0])
    view.also = [job.id for job in accepted[1:]]
    return view


def _one_each(request: Submit, job_id: str) -> dict[str, Submit]:
    """The request as one for each target, by the ids of their jobs."""
    spec = request.job
    if not isinstance(spec, PutSpec):
        return {job_id: request}
    found = {job_id: replace(request, job=replace(spec, also=[]))}
    for number, target in enumerate(spec.also, 1):
        one = PutSpec(target, spec.recipients)
        found[new_job_id(time.time())] = replace(request, job=one, key=f"{request.key}/{number}")
    return found


async def _record(daemon: Daemon, actor: Actor, request: Submit, job_id: str, sealed: Result | None) -> Job:
    spec = request.job
    subject = spec.target if isinstance(spec, PutSpec) else spec.source
    accept = partial(_accept, daemon, actor, request, job_id, sealed)
    fields = {"job": job_id, "kind": str(spec.__struct_config__.tag), "priority": request.priority}
    found: Job = await daemon.record(actor, "job.submit", subject, act=accept, **fields)
    return found


def _accept(daemon: Daemon, actor: Actor, request: Submit, job_id: str, sealed: Result | None) -> Job:
    journal = daemon.box.journal
    found, _ = journal.add(
        request.job,
        owner=actor.label,
        key=request.key,
        priority=request.priority,
        job_id=job_id,
        unfinished_max=0 if is_master(actor.uid) else daemon.config.jobs.unfinished_user_max,
        source=None if sealed is None else daemon.runner.leavings.sealed_source(job_id, sealed),
    )
    return found


async def _check(daemon: Daemon, spec: GetSpec | RunSpec | PutSpec) -> None:
    """Refuse at once what can never work."""
    locations = [spec.target, *spec.also] if isinstance(spec, PutSpec) else [spec.source]
    if len(locations) > 1 + _ALSO_MAX or len(set(locations)) < len(locations):
        raise UsageError("bad_request", f"a put has at most {_ALSO_MAX} more targets, each once", hint="leave some out")
    if isinstance(spec, RunSpec):
        daemon.box.compute.of(spec.processor)
        locations += [spec.target] if spec.target else []
        if spec.target == spec.source and not is_prefix(spec.target.partition(":")[2]):
            message = f"the result would replace its source, {spec.target}"
            raise UsageError("bad_request", message, hint="choose another name for it: --to REMOTE:PATH")
    for location in locations:
        await pool_of(daemon, location)
    recipients = [] if isinstance(spec, GetSpec) else spec.recipients
    for text in recipients:
        PublicIdentity.parse(text)
    if isinstance(spec, PutSpec) and not recipients:
        raise UsageError("bad_request", "a put needs at least one recipient", hint="add --to KEY")


async def _seal_files(daemon: Daemon, job_id: str, spec: PutSpec, exchange: Exchange, share: Share) -> Result:
    """Seal the files a client hands over into the spool, and say what was sealed."""
    recipients = [PublicIdentity.parse(text) for text in spec.recipients]
    done = sent = files = 0

    async def advance(count: int) -> None:
        nonlocal done, sent
        done += count
        if done - sent >= _PROGRESS_BYTES:
            sent = done
            await exchange.send(Sealing(done, files))

    out, box = daemon.runner.leavings.out(job_id), daemon.box
    async with sealed_file(box.space, out, box.identities, recipients) as writer:
        for _ in range(_FILES_MAX):
            file, fds = await next_file(exchange, PutFile)
            handed = Handed(share, fds)
            try:
                if len(fds) != 1:
                    raise DaemonError("protocol", "a file of a put comes with one descriptor")
                await _seal_file(daemon, writer, file, HandedFile(fds[0], file.name), handed, advance)
            finally:
                handed.close()
            if file.last:
                break
            files += 1
            await exchange.send(Sealing(done, files))
        else:
            raise UsageError("bad_request", f"a put takes at most {_FILES_MAX} files", hint="split it")
        info = await anyio.to_thread.run_sync(writer.finish)
    return result_of(info)


async def _seal_file(
    daemon: Daemon,
    writer: BundleWriter,
    file: PutFile,
    content: HandedFile,
    handed: Handed,
    advance: Callable[[int], Awaitable[None]],
) -> None:
    """Read in a thread of its user's, which may hang, and seal in one of ours, which must not."""
    begun = False

    def add(data: memoryview) -> None:
        if not begun:
            writer.begin(file.name, file.media_type or guess_media_type(file.name, data))
        if data:
            writer.write(data)
        if content.over:
            writer.end()

    try:
        while not content.over:
            data = await handed.use(content.read)
            await anyio.to_thread.run_sync(add, data, limiter=daemon.sealing)
            begun = True
            await advance(len(data))
    finally:
        content.close()


async def jobs(daemon: Daemon, actor: Actor, request: JobsRequest, exchange: Exchange) -> Jobs:
    """List jobs, newest first, as many as fit one frame: a long one that does not keeps no other out."""
    journal = daemon.box.journal
    seen = JobsSeen(journal, actor)
    limit = min(max(request.limit, 0), _JOBS_MAX)
    views = [
        journal.view(job) for job in await anyio.to_thread.run_sync(seen.list, request.states, limit, request.begins)
    ]
    for view in views:
        if view.state != "running":
            view.stages = []
    found: list[JobView] = []
    filled = 0
    for view in views:
        if filled + (length := len(encode(view))) <= _JOBS_BYTES:
            found.append(view)
            filled += length
        elif length <= _LONG_BYTES:
            break
    return Jobs(found)


async def job(daemon: Daemon, actor: Actor, request: JobRequest, exchange: Exchange) -> JobView:
    """Show one job."""
    journal = daemon.box.journal
    return journal.view(await anyio.to_thread.run_sync(JobsSeen(journal, actor).get, request.id))


async def control(daemon: Daemon, actor: Actor, request: JobControl, exchange: Exchange) -> JobView:
    """Pause, resume or cancel. To resume takes what submitting would; the job runs with its owner's rights."""
    found = await anyio.to_thread.run_sync(JobsSeen(daemon.box.journal, actor).get, request.id)
    if request.action == "resume":
        check(actor.rights, actor.label, needs_of_job(found.spec))
    async with daemon.resting if request.action == "resume" else contextlib.nullcontext():
        await daemon.record(actor, f"job.{request.action}", job_id=found.id)
        refused = await record_of_refused(daemon, actor, found, request.action)
        act = getattr(daemon.scheduler, request.action)
        moved = await act(found.id)
    if request.action == "cancel":
        for item in refused:  # its move to the end took them out
            publish(daemon.box, moved, item, "remove")
    return daemon.box.journal.view(moved)
