"""The compute processes: one for each plugin distribution, with rings of its own, running one job at a time."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import anyio
from anyio.abc import TaskGroup

from smp_proto.aio import Exchange, encode
from smp_proto.errors import ProcessorError, SmpError, UsageError, one_error
from smp_proto.sealed.bundle import BundleInfo, BundleWriter
from smpd.links import computing
from smpd.links.ring import Ring
from smpd.metrics.counting import Metrics
from smpd.opening.ranges import private_copies
from smpd.transfer.bounds import LOOK_IDLE_S, LOOK_S, Bounds, believed
from smpd.transfer.health import Health, HealthSettings
from smpd.transfer.plain import TO_AUTHOR, PlainRing, PlainSlots, nonsense, overdue, wipe
from smpd.transfer.preparing import Feed, Preparation, Turn
from smpd.transfer.source import naming
from smpd.transfer.workers import Worker, WorkerHost, kill

T = TypeVar("T")
_FROM_COMPUTE = cast("type[computing.FromCompute]", computing.AnyFromCompute)
_CHECK_S = 10.0
_OF_A_CHECK = frozenset({"bad_parameter", "no_such_processor"})
_AT_ONCE_BYTES = 64 << 10  # of a result: copied and hashed in 40 µs, half of what handing it to a thread takes


class ComputeSettings(NamedTuple):
    """What every compute process is started with.

    ``memory_bytes`` is for each; ``keeper`` is the socket of those who start it, empty to start it ourselves.
    """

    slots: int
    slot_bytes: int
    result_slots: int
    result_slot_bytes: int
    device: str
    sandbox: str
    memory_bytes: int
    timeout_s: float
    idle_s: float
    keeper: str = ""
    health: HealthSettings = HealthSettings(kept_bytes=-1)


class Compute:
    """One compute process and its rings."""

    def __init__(
        self,
        distribution: str,
        processors: Sequence[str],
        settings: ComputeSettings,
        group: TaskGroup,
        metrics: Metrics | None = None,
    ) -> None:
        self.distribution = distribution
        self.processors = list(processors)
        self._settings = settings
        self._busy = anyio.Lock(fast_acquire=True)
        self._getting_ready = anyio.Lock(fast_acquire=True)
        self._rings: tuple[Ring, Ring] | None = None
        self._slots: PlainSlots  # of the first of them
        self._results_filled: dict[int, int] = {}
        self.ready: computing.Ready | None = None
        self._bounds: Bounds | None = None
        self.health: Health | None = None  # of the process that was started last
        self.recycled = 0
        self._overrun: SmpError | None = None  # what the process was ended for
        self._begun = anyio.Event()
        self._metrics = metrics or Metrics()
        self._plain: PlainRing | None = None  # of the run under way
        self.host = WorkerHost(
            group,
            "compute",
            distribution,
            self._set_up,
            settings.idle_s,
            self._let_go,
            self._watch,
            settings.keeper,
        )

    async def describe(self) -> computing.Ready:
        """What the process is and can do; starts it if need be."""
        async with self.host.use():
            assert self.ready is not None
            return self.ready

    async def check(self, processor: str, params: dict[str, Any]) -> None:
        """Ask the process whether a run may have these parameters; starts it if need be.

        What else goes wrong is for the run to find, for which it may have passed.

        Raises:
            UsageError: ``bad_parameter``.
            NotFoundError: ``no_such_processor``.
        """
        try:
            async with self.host.use() as worker:
                with contextlib.suppress(TimeoutError):
                    await worker.caller.call(computing.Check(processor, params), type(None), timeout=_CHECK_S)
        except SmpError as error:
            if (found := believed(error)).code in _OF_A_CHECK:
                raise found from error

    async def run(
        self, request: computing.Run, writer: BundleWriter, feed: Feed, *, again: bool = False
    ) -> computing.Done:
        """Run a processor: ``feed`` brings entries and plaintext, ``writer`` takes the results.

        The process is ended unless the run ended cleanly, and what was used of its rings is zeroed in any case, but for
        what the next run has filled anew.

        Args:
            again: ``feed`` may be called a second time: then this run gets ready while another has the process.

        Raises:
            SmpError: what the processor did wrong, or ``worker_died``.
        """
        async with self._turn(request, feed, again=again) as turn:
            worker, plain = turn.worker, turn.plain
            assert self._bounds is not None
            assert self._rings is not None
            self._begun.set()
            clean, outcome, began = False, "stopped", time.monotonic()
            self._plain = plain
            try:
                async with worker.caller.open(request) as exchange:
                    try:
                        done = await self._exchange(exchange, request, plain, writer, turn.feed)
                        clean = True
                    except (ProcessorError, UsageError) as error:
                        # Its own answer; one that was refused here is still at work.
                        clean = exchange.ended and error.code != "processor_timeout"
                        results = self._rings[1]  # it may have filled more than it told of
                        self._results_filled = dict.fromkeys(range(results.slots), results.slot_bytes)
                        raise
                outcome, clean = "ok", self._healthy(done)
                return done
            except SmpError as error:
                outcome = error.code
                if error.code == "worker_died" and not worker.caller.alive:
                    raise naming(self._overrun or error, f"processor {request.processor}") from error
                raise
            finally:
                self._plain = None
                self._metrics.count("smp_compute_runs_total", self.distribution, outcome)
                self._metrics.observe("smp_compute_run_seconds", time.monotonic() - began, self.distribution)
                with anyio.CancelScope(shield=True):
                    await self._tidy(turn, clean=clean)

    @contextlib.asynccontextmanager
    async def _turn(self, request: computing.Run, feed: Feed, *, again: bool) -> AsyncIterator[Turn]:
        """Wait until the process is free; meanwhile get ready, where another run has it."""
        if not (again and self._busy.locked()):
            async with self._busy, self.host.use() as worker:
                yield Turn(worker, PlainRing(self._slots, request.timeout_s), feed)
            return
        with one_error():
            async with anyio.create_task_group() as group, contextlib.AsyncExitStack() as held:
                ready = None
                try:
                    async with self._getting_ready:
                        ready = await self._prepare(request, feed, held)
                        if ready is not None:
                            group.start_soon(ready.run)
                        await held.enter_async_context(self._busy)
                    worker = await held.enter_async_context(self.host.use())
                    if ready is not None and not ready.counts_for(worker):
                        await self._drop(ready)
                        ready = None
                except BaseException:
                    await self._drop(ready)  # its turn will not come
                    raise
                if ready is not None:
                    yield Turn(worker, ready.plain, ready.fed, ready)
                else:
                    yield Turn(worker, PlainRing(self._slots, request.timeout_s), feed)

    async def _prepare(self, request: computing.Run, feed: Feed, held: contextlib.AsyncExitStack) -> Preparation | None:
        """What is to get ready in the ring that is there, if it is; ``held`` keeps it there."""
        worker = self.host.worker
        if not self._busy.locked() or worker is None or not worker.caller.alive or not self._slots.behind:
            return None
        worker = await held.enter_async_context(self.host.use())
        return Preparation(feed, PlainRing(self._slots, request.timeout_s), worker)

    async def _drop(self, ready: Preparation | None) -> None:
        with anyio.CancelScope(shield=True):
            if ready is not None:
                await ready.drop()
                await self._slots.zero()

    async def _tidy(self, turn: Turn, *, clean: bool) -> None:
        """After a run: end the process unless that ended cleanly, and zero what nobody holds."""
        if turn.ready is not None:
            await turn.ready.stop()
        if not clean:
            self.host.sample()
            await self.host.end(turn.worker)  # first, or it could write to the rings again
        turn.plain.close()
        assert self._rings is not None
        results = self._rings[1]
        filled, self._results_filled = self._results_filled, {}
        if clean:
            await self._slots.zero()
            await wipe(results, filled)
        else:
            await self._slots.zero_all()
            await wipe(results, dict.fromkeys(range(results.slots), results.slot_bytes))

    def _healthy(self, done: computing.Done) -> bool:
        """Whether the process should do the next run as well."""
        assert self.health is not None
        verdict = self.health.after_run(self.host.sample().memory_bytes, done.device_bytes)
        if verdict:
            self.recycled += 1
            self._metrics.count("smp_compute_recycled_total", self.distribution, verdict)
        return not verdict

    async def _exchange(
        self,
        exchange: Exchange,
        request: computing.Run,
        plain: PlainRing,
        writer: BundleWriter,
        feed: Feed,
    ) -> computing.Done:
        done = anyio.Event()
        with one_error():
            async with anyio.create_task_group() as group:
                group.start_soon(self._receive, exchange, plain, writer, done)
                await plain.begin(exchange)
                await feed(plain)
                await plain.finish()
                with anyio.move_on_after(plain.patience_s):
                    await done.wait()
                group.cancel_scope.cancel()
        if not done.is_set():
            raise overdue(request.timeout_s)
        return await exchange.result(computing.Done)

    async def _receive(self, exchange: Exchange, plain: PlainRing, writer: BundleWriter, done: anyio.Event) -> None:
        async for message in _messages(exchange):
            match message:
                case computing.Freed(slot):
                    plain.freed(slot)
                case computing.OutputBegin(name, media_type, attributes):
                    _output(writer.begin, name, media_type, attributes)
                case computing.OutputChunk(slot, length):
                    if length <= min(_AT_ONCE_BYTES, writer.room):
                        self._take_result(slot, length, writer)
                    else:
                        await anyio.to_thread.run_sync(self._take_result, slot, length, writer)
                    await exchange.send(computing.OutputFreed(slot))
                case computing.OutputEnd():
                    _output(writer.end)
        if not plain.finished:
            raise nonsense("was done before it had been given everything")
        done.set()

    def _take_result(self, slot: int, length: int, writer: BundleWriter) -> None:
        # Copied before it is hashed and sealed: the process could change its ring between the two.
        assert self._rings is not None
        ring = self._rings[1]
        if not (0 <= slot < ring.slots and 0 <= length <= ring.slot_bytes):
            raise nonsense("announced a result outside its ring")
        self._results_filled[slot] = max(length, self._results_filled.get(slot, 0))
        for _, part in private_copies(ring, slot, length):
            _output(writer.write, part)

    async def _set_up(self, worker: Worker) -> None:
        settings = self._settings
        if self._rings is None:
            self._rings = await anyio.to_thread.run_sync(self._make_rings)
            self._slots = PlainSlots(self._rings[0])
        plain, results = self._rings
        request = computing.Setup(
            plain.slots,
            plain.slot_bytes,
            results.slots,
            results.slot_bytes,
            self.processors,
            settings.device,
            settings.sandbox,
            settings.memory_bytes,
        )
        try:
            ready = await worker.caller.call(request, computing.Ready, fds=[plain.fd, results.fd])
        except SmpError as error:
            raise believed(error, set_up=True) from error
        if (size := len(encode(ready.processors))) > computing.PROCESSORS_BYTES_MAX:
            text = f"the processors of {self.distribution} tell {size:,} bytes of themselves and their parameters"
            most = f"at most {computing.PROCESSORS_BYTES_MAX:,} fit: report it to their author"
            raise ProcessorError("processor_output", text, hint=most)
        self.ready = ready
        self._bounds = Bounds.of(worker.pid, self.ring_bytes, settings.memory_bytes)
        self.health = self._bounds.health(settings.health)

    async def _watch(self, worker: Worker) -> None:
        """End the process when it takes too much: often while it runs something, sometimes when it should not."""
        self._overrun = None
        while True:
            assert self._bounds is not None
            if (overrun := await self._bounds.exceeded(worker.pid)) is not None:
                self._overrun = overrun
                kill(worker.process)
                return
            self._begun = anyio.Event() if not self._busy.locked() else self._begun
            with anyio.move_on_after(LOOK_IDLE_S):
                await self._begun.wait()
            await anyio.sleep(LOOK_S)

    async def _let_go(self) -> None:
        """The process is gone and no run is under way: the rings go, too, and the next start makes others."""
        for ring in self._rings or ():
            await anyio.to_thread.run_sync(ring.close)
        self._rings = None  # only now: until then they take memory, and no process is started before

    @property
    def busy(self) -> bool:
        """Whether a run is under way."""
        return self._busy.locked()

    @property
    def slots(self) -> int:
        """How many slots the plain ring has."""
        return self._settings.slots

    @property
    def slots_in_use(self) -> int:
        """How many of them are taken."""
        return self._slots.in_use if self._rings is not None else 0

    @property
    def patience_s(self) -> float:
        """How long the run that is under way may be silent; 0 where there is none."""
        return self._plain.patience_s if self._plain is not None else 0.0

    @property
    def started(self) -> str:
        """How the process is started, for people."""
        keeper = self._settings.keeper
        return f"by the keeper at {keeper}, as another user" if keeper else "by smpd, as its own user"

    @property
    def ring_bytes(self) -> int:
        """How much memory the rings take, if they are there."""
        return sum(ring.slots * ring.slot_bytes for ring in self._rings or ())

    def _make_rings(self) -> tuple[Ring, Ring]:
        settings = self._settings
        return (
            Ring.create("smp-plain", settings.slots, settings.slot_bytes),
            Ring.create("smp-results", settings.result_slots, settings.result_slot_bytes),
        )


def finish_results(writer: BundleWriter) -> BundleInfo:
    """Finish the bundle that a run wrote; blocking.

    Raises:
        ProcessorError: ``processor_output``; there is no result in it, or one without an end.
    """
    return _output(writer.finish)


async def _messages(exchange: Exchange) -> AsyncIterator[computing.FromCompute]:
    """What the process sends until it ends the exchange, and its error as far as that is believed."""
    try:
        async for message in exchange.messages(_FROM_COMPUTE):
            yield message
    except SmpError as error:
        raise believed(error) from error


def _output(act: Callable[..., T], *arguments: Any) -> T:
    try:
        return act(*arguments)
    except SmpError as error:
        if error.code in ("bad_name", "bad_request", "wrong_state"):
            message = f"the processor's result was refused: {error.message}"
            raise ProcessorError("processor_output", message, hint=TO_AUTHOR) from error
        raise
