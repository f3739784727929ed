"""The client for programs on asyncio, or anyio on it: the methods of :class:`smpctl.Client`, awaited."""

import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from functools import partial
from typing import Literal, TypeVar

import anyio
import anyio.abc
import anyio.to_thread

from smp_proto import control as c
from smp_proto.errors import DaemonError, SmpError
from smpctl.asking import SLOW_TIMEOUT_S
from smpctl.async_asking import AsyncAsking
from smpctl.async_connection import in_thread, message_of, messages
from smpctl.client import Paths, Progress, new_key
from smpctl.files import batches, wanted_entries
from smpctl.handing import Handing
from smpctl.landing import Landing, check_apart, opening
from smpctl.watching import Cursor, job_of, joined

T = TypeVar("T")


class AsyncClient(AsyncAsking):
    """A client of the daemon, an async context manager; its methods may run at the same time.

    Args:
        path: the control socket; found as ``smpctl.address.candidates`` says when None.

    The methods, their arguments and their errors are those of :class:`smpctl.Client`; ``watch``, ``ls`` and
    ``audit_lines`` are async iterators.
    """

    # ── the box ──

    async def status(self) -> c.Status:
        """How the daemon is."""
        return await self._call(c.StatusRequest(), c.Status)

    async def doctor(self) -> list[c.Check]:
        """What the box can and cannot do."""
        return (await self._call(c.DoctorRequest(), c.Doctor, SLOW_TIMEOUT_S)).checks

    async def notify_test(self) -> c.NotifyTested:
        """Have the daemon tell somebody that this is a test; see ``error`` of what was tried."""
        return await self._call(c.NotifyTest(), c.NotifyTested, SLOW_TIMEOUT_S)

    async def reload(self) -> c.Reloaded:
        """Have the daemon read its configuration again."""
        return await self._call(c.Reload(), c.Reloaded)

    async def processors(self) -> list[c.ProcessorInfo]:
        """The processors that are loaded."""
        parts = await self._parts(c.ProcessorsRequest(), c.Processors, SLOW_TIMEOUT_S)
        return [info for part in parts for info in part.processors]

    async def box_key(self) -> c.PublicKey:
        """The public key of the box, to seal for it."""
        return await self._call(c.BoxKey(), c.PublicKey)

    async def box_rotate(self, reason: str = "") -> c.PublicKey:
        """Give the box a new key, which is returned; the present one only opens from then on."""
        return await self._call(c.BoxRotate(reason), c.PublicKey, SLOW_TIMEOUT_S)

    # ── jobs ──

    async def submit(
        self, spec: c.GetSpec | c.RunSpec, *, key: str | None = None, priority: c.Priority = "normal"
    ) -> c.JobView:
        """Have a job accepted; asks once more, with the same key, if the connection breaks before the answer."""
        request = c.Submit(spec, key or new_key(), priority)
        try:
            return await self._call(request, c.JobView)
        except DaemonError as error:
            if error.code != "daemon_down" or self._caller is None:
                raise
            return await self._call(request, c.JobView)

    async def put(
        self,
        files: Paths,
        target: str,
        recipients: list[str],
        *,
        key: str | None = None,
        priority: c.Priority = "normal",
        progress: Progress | None = None,
        also: Iterable[str] = (),
    ) -> c.JobView:
        """Hand files over to be sealed and uploaded; returns once they are sealed in the spool."""
        named = list(files)
        request = c.Submit(c.PutSpec(target, recipients, list(also)), key or new_key(), priority)
        return await self._again(partial(self._hand_over, request, named, progress))

    async def _hand_over(self, request: c.Submit, files: Paths, progress: Progress | None) -> c.JobView:
        handing = iter(turns := await anyio.to_thread.run_sync(Handing, files, progress))
        async with self._open(request) as exchange:
            with contextlib.suppress(anyio.EndOfStream):
                while (turn := await in_thread(next, handing, None, undo=_close_turn)) is not None:
                    message, fd = turn
                    try:
                        await exchange.send(message, [fd])
                    finally:
                        os.close(fd)
                    while turns.must_wait:
                        turns.sealed(await message_of(exchange, c.Sealing))
                while True:
                    turns.sealed(await message_of(exchange, c.Sealing))
            return await exchange.result(c.JobView)

    async def jobs(self, states: Iterable[c.JobState] = (), *, limit: int = 100, begins: str = "") -> list[c.JobView]:
        """Jobs, newest first; with ``begins`` those whose id begins so."""
        return (await self._call(c.JobsRequest(list(states), limit, begins), c.Jobs)).jobs

    async def job(self, id: str) -> c.JobView:  # noqa: A002 - the protocol's own name
        """One job."""
        return await self._call(c.JobRequest(id), c.JobView)

    async def pause(self, id: str) -> c.JobView:  # noqa: A002
        """Pause a job; what was fetched is kept."""
        return await self._call(c.JobControl(id, "pause"), c.JobView)

    async def resume(self, id: str) -> c.JobView:  # noqa: A002
        """Let a paused job go on."""
        return await self._call(c.JobControl(id, "resume"), c.JobView)

    async def cancel(self, id: str) -> c.JobView:  # noqa: A002
        """Cancel a job."""
        return await self._call(c.JobControl(id, "cancel"), c.JobView)

    async def watch(
        self,
        since: int = 0,
        jobs: Iterable[str] = (),
        *,
        ago_s: float = 0.0,
        resume: bool = True,
        patience_s: float = 60.0,
    ) -> AsyncGenerator[c.Event, None]:
        """Yield a snapshot of the jobs, then events; see :meth:`smpctl.Client.watch`.

        Leave it early only through ``contextlib.aclosing``, as any async generator.
        """
        wanted = list(jobs)
        cursor = Cursor(since, resume, patience_s)
        while True:
            try:
                start = cursor.joined((await self.connect()).boot_id)
                async with self._open(c.Watch(start, wanted, ago_s)) as exchange:
                    async for event in exchange.messages(c.Event):
                        cursor.saw(event)
                        yield event
                return
            except SmpError as error:
                await anyio.sleep(cursor.after(error))

    async def wait(
        self,
        id: str,  # noqa: A002
        on_event: Callable[[c.JobView], Awaitable[object]] | None = None,
        *,
        patience_s: float = 60.0,
    ) -> c.JobView:
        """Wait until a job is final, across restarts of the daemon, and return it."""
        last: c.JobView | None = None
        async with contextlib.aclosing(self.watch(jobs=[id], patience_s=patience_s)) as events:
            async for event in events:
                job = job_of(event)
                last = job or last
                if job is not None and on_event is not None:
                    await on_event(job)
        return last if last is not None and last.state in c.FINAL_STATES else await self.job(id)

    # ── remotes ──

    async def remote_add(
        self,
        name: str,
        config: c.AnyRemoteConfig,
        *,
        mode: c.Mode = "zero-knowledge",
        secret: c.AnyRemoteSecret | None = None,
        replace: bool = False,
    ) -> c.RemoteView:
        """Keep a remote; its secret is sealed at rest. ``replace``: another secret of one that is kept."""
        return await self._call(c.RemoteAdd(name, config, mode, secret, replace), c.RemoteView)

    async def remotes(self) -> list[c.RemoteView]:
        """All remotes, without their secrets."""
        parts = await self._parts(c.RemoteList(), c.Remotes)
        return [remote for part in parts for remote in part.remotes]

    async def remote_test(self, name: str) -> c.RemoteTested:
        """Connect to a remote, log in and list."""
        return await self._call(c.RemoteTest(name), c.RemoteTested, SLOW_TIMEOUT_S)

    async def remote_remove(self, name: str) -> None:
        """Forget a remote and its secret."""
        await self._call(c.RemoteRemove(name), type(None))

    async def ls(self, location: str, *, recursive: bool = True) -> AsyncGenerator[c.ObjectInfo, None]:
        """Yield the objects below ``REMOTE:PREFIX``."""
        listing = self._stream(c.ListObjects(location, recursive), c.Objects, SLOW_TIMEOUT_S)
        async with contextlib.aclosing(listing) as parts:
            async for batch in parts:
                for found in batch.objects:
                    yield found

    # ── syncs ──

    async def rm(self, location: str) -> None:
        """Remove an object of a remote, if it is there."""
        await self._call(c.RemoveObject(location), type(None))

    async def sync_add(self, spec: c.SyncSpec) -> c.SyncView:
        """Begin to watch a prefix."""
        return await self._call(c.SyncAdd(spec), c.SyncView)

    async def syncs(self) -> list[c.SyncView]:
        """All syncs, by name."""
        return [sync for part in await self._parts(c.SyncList(), c.Syncs) for sync in part.syncs]

    async def sync_show(self, name: str) -> c.SyncShown:
        """One sync, and the objects that failed."""
        return await self._call(c.SyncShow(name), c.SyncShown)

    async def sync_control(self, name: str, action: Literal["pause", "resume", "now", "retry", "remove"]) -> c.SyncView:
        """Pause a sync, let it go on, list at once, try again what failed, or forget it."""
        return await self._call(c.SyncControl(name, action), c.SyncView, SLOW_TIMEOUT_S)

    # ── vault ──

    async def vault(self, job: str = "") -> list[c.VaultItem]:
        """What is kept on the box, sealed, newest first; of one job where it is named."""
        found: list[c.VaultItem] = []
        while True:
            page = (await self._call(c.VaultList(job, found[-1].id if found else ""), c.Vault)).items
            found += page
            if len(page) < c.VAULT_PAGE:
                return found

    async def vault_entries(self, id: str) -> list[c.EntryView]:  # noqa: A002
        """The names inside one item; opening its index is audited."""
        parts = await self._parts(c.VaultEntries(id), c.Entries)
        return [entry for part in parts for entry in part.entries]

    async def vault_open(
        self,
        id: str,  # noqa: A002
        dest: str | os.PathLike[str],
        *,
        names: Iterable[str] | None = None,
        overwrite: bool = False,
    ) -> list[c.EntryView]:
        """Open an item in the clear into files below ``dest``; see :meth:`smpctl.Client.vault_open`."""
        entries = wanted_entries(await self.vault_entries(id), names)
        await self._land({id: entries}, dest, overwrite)
        return entries

    async def vault_open_all(
        self, ids: Iterable[str], dest: str | os.PathLike[str], *, overwrite: bool = False
    ) -> dict[str, list[c.EntryView]]:
        """Open several items into one folder, all or none; see :meth:`smpctl.Client.vault_open_all`."""
        items = {each: await self.vault_entries(each) for each in ids}
        await self._land(items, dest, overwrite)
        return items

    async def _land(self, items: dict[str, list[c.EntryView]], dest: str | os.PathLike[str], overwrite: bool) -> None:
        thread = anyio.to_thread.run_sync
        await thread(check_apart, items)
        landing = Landing(dest, overwrite=overwrite)
        await in_thread(landing.__enter__, undo=lambda entered: entered.__exit__())
        try:
            await thread(landing.plan, [entry.name for entries in items.values() for entry in entries])
            for item, batch in batches(items):
                with opening(item):
                    await self._again(partial(self._fill, landing, item, batch))
            await thread(landing.commit, {entry.name: entry.size for entries in items.values() for entry in entries})
        finally:
            with anyio.CancelScope(shield=True):
                await thread(landing.__exit__)

    async def _fill(self, landing: Landing, item: str, batch: list[c.EntryView]) -> None:
        async with self._open(c.VaultOpen(item)) as exchange:
            for entry in batch:
                fd = await in_thread(landing.create, entry.name, undo=os.close)
                try:
                    await exchange.send(c.OpenInto(entry.name, last=entry is batch[-1]), [fd])
                finally:
                    os.close(fd)
            await exchange.result(c.Entries)

    async def vault_remove(self, id: str) -> None:  # noqa: A002
        """Delete an item."""
        await self._call(c.VaultRemove(id), type(None))

    # ── quarantine ──

    async def quarantine(self, job: str = "") -> list[c.QuarantineItem]:
        """What was refused, newest first; by one job where it is named."""
        found: list[c.QuarantineItem] = []
        while True:
            parts = await self._parts(c.QuarantineList(job, found[-1].id if found else ""), c.Quarantine)
            page = [item for part in parts for item in part.items]
            found += page
            if len(page) < c.QUARANTINE_PAGE:
                return found

    async def quarantine_show(self, id: str) -> c.QuarantineItem:  # noqa: A002
        """One item."""
        return await self._call(c.QuarantineShow(id), c.QuarantineItem)

    async def quarantine_retry(self, id: str, *, accept_older: bool = False) -> c.JobView:  # noqa: A002
        """Resume the job that refused an item; see :meth:`smpctl.Client.quarantine_retry`."""
        return await self._call(c.QuarantineRetry(id, accept_older), c.JobView)

    async def quarantine_remove(self, id: str) -> c.JobView:  # noqa: A002
        """Delete an item, and return its job, which is cancelled with its last item."""
        return await self._call(c.QuarantineRemove(id), c.JobView)

    # ── trust and audit ──

    async def trust_add(self, name: str, key: str, *, prefixes: Iterable[str] = (), until: float = 0.0) -> c.TrustView:
        """Have the daemon believe a sender; ``key`` is a public key as text."""
        return await self._call(c.TrustAdd(name, key, list(prefixes), until), c.TrustView)

    async def trusted(self) -> list[c.TrustView]:
        """The senders that the daemon knows, removed ones included."""
        return (await self._call(c.TrustList(), c.Trusted)).senders

    async def trust_remove(self, name: str) -> c.TrustView:
        """Have the daemon stop believing a sender."""
        return await self._call(c.TrustRemove(name), c.TrustView)

    async def audit_read(self, since: int = 0, *, newest: bool = False) -> tuple[list[bytes], c.AuditProof]:
        """Records from ``since`` on, as stored, one line each, and what is needed to verify them.

        ``newest``: of the checkpoints only the newest one.
        """

        async def read() -> tuple[list[bytes], c.AuditProof]:
            async with self._open(c.AuditRead(since, newest=newest)) as exchange:
                batches = [batch async for batch in messages(exchange, c.AuditLines)]
                proof = await exchange.result(c.AuditProof)
            proof.checkpoints = [note for batch in batches for note in batch.checkpoints] + proof.checkpoints
            return [line for batch in batches for line in batch.lines], proof

        return await self._again(read)

    async def metrics(self) -> list[c.MetricFamily]:
        """Every metric of the daemon, of remotes and syncs those that one may see."""
        return joined([part async for part in self._stream(c.MetricsRequest(), c.MetricFamily)])

    async def audit_renew(self, reason: str) -> c.AuditRenewed:
        """Have an audit log that is broken set aside, and a new one begun."""
        return await self._call(c.AuditRenew(reason), c.AuditRenewed, SLOW_TIMEOUT_S)

    async def audit_lines(self, since: int = 0, *, last: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield the records alone, for a log that is too large to hold; with ``last`` so many of the last."""
        reading = self._stream(c.AuditRead(since, last, newest=True), c.AuditLines)
        async with contextlib.aclosing(reading) as parts:
            async for batch in parts:
                for line in batch.lines:
                    yield line


def _close_turn(turn: tuple[c.PutFile, int] | None) -> None:
    if turn is not None:
        os.close(turn[1])
