"""A daemon as a sync sees it, made up: a bucket in memory, and jobs of the real journal that end as a test says."""

import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread

from smp_proto.control import AnyJobSpec, ObjectInfo, Priority, SyncSpec, SyncView
from smp_proto.errors import NotFoundError, SmpError, StateError
from smpd.jobs.database import Database
from smpd.jobs.job import Job
from smpd.jobs.journal import Journal
from smpd.jobs.seal import StateSeal
from smpd.links.fetching import Move, Moved, Seen
from smpd.sync.store import SyncStore
from smpd.sync.syncs import Syncs

BATCH = 3
WAIT_S = 30.0


async def nothing(step: str) -> None:
    """What is done before a step, mostly."""


class Bucket:
    """Stands for a remote's pool."""

    def __init__(self, mode: str = "zero-knowledge") -> None:
        self.mode = mode
        self.kind = "s3"
        self.hints: list[Seen] = []  # what it is to tell; what was noted is gone
        self.hinted = anyio.Event()
        self.objects: dict[str, str] = {}  # path to pin
        self.broken: SmpError | None = None
        self.listed_from: list[str] = []
        self.stop_after: int | None = None  # batches of the next listing, which then waits for ever
        self.held = anyio.Event()
        self.before_move: Callable[[str], Awaitable[None]] = nothing

    async def list(
        self, prefix: str, *, recursive: bool = True, after: str = ""
    ) -> AsyncGenerator[list[ObjectInfo], None]:
        self.listed_from.append(after)
        if self.broken:
            raise self.broken
        paths = sorted(path for path in self.objects if path.startswith(prefix) and path > after)
        for number, start in enumerate(range(0, len(paths), BATCH)):
            if number == self.stop_after:
                self.held.set()
                await anyio.sleep_forever()
            yield [ObjectInfo(path, 1, self.objects[path]) for path in paths[start : start + BATCH]]

    def tell(self, *seen: Seen) -> None:
        self.hints += seen
        self.hinted.set()

    async def watch(self, prefix: str, queue: str) -> AsyncGenerator[Seen, None]:
        yield Seen()
        while True:
            while not self.hints:
                self.hinted = anyio.Event()
                await self.hinted.wait()
            yield self.hints[0]
            self.hints.pop(0)

    async def stat(self, path: str) -> ObjectInfo:
        if path not in self.objects:
            raise NotFoundError("no_such_object", "it is gone")
        return ObjectInfo(path, 1, self.objects[path])

    async def delete(self, path: str, pin: str = "") -> None:
        if self.objects.get(path) == pin:
            del self.objects[path]

    async def ask(self, request: Move, kind: type[Moved]) -> Moved:
        """Copy, then delete; what a crash leaves in between is seen by a step that raises."""
        await self.before_move("copy")
        if self.objects.get(request.path) != request.pin:
            return Moved("replaced" if request.path in self.objects else "gone")
        if self.objects.setdefault(request.target, request.pin) != request.pin:
            raise StateError("target_changed", "something is there")
        await self.before_move("delete")
        del self.objects[request.path]
        return Moved("moved")


