"""Events: published once by the daemon, followed by any number of watchers at their own pace.

There are no queues for watchers. The hub keeps a bounded history of state changes and the latest progress of
each job; a watcher is a position in it. So a slow watcher costs nothing, progress coalesces by itself, no
state change is left out, and one that falls off the end of the history is told so (``lagged``).
"""

import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import anyio
import msgspec

from smp_proto.aio import Exchange, encode
from smp_proto.control import FINAL_STATES, Event, JobView, Watch
from smp_proto.errors import DaemonError
from smpd.control.actor import Actor
from smpd.control.permissions import Need, remotes_of

Snapshot = Callable[[Actor, list[str]], Awaitable[Sequence[JobView]]]
HISTORY = 4096
PROGRESS_S = 0.1
_BATCH = 64


class _Entry(NamedTuple):
    seq: int
    kind: str
    body: msgspec.Raw | Callable[[], Any]
    time: float
    job_id: str
    final: bool
    owner: str
    remotes: tuple[str, ...]
    told: float  # when, on the monotonic clock

    @property
    def event(self) -> Event:
        body = self.body if isinstance(self.body, msgspec.Raw) else msgspec.Raw(encode(self.body()))
        return Event(self.seq, self.kind, body, self.time)

    def shown_to(self, actor: Actor) -> bool:
        if not self.job_id:
            return all(actor.rights.allow(Need("any", name)) for name in self.remotes)
        return actor.sees(self.owner, self.remotes)


class _Bell:
    """An event that comes again and again; one that nobody waits for costs nothing."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def next(self) -> anyio.Event:
        """What the next ring sets."""
        self._event = self._event or anyio.Event()
        return self._event

    def ring(self) -> None:
        if self._event is not None:
            self._event.set()
            self._event = None


class Events:
    """The hub. All methods belong to the event loop's thread.

    Args:
        snapshot: returns the jobs named, or all of them for an empty list, that an actor may see; raises
            ``no_such_job``.
        history: how many state changes are kept.
        progress_s: the least time between two reports of progress to one watcher.
        start: the number before the first. By default the microseconds since the epoch, so that a number from
            an earlier run of the daemon is seen to be too old.

    Attributes:
        job_seq: the number of the latest event of a job.
    """

    def __init__(
        self, snapshot: Snapshot, *, history: int = HISTORY, progress_s: float = PROGRESS_S, start: int | None = None
    ) -> None:
        self._snapshot = snapshot
        self._changes: deque[_Entry] = deque(maxlen=history)
        self._progress: dict[str, _Entry] = {}
        self._seq = time.time_ns() // 1000 if start is None else start
        self.job_seq = self._seq
        self._forgotten = self._seq
        self._progress_s = progress_s
        self._published = _Bell()
        self._changed = _Bell()

    @property
    def seq(self) -> int:
        """The number of the latest event."""
        return self._seq

    def publish(
        self,
        kind: str,
        body: Any,
        *,
        job_id: str = "",
        progress: bool = False,
        owner: str = "",
        remotes: tuple[str, ...] = (),
    ) -> int:
        """Announce something and return its number.

        Args:
            kind: of the event; ``job`` for a JobView.
            body: what it carries; for progress also what gives it when somebody is told, and nobody may be.
            job_id: the job it is about; empty when it is about none.
            progress: that a later one of the same job makes this one moot.
            owner, remotes: of that job, which say who may see it; a JobView says them itself. Without a job, what
                it is about is for those who may use these remotes.
        """
        self._seq += 1
        self.job_seq = self._seq if kind == "job" else self.job_seq
        final = False
        if isinstance(body, JobView):
            final, owner, remotes = body.state in FINAL_STATES, body.owner, remotes_of(body.source, body.target)
        told = body if progress and callable(body) else msgspec.Raw(encode(body))
        entry = _Entry(self._seq, kind, told, time.time(), job_id, final, owner, remotes, time.monotonic())
        if progress:
            self._progress[job_id] = entry
        else:
            self._progress.pop(job_id, None)
            if len(self._changes) == self._changes.maxlen:
                self._forgotten = self._changes[0].seq
            self._changes.append(entry)
            self._changed.ring()
        self._published.ring()
        return self._seq

    def forget(self, job_id: str) -> None:
        """What progress was reported of is gone, and no change of it comes any more."""
        self._progress.pop(job_id, None)

    async def next(self) -> None:
        """Wait for the next event."""
        await self._published.next().wait()

    async def watch(self, actor: Actor, request: Watch, exchange: Exchange) -> None:
        """Handler of ``watch``: the snapshot, or what came after ``since``, then events as they happen.

        Ends when all jobs named are final. An event may repeat what the snapshot showed. Of jobs that the actor may not
        see there is nothing.

        Raises:
            NotFoundError: ``no_such_job``.
            DaemonError: ``lagged`` when events were lost; ``since`` in its details is where to resume.
        """
        wanted = frozenset(request.jobs)
        since = request.since or (self._before(request.ago_s) if request.ago_s > 0 else 0)
        position = since or self._seq
        running: set[str] = set()
        if since:
            position = await self._send_after(position, actor, wanted, running, exchange)
        if wanted or not since:
            views = await self._snapshot(actor, list(dict.fromkeys(request.jobs)))
            await _send_snapshot(views, position, exchange)
            running = {view.id for view in views if view.state not in FINAL_STATES}
            del views  # a thousand jobs perhaps, and a watch may go on for weeks
        while True:
            position = await self._send_after(position, actor, wanted, running, exchange)
            if wanted and not running:
                return
            published, changed = self._published.next(), self._changed.next()
            await published.wait()
            with anyio.move_on_after(self._progress_s):  # progress waits a little for more; a change does not
                await changed.wait()

    async def _send_after(
        self, position: int, actor: Actor, wanted: frozenset[str], running: set[str], exchange: Exchange
    ) -> int:
        """Send what came after ``position`` until there is no more; return the new position."""
        while position < self._seq:
            batch, position = self._after(position, actor, wanted)
            for entry in batch:
                await exchange.send(entry.event)
                if entry.final:
                    running.discard(entry.job_id)
        if position > self._seq:
            raise _lagged(position)
        return position

    def _before(self, ago_s: float) -> int:
        """The number before the first change of the last so many seconds, of those that are kept."""
        position = self._seq
        for entry in takewhile(lambda entry: entry.told >= time.monotonic() - ago_s, reversed(self._changes)):
            position = entry.seq - 1
        return max(position, self._forgotten)

    def _after(self, position: int, actor: Actor, wanted: frozenset[str]) -> tuple[list[_Entry], int]:
        if position < self._forgotten:
            raise _lagged(position)
        newer = [*takewhile(lambda entry: entry.seq > position, reversed(self._changes))]
        newer += (entry for entry in self._progress.values() if entry.seq > position)
        found = [entry for entry in newer if (not wanted or entry.job_id in wanted) and entry.shown_to(actor)]
        found.sort(key=lambda entry: entry.seq)
        return found[:_BATCH], found[_BATCH - 1].seq if len(found) > _BATCH else self._seq


async def _send_snapshot(views: Sequence[JobView], position: int, exchange: Exchange) -> None:
    """Send the jobs as they are. Only the last carries a number: half a snapshot is nothing to resume from."""
    for index, view in enumerate(views, 1):
        seq = position if index == len(views) else 0
        await exchange.send(Event(seq, "snapshot", msgspec.Raw(encode(view))))


def _lagged(position: int) -> DaemonError:
    return DaemonError(
        "lagged",
        f"the events after number {position} are not kept any more",
        hint="watch again from the number in details; 0 begins with a snapshot",
        details={"since": 0},
    )
