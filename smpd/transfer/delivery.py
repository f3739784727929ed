"""Publishing a sealed result at a remote, once.

The steps are: the result is sealed in the spool; what is at its name is noted; the row says that sending begins, and
under what name; the audit record; the upload, which comes to be under its name whole or not at all; a look at what the
server has then; and the commit that makes the job done, which is the scheduler's. A crash between any two of them
repeats a step and not the effect, since an attempt that finds the row clears away what an upload left, and then looks
for its own object before it sends anything.

What is at the name and is neither ours nor what was there when the job began belongs to somebody else: it is never
replaced, and the job fails for a person to decide.
"""

import contextlib
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import anyio
import msgspec

from smp_proto.aio import aside
from smp_proto.control import PutSpec, Result, RunSpec
from smp_proto.durable import part_name
from smp_proto.errors import NotFoundError, RemoteError, SmpError, StateError
from smpd.host.space import disk_errors
from smpd.jobs.deliveries import Delivery
from smpd.jobs.job import Job
from smpd.jobs.journal import Journal
from smpd.links.fetching import Clear, Look, Looked
from smpd.transfer.asking import persist
from smpd.transfer.box import Box, Meter
from smpd.transfer.pool import RemotePool
from smpd.transfer.source import naming
from smpd.vault.remotes import is_prefix, parse_location

CLEAR_RETRY_S, CLEAR_RETRY_MAX_S = 60.0, 3600.0


