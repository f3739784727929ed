"""All syncs of a running daemon: each has a task of its own; this keeps them, and finds them by name."""

from collections.abc import Callable
from functools import partial

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from smp_proto.aio import aside, encode
from smp_proto.control import FINAL_STATES, SYNC_BYTES_MAX, TROUBLES_MAX, SyncShown, SyncSpec, SyncView
from smp_proto.errors import NotFoundError, SmpError, UsageError
from smpd.jobs.job import Job
from smpd.sync.rules import Rules
from smpd.sync.standing import Standing
from smpd.sync.store import SyncStore
from smpd.sync.watcher import Watcher
from smpd.sync.world import World
from smpd.transfer.places import asker

_log = structlog.get_logger("smpd.sync")
_AGAIN_S = 10.0


def unknown_sync(name: str) -> NotFoundError:
    """There is no sync of this name, or none that the caller may see."""
    return NotFoundError("no_such_sync", f"there is no sync {name[:80]!r}", hint="smpctl sync ls lists them")


class Syncs:
    """The syncs at work. All methods belong to the event loop.

    Args:
        store: what they know.
        world: the daemon.
        changed: called with a sync's name when there is something new to see of it, or it is no more.
        clock: the monotonic clock.
    """

    def __init__(
        self, store: SyncStore, world: World, *, changed: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self._changed = changed
        self._store = store
        self._world = world
        self._clock = clock
        self._watchers: dict[str, Watcher] = {}
        self._scopes: dict[str, anyio.CancelScope] = {}
        self._ended: list[Job] = []
        self._told = anyio.Event()
        self._group: TaskGroup | None = None
        self._changing = anyio.Lock()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Take up all syncs that are kept, which is when it has started, and work for them until cancelled."""
        async with anyio.create_task_group() as group:
            self._group = group
            await anyio.to_thread.run_sync(self._store.restart, self._clock())
            for standing in await anyio.to_thread.run_sync(self._store.all):
                self._begin(standing)
            task_status.started()
            await self._tell_on()

    def moved(self, job: Job) -> None:
        """A job changed: the sync that made it wants to know when it ends."""
        if self._watchers and job.state in FINAL_STATES:
            self._ended.append(job)
            self._told.set()

    async def _tell_on(self) -> None:
        """Tell syncs of their jobs that ended. Which are theirs is looked up: any number may wait for a person."""
        while True:
            self._told = anyio.Event()
            count, jobs = len(self._ended), {job.id: job for job in self._ended}
            try:
                found = await anyio.to_thread.run_sync(self._store.of_jobs, list(jobs))
            except SmpError as error:
                _log.error("syncs cannot be told", code=error.code)
                await anyio.sleep(_AGAIN_S)
                continue
            del self._ended[:count]
            numbers = {watcher.standing.number: watcher for watcher in self._watchers.values()}
            for job_id, number, row in found:
                if number in numbers:
                    numbers[number].ended(row, jobs[job_id])
            if not self._ended:
                await self._told.wait()

    def using(self, remote: str) -> list[str]:
        """The syncs that read from a remote or write to it."""
        return [
            name
            for name, each in self._watchers.items()
            if remote in (each.rules.remote, each.standing.spec.target.partition(":")[0])
        ]

    async def add(self, spec: SyncSpec, owner: str, *, most: int = 0) -> SyncView:
        """Begin to watch.

        Args:
            most: how many syncs this owner may have, this one included; 0 is no limit.

        Raises:
            UsageError: ``bad_request``, ``bad_name``.
            StateError: ``exists``.
        """
        Rules(spec)
        if (size := len(encode(spec))) > SYNC_BYTES_MAX:
            message = f"sync {spec.name} has {size:,} bytes of patterns, parameters and recipients"
            raise UsageError("bad_request", message, hint=f"at most {SYNC_BYTES_MAX:,} fit; use wider patterns")
        async with self._changing:
            if 0 < most <= sum(each.standing.owner == owner for each in self._watchers.values()):
                hint = "remove one: smpctl sync remove NAME; an admin may raise jobs.syncs_user_max"
                raise UsageError("bad_request", f"{owner} has {most} syncs, which is the most allowed", hint=hint)
            standing = await anyio.to_thread.run_sync(self._store.add, spec, owner)
            watcher = self._begin(standing)
        return await anyio.to_thread.run_sync(watcher.view)

    async def views(self) -> list[SyncView]:
        """All syncs, by name."""
        watchers = [self._watchers[name] for name in sorted(self._watchers)]
        return await anyio.to_thread.run_sync(lambda: [each.view() for each in watchers])

    async def shown(self, name: str) -> SyncShown:
        """One sync and what troubles it.

        Raises:
            NotFoundError: ``no_such_sync``.
        """
        watcher = self._named(name)

        def look() -> SyncShown:
            return SyncShown(watcher.view(), self._store.troubles(watcher.standing.number, TROUBLES_MAX))

        return await anyio.to_thread.run_sync(look)

    async def control(self, name: str, action: str) -> SyncView:
        """Pause, resume, list now, retry, or remove; see :class:`smp_proto.control.SyncControl`.

        Raises:
            NotFoundError: ``no_such_sync``.
        """
        async with self._changing:
            if action == "remove" and (number := await self._damaged(name)) is not None:
                await anyio.to_thread.run_sync(self._store.remove, number)
                return SyncView(SyncSpec(name=name, source=""), "paused", "", 0.0)
            watcher = self._named(name)
            number = watcher.standing.number
            view = await anyio.to_thread.run_sync(watcher.view)
            if action == "remove":
                self._scopes[name].cancel()
                with anyio.CancelScope(shield=True):
                    await watcher.gone.wait()
                    watcher.paused = True  # what cannot be removed now stays where it can be seen, and removed later
                    await anyio.to_thread.run_sync(self._store.remove, number)
                    del self._watchers[name], self._scopes[name]
                self._changed(name)
                return view
            if action in ("pause", "resume"):
                await anyio.to_thread.run_sync(
                    self._store.set_state, number, "paused" if action == "pause" else "active"
                )
                if watcher.gone.is_set():  # it could not be removed, and nothing has worked for it since
                    watcher = self._begin(await anyio.to_thread.run_sync(self._store.get, name))
                watcher.paused = action == "pause"
                watcher.look()
            elif action == "retry":
                await anyio.to_thread.run_sync(self._store.retry, number)
                watcher.look()
            else:
                watcher.poll_now()
            return await anyio.to_thread.run_sync(watcher.view)

    async def _damaged(self, name: str) -> int | None:
        """The number of a sync whose record does not open: it can be removed, and nothing else."""
        return (await anyio.to_thread.run_sync(self._store.damaged)).get(name)

    def standing(self, name: str) -> Standing | None:
        """A sync as it is kept, if there is one whose record opens."""
        return self._watchers[name].standing if name in self._watchers else None

    def _named(self, name: str) -> Watcher:
        if name not in self._watchers:
            raise unknown_sync(name)
        return self._watchers[name]

    def _begin(self, standing: Standing) -> Watcher:
        assert self._group is not None
        name = standing.spec.name
        watcher = Watcher(standing, self._store, self._world, changed=partial(self._changed, name), clock=self._clock)
        self._watchers[name], self._scopes[name] = watcher, anyio.CancelScope()
        self._group.start_soon(self._keep_on, watcher, self._scopes[name])
        return watcher

    async def _keep_on(self, watcher: Watcher, scope: anyio.CancelScope) -> None:
        """A sync that cannot take up its work, for the disk say, tries again; the others go on."""
        aside.set(True)
        asker.set(watcher.standing.owner)
        try:
            with scope:
                while True:
                    try:
                        await watcher.run()
                    except SmpError as error:
                        _log.error("sync cannot start", sync=watcher.standing.spec.name, code=error.code)
                        watcher.error = error.body()
                    await anyio.sleep(_AGAIN_S)
        finally:
            watcher.gone.set()
