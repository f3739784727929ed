"""The event loop's side of one run: messages in and out, the time limit, and the end.

The processor thread talks to the loop through ``call_soon_threadsafe`` only, the loop to the thread through queues
only. Whatever the thread does, this side goes on; a thread that does not let go is reported as such, and the
caller ends the process, since a thread cannot be killed.
"""

import asyncio
import contextlib
import math
import queue
from collections import deque
from typing import cast

import anyio
import torch

from smp_proto.aio import Exchange
from smp_proto.errors import DaemonError, ProcessorError, SmpError
from smpd.compute.feed import Clock, Feed, Inputs, Results
from smpd.compute.job import Job, Outcome
from smpd.compute.worker import Worker
from smpd.links.computing import (
    AnyToCompute,
    Chunk,
    Finish,
    Freed,
    FromCompute,
    InputObject,
    Objects,
    OutputFreed,
    Run,
    ToCompute,
)
from smpd.processors import Context, Processor

GRACE_S = 0.5
POLL_S = 0.0005
_TOGETHER = 8  # messages in one go; each is some 64 KiB at most

_TO_COMPUTE = cast("type[ToCompute]", AnyToCompute)  # a union is no class to the type checker


class Running:
    """One run under way.

    Args:
        params: as the processor wants them, checked.
        exchange: the request's, for DATA both ways.
    """

    def __init__(self, worker: Worker, request: Run, processor: Processor, params: object, exchange: Exchange) -> None:
        self._worker = worker
        self._request = request
        self._processor = processor
        self._params = params
        self._exchange = exchange
        self._end = 0
        self._received = 0
        self._complete = False
        self._objects: queue.SimpleQueue[InputObject | int | None] = queue.SimpleQueue()
        self._chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        self._output_freed: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._outbox, self._to_send = anyio.create_memory_object_stream[FromCompute](math.inf)
        self._posted: deque[FromCompute] = deque()
        self._told = False  # whether the loop knows that something was posted
        self._fences, self._to_reclaim = anyio.create_memory_object_stream[tuple[int, torch.Event]](math.inf)
        self._clock = Clock()
        self._begun = False
        self._outcome: Outcome | None = None
        self._ended = anyio.Event()
        self._error: SmpError | None = None

    @property
    def stuck(self) -> bool:
        """Whether the processor thread has begun and not let go."""
        return self._begun and self._outcome is None

    async def run(self) -> Outcome:
        """Do it. On cancellation the thread gets :data:`GRACE_S` to let go; see :attr:`stuck`."""
        async with anyio.create_task_group() as group:
            receiving = anyio.CancelScope()
            group.start_soon(self._receive, receiving)
            group.start_soon(self._send)
            group.start_soon(self._reclaim)
            self._begun = True
            self._worker.submit(self._work)
            try:
                await self._watch()
            finally:
                self._clock.stop()
                self._objects.put(None)
                self._chunks.put(None)
                self._output_freed.put(None)
                receiving.cancel()
                if self.stuck:
                    self._ended = anyio.Event()
                    with anyio.move_on_after(GRACE_S, shield=True):
                        await self._ended.wait()
                if self._outcome is None:
                    group.cancel_scope.cancel()
        return Outcome(self._error, fatal=self.stuck) if self._outcome is None else self._result(self._outcome)

    def _result(self, outcome: Outcome) -> Outcome:
        outcome.error = self._error or outcome.error
        return outcome

    async def _watch(self) -> None:
        """Return when the thread has ended, has used up its time, or the peer has broken the protocol."""
        limit = self._request.timeout_s if self._request.timeout_s > 0 else math.inf
        while not self._ended.is_set():
            left = limit - self._clock.worked()
            if left <= 0:
                self._error = ProcessorError(
                    "processor_timeout",
                    f"processor {self._processor.name} worked for more than {limit:g} s",
                    hint="give it more time (compute.timeout_s), or fewer or smaller entries",
                )
                return
            with anyio.move_on_after(max(left, 0.01)):
                await self._ended.wait()

    async def _receive(self, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                async for message in self._exchange.messages(_TO_COMPUTE):
                    self._take(message)
            except DaemonError as error:
                self._error = error
                self._ended.set()

    def _take(self, message: ToCompute) -> None:
        if isinstance(message, OutputFreed):
            self._output_freed.put(message.slot)
        elif self._complete:
            raise DaemonError("protocol", "more came after the end of the input")
        elif isinstance(message, Chunk):
            fits = 0 <= message.slot < len(self._worker.plain) and 0 < message.length <= self._worker.plain[0].numel()
            if not fits or message.offset != self._received:
                raise DaemonError("protocol", f"a chunk of {message.length} bytes at {message.offset} is out of place")
            self._received += message.length
            self._chunks.put(message)
        elif isinstance(message, Objects):
            for item in message.objects:
                self._announce(item)
        elif isinstance(message, Finish):
            if message.plain_bytes != self._received or self._end > self._received:
                raise DaemonError("protocol", "the input ended before it was whole")
            self._complete = True
            self._objects.put(self._received)

    def _announce(self, item: InputObject) -> None:
        for entry in item.entries:
            if entry.size < 0 or entry.offset < self._end:
                raise DaemonError("protocol", "the entries overlap or are out of order")
            self._end = entry.offset + entry.size
        self._objects.put(item)

    def _work(self) -> None:
        """On the processor thread."""
        worker, request, clock = self._worker, self._request, self._clock
        context = Context(worker.device.torch_device, self._params, worker.device.stream, request.job)
        objects = Inputs(self._objects, clock)
        feed = Feed(worker.plain, self._chunks, self._free, worker.device, clock)
        results = Results(worker.result, self._output_freed, self._post, clock, self._processor.name)
        clock.start()
        job = Job(self._processor, context, objects, worker.device, clock, single=request.single)
        outcome = job.run(feed, results)
        self._loop.call_soon_threadsafe(self._finish, outcome)

    def _post(self, message: FromCompute) -> None:
        self._posted.append(message)
        if not self._told:  # each time takes a system call
            self._told = True
            self._loop.call_soon_threadsafe(self._pass_on)

    def _pass_on(self) -> None:
        self._told = False  # first, or what is posted meanwhile would wait
        while self._posted:
            self._outbox.send_nowait(self._posted.popleft())

    def _free(self, slot: int, fence: "torch.Event | None") -> None:
        if fence is None:
            self._post(Freed(slot))
        else:
            self._loop.call_soon_threadsafe(self._fences.send_nowait, (slot, fence))

    def _finish(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._outbox.close()
        self._fences.close()
        self._ended.set()

    async def _send(self) -> None:
        async with self._to_send:
            async for message in self._to_send:
                together = [message]
                with contextlib.suppress(anyio.WouldBlock, anyio.EndOfStream):
                    while len(together) < _TOGETHER:
                        together.append(self._to_send.receive_nowait())
                await self._exchange.send_many(together)

    async def _reclaim(self) -> None:
        async with self._to_reclaim:
            async for slot, fence in self._to_reclaim:
                while not _passed(fence):  # noqa: ASYNC110 - a device event can only be polled
                    await anyio.sleep(POLL_S)
                self._worker.device.recycle(fence)
                await self._exchange.send(Freed(slot))


def _passed(fence: "torch.Event") -> bool:
    try:
        return bool(fence.query())
    except RuntimeError:  # the device is gone; the run's own error says so
        return True