class Told(SyncStore):
    """The real store, which says when something was written."""

    tell: Callable[[], None] = staticmethod(lambda: None)

    def _said(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        anyio.from_thread.run_sync(self.tell)
        return result

    def listed(self, *args: Any, **kwargs: Any) -> None:
        self._said(super().listed, *args, **kwargs)

    def finish(self, *args: Any, **kwargs: Any) -> None:
        self._said(super().finish, *args, **kwargs)

    def fail(self, *args: Any, **kwargs: Any) -> None:
        self._said(super().fail, *args, **kwargs)

    def again(self, *args: Any, **kwargs: Any) -> None:
        self._said(super().again, *args, **kwargs)

    def begin(self, *args: Any, **kwargs: Any) -> None:
        self._said(super().begin, *args, **kwargs)


class Machine:
    """A daemon's syncs, journal and database; it can crash and start again.

    ``outcome`` says of a job's path how it ends: None for well, or an error. Results are counted by path and pin.
    """

    def __init__(self, folder: Path, bucket: Bucket) -> None:
        self.path = str(folder / "smp.db")
        self.bucket = bucket
        self.outcome: Callable[[str], SmpError | None] = lambda path: None
        self.results: Counter[tuple[str, str]] = Counter()
        self.audited: list[tuple[str, str]] = []
        self.before_submit: Callable[[], None] = lambda: None
        self.seal = StateSeal(bytearray(range(32)))
        self.now = 1000.0
        self.most = 0
        self.hold = False  # whether jobs stay queued
        self.denied: SmpError | None = None  # what the owner is told, who may do nothing any more

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Syncs]:
        """Start it; leaving the block is a crash."""
        self._changed = anyio.Event()
        self.db = Database(self.path)
        self.journal = Journal(self.db, self.seal)
        self.store = Told(self.db, self.seal)
        self.store.tell = self.tell
        self.syncs = Syncs(self.store, self, changed=lambda name: self.tell(), clock=lambda: self.now)
        try:
            async with anyio.create_task_group() as group:
                await group.start(self.syncs.run)
                group.start_soon(self._work)
                yield self.syncs
                group.cancel_scope.cancel()
        finally:
            self.db.close()

    async def require(self, owner: str, _spec: SyncSpec) -> None:
        if self.denied:
            raise self.denied

    def tell(self) -> None:
        self._changed.set()

    async def until(self, test: Callable[[SyncView], bool], name: str = "s") -> SyncView:
        """Wait until a sync's view passes."""
        with anyio.fail_after(WAIT_S):
            while True:
                self._changed = anyio.Event()
                self.listings = self.store.get(name).listings  # before the view, which is at least as new
                shown = await self.syncs.shown(name)
                if test(shown.sync):
                    return shown.sync
                await self._changed.wait()

    async def settled(self, listings: int, name: str = "s") -> SyncView:
        """Wait until so many listings ended, and nothing is left to do now."""

        def idle(view: SyncView) -> bool:
            return self.listings >= listings and not view.waiting and not view.in_flight

        return await self.until(idle, name)

    async def again(self, name: str = "s") -> SyncView:
        """Another listing, and all that comes of it."""
        count = self.store.get(name).listings
        await self.syncs.control(name, "now")
        return await self.settled(count + 1, name)

    async def _work(self) -> None:
        """Run what is queued; the scheduler's part."""
        while True:
            queued = [] if self.hold else self.journal.list(("queued",))
            for job in reversed(queued):
                self.journal.move(job.id, "start")
                self._end(job)
            await anyio.sleep(0.001)

    def _end(self, job: Job) -> None:
        path = job.spec.source.partition(":")[2]  # type: ignore[union-attr]
        error = self.outcome(path)
        if error is None and self.bucket.objects.get(path) != job.spec.pin:  # type: ignore[union-attr]
            error = NotFoundError("no_such_object", "another version")
        if error is None:
            self.results[path, job.spec.pin] += 1  # type: ignore[union-attr]
            ended = self.journal.move(job.id, "succeed")
        else:
            move: Any = "quarantine" if error.exit_code == 7 else "fail"
            ended = self.journal.move(job.id, move, error=error.body())
        self.syncs.moved(ended)
        self.tell()

    # ── what a sync asks of it ──

    async def remote(self, name: str) -> Any:
        return self.bucket

    async def submit(self, spec: AnyJobSpec, *, owner: str, key: str, priority: Priority, job_id: str) -> Job:
        self.before_submit()
        job, _ = self.journal.add(spec, owner=owner, key=key, priority=priority, job_id=job_id)
        self.most = max(self.most, len(self.journal.list(("queued", "running"))))
        return job

    async def job(self, job_id: str) -> Job:
        return self.journal.get(job_id)

    async def resume(self, job_id: str) -> Job:
        return self.journal.move(job_id, "resume")

    async def audit(self, event: str, *, actor: str, job: str, subject: str, **fields: Any) -> None:
        self.audited.append((event, subject))


def spec(**changes: Any) -> SyncSpec:
    """A sync that lists when it is told to."""
    return SyncSpec(**({"name": "s", "source": "lake:in/", "every_s": 86_400.0} | changes))
