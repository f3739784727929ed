"""What is asked of a remote beside its objects' bytes, and uploads: through its gate and within its limits."""

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from smp_proto.aio import Exchange, aside
from smp_proto.control import ObjectInfo, RemoteHealth
from smp_proto.errors import NotFoundError, RemoteError, SmpError
from smpd.links import fetching
from smpd.transfer.asking import messages, persist, until_answered
from smpd.transfer.breaker import BreakerSettings
from smpd.transfer.counting import RemoteCounts
from smpd.transfer.gate import Gate
from smpd.transfer.lanes import rank
from smpd.transfer.limiting import RemoteLimiter
from smpd.transfer.places import Places
from smpd.transfer.processes import Processes
from smpd.transfer.workers import Worker, WorkerHost, kill

_SETTLE_S = 5.0
T = TypeVar("T")


class Questions:
    """Asks the fetch processes of one remote.

    Attributes:
        processes: those that speak to it, and their rings.
        gate: says whether it may be asked.
    """

    def __init__(
        self,
        name: str,
        processes: Processes,
        limits: RemoteLimiter,
        counts: RemoteCounts,
        breaker: BreakerSettings,
        changed: Callable[[RemoteHealth], None],
        group: TaskGroup,
    ) -> None:
        self.name = name
        self.processes = processes
        self.counts = counts
        self._limits = limits
        self._places = {host: Places() for host in processes.hosts}
        self._closing = anyio.Event()
        self._replaced = False
        self.gate = Gate(
            name, breaker, probe=self.probe, paused=processes.hold, changed=changed, quiet=limits.quiet, group=group
        )

    async def stat(self, path: str) -> ObjectInfo:
        """Size and pin of an object."""
        request = fetching.Stat(path)
        tries = await persist(lambda: self._call(self.processes.any(), request, ObjectInfo))
        return tries.answer

    async def ask(self, request: fetching.Request, kind: type[T], fd: int | None = None) -> T:
        """Put one question to any of the processes."""
        tries = await persist(lambda: self._call(self.processes.any(), request, kind, () if fd is None else (fd,)))
        return tries.answer

    async def delete(self, path: str, pin: str = "") -> None:
        """Remove an object; with a pin, only that version of it."""
        await self._call(self.processes.any(), fetching.Delete(path, pin), type(None))

    async def probe(self) -> fetching.Probed:
        """Connect, authenticate and list at most one object."""
        asked = aside.set(True)
        try:
            return await self._call(self.processes.any(), fetching.Probe(), fetching.Probed, gated=False)
        finally:
            aside.reset(asked)

    async def list(
        self, prefix: str, *, recursive: bool = True, after: str = "", gated: bool = True
    ) -> AsyncGenerator[list[ObjectInfo], None]:
        """Batches of the objects below a prefix, in order, from the one behind ``after`` on.

        With ``gated`` False also of a remote that is down, as one asks.
        """
        request = fetching.List(prefix, recursive, after)
        async with (
            self._ask(self.processes.any(), request, gated=gated) as (worker, exchange),
            contextlib.aclosing(messages(worker, exchange, fetching.Listed)) as batches,
        ):
            async for batch in batches:
                if batch.busy_s:
                    self.gate.busy(batch.busy_s)
                if not batch.objects:  # nor is one to be believed to send no empty one
                    continue
                yield batch.objects
                await self._limits.asks(request, 0)
                await exchange.send(fetching.More())
        self.gate.note(None)

    async def watch(self, prefix: str, queue: str) -> AsyncGenerator[fetching.Seen, None]:
        """What may have appeared below a prefix, until left; it counts as noted once the next is asked for.

        Not through the gate: a queue that is away says nothing of the bucket.
        """
        async with (
            self._ask(self.processes.any(), fetching.Watch(prefix, queue), gated=False) as (worker, exchange),
            contextlib.aclosing(messages(worker, exchange, fetching.Seen)) as found,
        ):
            async for seen in found:
                yield seen
                await exchange.send(fetching.Noted())

    async def write(
        self,
        path: str,
        fd: int,
        size: int,
        progress: Callable[[int], None],
        *,
        part: str,
        replaces: str,
        begun: Callable[[str], Awaitable[None]],
    ) -> ObjectInfo:
        """Upload a sealed file, see :class:`~smpd.links.fetching.Write`; ``begun`` keeps a multipart upload's id."""
        request, done = fetching.Write(path, size, part, replaces, self._limits.limits_bytes), 0
        async with self._ask(self.processes.each(), request, [fd]) as (worker, exchange):
            async with contextlib.aclosing(messages(worker, exchange, fetching.Progress)) as steps:
                async for step in steps:
                    if step.busy_s:
                        self.gate.busy(step.busy_s)
                    if step.upload:
                        await begun(step.upload)
                        await exchange.send(fetching.Noted())
                    else:
                        moved, done = max(0, step.done - done), max(done, step.done)
                        self.counts.put(moved)
                        progress(done)
                        if request.paced and not step.busy_s and step.done < size:
                            await self._limits.sent(moved)
                            await exchange.send(fetching.Noted())
                        else:
                            self._limits.spent(moved)
            info = await exchange.result(ObjectInfo)
        self.gate.note(None)
        return info

    async def closing_or(self, event: anyio.Event) -> None:
        """Wait until an event is set, or the processes are being stopped."""
        async with anyio.create_task_group() as group:

            async def closing() -> None:
                await self._closing.wait()
                group.cancel_scope.cancel()

            group.start_soon(closing)
            await event.wait()
            group.cancel_scope.cancel()

    async def aclose(self, *, replaced: bool = False) -> None:
        """Stop the processes, and give the rings back once nobody holds a lane.

        Args:
            replaced: whether the remote is there still, with another secret.
        """
        self._replaced = replaced
        self._closing.set()
        self.gate.close()
        await self.processes.aclose()

    async def _call(
        self,
        host: WorkerHost,
        request: fetching.Request,
        kind: type[T],
        fds: Sequence[int] = (),
        *,
        gated: bool = True,
        answered: Callable[[float], None] | None = None,
    ) -> T:
        """Ask one of the processes; ``answered`` is told how long that took, in seconds."""
        async with self._ask(host, request, fds, gated=gated) as (worker, exchange):
            began = time.monotonic()
            answer = await until_answered(worker, lambda: exchange.result(kind))
            took = time.monotonic() - began
            self.counts.took(took)
        if answered is not None:
            answered(took)
        self.gate.note(None)
        return answer

    @contextlib.asynccontextmanager
    async def _ask(
        self, host: WorkerHost, request: fetching.Request, fds: Sequence[int] = (), *, gated: bool = True
    ) -> AsyncIterator[tuple[Worker, Exchange]]:
        """Send a request; when the block is left the process is done with it, also with the slot that it named."""
        async with self._places[host].place(request), self._ask_now(host, request, fds, gated=gated) as asked:
            yield asked

    @contextlib.asynccontextmanager
    async def _ask_now(
        self, host: WorkerHost, request: fetching.Request, fds: Sequence[int], *, gated: bool
    ) -> AsyncIterator[tuple[Worker, Exchange]]:
        if gated:
            await self.gate.enter()
            await self._limits.asks(request, self.processes.hosts.index(host))
        if self._closing.is_set() and self._replaced:
            said, hint = f"the credentials of remote {self.name} were changed meanwhile", "it is tried again with them"
            raise RemoteError("remote_unreachable", said, hint=hint, details={"held": self.name})
        if self._closing.is_set():
            raise NotFoundError("no_such_remote", f"remote {self.name} was removed", hint="run: smpctl remote list")
        request.rank = rank.get()
        async with host.use() as worker, worker.caller.open(request, fds) as exchange:
            try:
                yield worker, exchange
                self.counts.asked("ok")
            except SmpError as error:
                self.counts.asked(error.code)
                self._name(error)
                if gated:
                    self.gate.note(error)
                raise
            except TimeoutError:
                kill(worker.process)
                hung = RemoteError(
                    "remote_unreachable",
                    f"the fetch process for remote {self.name} stopped answering and was ended",
                    hint=f"run: smpctl remote test {self.name}",
                )
                self.counts.asked(hung.code)
                self.gate.note(hung)
                raise hung from None
            finally:
                with anyio.move_on_after(_SETTLE_S, shield=True) as settling:
                    await exchange.cancel()
                if settling.cancelled_caught:
                    kill(worker.process)
                    with anyio.move_on_after(_SETTLE_S, shield=True):
                        await worker.process.wait()

    def _name(self, error: SmpError) -> None:
        error.hint = error.hint.replace(" NAME", f" {self.name}")  # a fetch process does not know it