class _UnderWay:
    """The uploads of this box to one name, by job: their ids, empty for as long as the server may give one."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}
        self.clearing = anyio.Lock()


class Courier:
    """Delivers results, and clears away what uploads of jobs that are over left behind.

    Args:
        box: what there is.
        out: the spool file of a job's sealed result.
    """

    def __init__(self, box: Box, out: Callable[[str], str]) -> None:
        self._box = box
        self._out = out
        self._wake = anyio.Event()
        self._under_way: WeakValueDictionary[tuple[str, str], _UnderWay] = WeakValueDictionary()

    @property
    def _journal(self) -> Journal:
        return self._box.journal

    async def plan(self, job: Job, target: str) -> None:
        """Note what is at the target now, so that what comes there meanwhile is told from it."""
        deliveries = self._journal.deliveries
        if await _thread(deliveries.get, job.id) is None:
            await _thread(deliveries.keep, job.id, await self._planned(job, target))

    def begin(self, job: Job) -> Delivery | None:
        """What to note of a delivery that begins once the result is sealed, in one with that; None without a target.

        Blocking.
        """
        if not _target(job):
            return None
        planned = self._journal.deliveries.get(job.id) or Delivery()
        return Delivery(planned.before, sent=True, part=part_name())

    async def deliver(self, job: Job, target: str, result: Result, meter: Meter, *, fresh: bool = False) -> None:
        """Publish the sealed result; it is at its name when this returns, and was checked there.

        Args:
            fresh: it was sealed in this attempt, with what :meth:`begin` gave: nothing was sent yet.

        Raises:
            StateError: ``target_changed``, somebody else's object is at the target.
            SmpError: the remote's.
        """
        meter.stage("deliver")
        pool, path, own = await self._locate(target, job)
        result.target = f"{pool.name}:{path}"
        with disk_errors("the spool"):
            fd = await _thread(os.open, self._out(job.id), os.O_RDONLY | os.O_CLOEXEC)
        try:
            deliveries, size = self._journal.deliveries, result.sealed_bytes
            delivery: Delivery | None = await _thread(deliveries.get, job.id)
            again = delivery is not None and delivery.sent and not fresh
            if delivery is None:
                delivery = await self._planned(job, target)
            elif again or not own:
                if again:
                    await self._clear_if_allowed(pool, path, size, delivery)
                looked = await pool.ask(Look(path, size), Looked, fd)
                if looked.ours:
                    return
                if looked.pin and looked.pin != delivery.before:
                    raise await self._taken(job)
            if not fresh:
                delivery = Delivery(delivery.before, sent=True, part=part_name())
                await _thread(deliveries.keep, job.id, delivery)
            await self._record(job, result, again=again)
            meter.begin("upload", size)
            await self._upload(job, pool, path, fd, size, meter, delivery)
        except SmpError as error:
            raise naming(_of_target(error), result.target) from error
        finally:
            os.close(fd)

    async def _record(self, job: Job, result: Result, *, again: bool) -> None:
        more: dict[str, Any] = {"again": True} if again else {}
        subject, object_id = result.target, result.object_id
        audit = self._box.audit
        await audit("object.deliver", actor=job.owner, job=job.id, subject=subject, object_id=object_id, **more)

    async def _upload(
        self, job: Job, pool: RemotePool, path: str, fd: int, size: int, meter: Meter, delivery: Delivery
    ) -> None:
        """Send it. A fault that may pass is tried again here, after clearing away and looking as after a crash."""
        tried = False
        under_way = self._to(pool, path)

        async def begun(upload: str) -> None:
            # The server gave an upload its id; nothing is sent under it before that is known here for good.
            nonlocal delivery
            delivery = msgspec.structs.replace(delivery, upload=upload)
            await _thread(self._journal.deliveries.keep, job.id, delivery)
            under_way.ids[job.id] = upload

        async def once() -> None:
            nonlocal tried, delivery
            if tried:
                await self._clear_if_allowed(pool, path, size, delivery)
                # Without the id that is done with: by it the next would not be looked for, should its own be lost.
                delivery = msgspec.structs.replace(delivery, part=part_name(), upload="")
                await _thread(self._journal.deliveries.keep, job.id, delivery)
                if (await pool.ask(Look(path, size), Looked, fd)).ours:
                    return
            tried = True
            async with under_way.clearing:  # what begins meanwhile would look like what is cleared away
                under_way.ids[job.id] = ""
            write = partial(pool.write, path, fd, size, meter.reached, part=delivery.part, replaces=delivery.before)
            try:
                await write(begun=begun)
            finally:
                del under_way.ids[job.id]

        try:
            await persist(once)
        except StateError as error:
            # Perhaps it is what a killed process had sent, and the server only now took.
            if error.code != "target_changed":
                raise
            # Nobody knows of an upload that was not aborted once the row is gone.
            await self._clear_if_allowed(pool, path, size, delivery)
            looked = await pool.ask(Look(path, size), Looked, fd)
            if looked.ours:
                return
            if looked.pin or not delivery.before:
                raise await self._taken(job) from error
            # What was to be replaced went meanwhile, which is told as any other change (RFC 9110 §13.1.1).
            delivery = Delivery(sent=True, part=part_name())
            await _thread(self._journal.deliveries.keep, job.id, delivery)
            await self._upload(job, pool, path, fd, size, meter, delivery)

    async def _planned(self, job: Job, target: str) -> Delivery:
        pool, path, own = await self._locate(target, job)
        if own:  # nobody else has a reason to use that name
            return Delivery()
        try:
            pin = (await pool.stat(path)).pin
        except NotFoundError as error:
            if error.code != "no_such_object":
                raise
            return Delivery()
        if isinstance(job.spec, RunSpec) and parse_location(job.spec.source, prefix=True).holds(parse_location(target)):
            message = f"{target} is one of the objects that the result is made of, and is not replaced by it"
            raise StateError("exists", message, hint="choose another name for the result: --to REMOTE:PATH")
        return Delivery(pin)

    async def _taken(self, job: Job) -> StateError:
        """The error for an object of somebody else; the job's next attempt, if a person wants one, replaces it."""
        await _thread(self._journal.deliveries.forget, job.id)
        return StateError(
            "target_changed",
            "an object that is not this job's appeared there after the job began; it was left as it is",
            hint=f"to replace it: smpctl job resume {job.id}",
        )

    def _to(self, pool: RemotePool, path: str) -> _UnderWay:
        return self._under_way.setdefault((pool.name, path), _UnderWay())

    async def _clear(self, pool: RemotePool, path: str, size: int, delivery: Delivery) -> bool:
        """Remove what an upload that was cut off left at the remote; whether all of it was looked for.

        One whose id nobody learnt looks like one that another job is just beginning: it is not looked for then.
        """
        if not delivery.part:
            return True
        under_way = self._to(pool, path)
        async with under_way.clearing:
            ids = under_way.ids.values()
            clear = Clear(path, size, delivery.part, delivery.upload, "" not in ids, list(ids))
            await pool.ask(clear, type(None))
        return clear.unknown or bool(delivery.upload)

    async def _clear_if_allowed(self, pool: RemotePool, path: str, size: int, delivery: Delivery) -> bool:
        """The same before it is sent again, where what is left does no harm; whether we are allowed to remove it."""
        try:
            await self._clear(pool, path, size, delivery)
        except RemoteError as error:
            if error.code != "remote_forbidden":
                raise
            return False
        return True

    # ── of jobs that are over ──────────────────────────────────────────────────────────────────────────

    def poke(self) -> None:
        """A job ended without a result: look for what its upload left."""
        self._wake.set()

    async def run(self) -> None:
        """Clear away what is left by jobs that are over, until cancelled; what cannot be now is tried again later."""
        aside.set(True)
        pause_s = CLEAR_RETRY_S
        while True:
            self._wake = anyio.Event()
            left = True
            with contextlib.suppress(SmpError):  # the journal cannot be read now
                over = await _thread(self._journal.deliveries.abandoned)
                left = not all([await self._cleared(job) for job in over])
            with anyio.move_on_after(pause_s if left else None):
                await self._wake.wait()
            pause_s = min(2 * pause_s, CLEAR_RETRY_MAX_S) if left else CLEAR_RETRY_S

    async def _cleared(self, job_id: str) -> bool:
        deliveries = self._journal.deliveries
        try:
            job, delivery = await _thread(self._journal.get, job_id), await _thread(deliveries.get, job_id)
            if delivery is None:
                return True
            with contextlib.suppress(NotFoundError):  # the remote was removed, or its bucket
                pool, path, _ = await self._locate(_target(job), job)
                result = await _thread(self._journal.result, job_id)
                if not await self._clear(pool, path, result.sealed_bytes if result else 1 << 62, delivery):
                    return False
            if job.state == "cancelled":
                await _thread(deliveries.forget, job_id)
            else:
                await _thread(deliveries.keep, job_id, msgspec.structs.replace(delivery, part="", upload=""))
        except SmpError:
            return False
        return True

    async def _locate(self, target: str, job: Job) -> tuple[RemotePool, str, bool]:
        """Where a result goes, and whether that name is the job's own."""
        name, path = parse_location(target, prefix=True)
        own = is_prefix(path)
        return await self._box.remote(name), f"{path}{job.id}.smp" if own else path, own


def _of_target(error: SmpError) -> SmpError:
    """That a target is not there is no word on the source: whoever follows that would take it for gone."""
    if error.code != "no_such_object":
        return error
    hint = "see whether a file lies where a folder is to be, and whether the server takes this name"
    return RemoteError("remote_failed", f"it cannot be written there: {error.message}", hint=hint, retryable=False)


def _target(job: Job) -> str:
    assert isinstance(job.spec, RunSpec | PutSpec)
    return job.spec.target


_thread: Callable[..., Awaitable[Any]] = anyio.to_thread.run_sync
