"""The processor thread's side of the rings: :class:`Inputs` says what comes, plaintext comes in through :class:`Feed`,
results go out through :class:`Results`. All wait on queues that the event loop fills, and end the thread's work when
told to.
"""

import contextlib
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import torch

from smp_proto.errors import ProcessorError
from smp_proto.names import folded
from smpd.compute.device import Device
from smpd.compute.npy import as_npy
from smpd.links.computing import Chunk, FromCompute, InputEntry, InputObject, OutputBegin, OutputChunk, OutputEnd
from smpd.processors import Output
from smpd.processors.host import host_bytes
from smpd.processors.pictures import encode_png

NAME_BYTES = 1024
PART_BYTES = 255
ATTRIBUTES_BYTES = 64 << 10


class Stopped(BaseException):
    """The run is over: cancelled, timed out, or the peer broke the protocol. No ``except Exception`` swallows it."""


class Clock:
    """How long the processor itself has been at work on one object: time spent waiting for smpd does not count."""

    def __init__(self) -> None:
        self._stopped = False
        self._worked = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """The processor has the thread, and begins an object."""
        self._worked, self._since = 0.0, time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The thread waits for smpd in this block.

        Raises:
            Stopped: at the end of the block, once :meth:`stop` has been called.
        """
        if self._since is not None:
            self._worked += time.monotonic() - self._since
        self._since = None
        yield
        if self._stopped:
            raise Stopped
        self._since = time.monotonic()

    def stop(self) -> None:
        """End the work at the next wait; called by the event loop, which also wakes the queues with None."""
        self._stopped = True

    def worked(self) -> float:
        """Seconds so far; may be asked from another thread."""
        since = self._since
        return self._worked + (time.monotonic() - since if since is not None else 0.0)


class Inputs:
    """The objects of one run, as they are announced.

    Args:
        queue: filled by the event loop; a number is the length of the whole plaintext and the end, None only wakes.
    """

    def __init__(self, queue: "queue.SimpleQueue[InputObject | int | None]", clock: Clock) -> None:
        self._queue = queue
        self._clock = clock
        self.plain_bytes = 0

    def __iter__(self) -> Iterator[InputObject]:
        """Whole objects; :attr:`plain_bytes` is right once there are no more."""
        parts: list[InputEntry] = []
        while True:
            with self._clock.waiting():
                found = self._queue.get()
            if isinstance(found, int):
                self.plain_bytes = found
                return
            assert found is not None
            parts += found.entries
            if not found.more:
                yield InputObject(found.prefix, parts)
                parts = []


class Feed:
    """The plaintext of one run as it comes through the plain ring.

    Args:
        slots: the slots, uint8 on the host.
        chunks: filled by the event loop; None only wakes.
        free: called with a slot and the event to wait for (or None) once the slot has been read.
    """

    def __init__(
        self,
        slots: Sequence[torch.Tensor],
        chunks: "queue.SimpleQueue[Chunk | None]",
        free: "Callable[[int, torch.Event | None], None]",
        device: Device,
        clock: Clock,
    ) -> None:
        self._slots = slots
        self._chunks = chunks
        self._free = free
        self._device = device
        self._clock = clock
        self._position = 0
        self._chunk: Chunk | None = None
        self._expected: Sequence[InputEntry] = ()
        self._at = 0  # the first of them that was in no chunk to its end
        self._pieces: dict[int, torch.Tensor] = {}  # entries that lie in the chunk, by where they begin

    def expect(self, entries: Sequence[InputEntry]) -> None:
        """Say which entries will be asked for next, in order: those of one slot are then cut from it in one go."""
        self._expected, self._at, self._pieces = entries, 0, {}
        if self._chunk is not None:
            self._cut(self._chunk)

    def load(self, offset: int, target: torch.Tensor) -> None:
        """Copy plaintext from ``offset`` on until ``target``, on the device, is full."""
        done = 0
        for part in self._parts(offset, offset + target.numel()):
            self._device.copy(part, target[done : done + part.numel()])
            done += part.numel()

    def windows(self, offset: int, size: int) -> Iterator[torch.Tensor]:
        """Plaintext ``[offset, offset + size)`` as windows on the device, in order."""
        parts = self._parts(offset, offset + size)
        return parts if self._device.reads_slots else map(self._device.window, parts)

    def skip_to(self, offset: int) -> None:
        """Drop plaintext up to ``offset``."""
        while self._position < offset:
            chunk = self._chunk or self._next_chunk()
            self._go_to(chunk, min(offset, chunk.offset + chunk.length))

    def _parts(self, start: int, end: int) -> Iterator[torch.Tensor]:
        """Parts of slots, in order. A part is used up when the next one is asked for."""
        if self._position < start:
            self.skip_to(start)
        while self._position < end:
            chunk = self._chunk or self._next_chunk()
            position, until = self._position, min(end, chunk.offset + chunk.length)
            piece = self._pieces.get(position) if position == start else None
            # Indexing takes two thirds of what narrow() takes.
            yield self._slots[chunk.slot][position - chunk.offset : until - chunk.offset] if piece is None else piece
            if self._position != position:  # another iterator has gone on from here
                return
            self._go_to(chunk, until)

    def _go_to(self, chunk: Chunk, position: int) -> None:
        self._position = position
        if position == chunk.offset + chunk.length:
            self._chunk, self._pieces = None, {}
            self._free(chunk.slot, self._device.fence())

    def _next_chunk(self) -> Chunk:
        with self._clock.waiting():
            chunk = self._chunks.get()
        assert chunk is not None
        self._chunk = chunk
        if self._at < len(self._expected):
            self._cut(chunk)
        return chunk

    def _cut(self, chunk: Chunk) -> None:
        """Cut the entries that lie in a chunk: one by one takes four times as long."""
        position, end = max(self._position, chunk.offset), chunk.offset + chunk.length
        starts, sizes, first = [], [], position
        for number in range(self._at, len(self._expected)):
            entry = self._expected[number]
            if entry.offset + entry.size > end:
                break
            self._at = number + 1
            if entry.offset >= position and entry.size:
                if entry.offset > position:  # what lies between is nobody's
                    starts.append(position)
                    sizes.append(entry.offset - position)
                starts.append(entry.offset)
                sizes.append(entry.size)
                position = entry.offset + entry.size
        if sizes:
            whole = self._slots[chunk.slot][first - chunk.offset : position - chunk.offset]
            self._pieces = dict(zip(starts, torch.split(whole, sizes), strict=True))


class Results:
    """What a run gives back, through the slots of the result ring, which are all free when it begins.

    Args:
        slots: the slots, uint8 on the host.
        freed: slots that smpd has taken over, filled by the event loop; None only wakes.
        send: queues a message to smpd; may be called from this thread.
    """

    def __init__(
        self,
        slots: Sequence[torch.Tensor],
        freed: "queue.SimpleQueue[int | None]",
        send: Callable[[FromCompute], None],
        clock: Clock,
        processor: str,
    ) -> None:
        self.count = 0
        self.prefix = ""  # of the object that the next results are of
        self.object = 0  # the number of that one
        self.entry = 0  # and of their entry; 0 for several
        self._slots = slots
        self._free = list(range(len(slots)))
        self._freed = freed
        self._send = send
        self._clock = clock
        self._processor = processor
        self._names: dict[str, tuple[int, int]] = {}  # and the object and entry that each is of

    def put(self, output: Output) -> None:
        """Check one result and send it.

        Raises:
            ProcessorError: ``processor_output``. Names do not appear in it, since they are patient data.
        """
        if not isinstance(output, Output):
            raise self._nonsense(f"is {type(output).__name__}, not Output")
        complaint = name_complaint(output.name)
        if complaint:
            raise self._nonsense(f"has a name that {complaint}")
        name = f"{self.prefix}/{output.name}" if self.prefix else output.name
        self._check(output, name)
        parts, media_type = self._encode(output)
        self._send(OutputBegin(name, output.media_type or media_type, output.attributes))
        for part in parts:
            self._write(part)
        self._send(OutputEnd())
        self.count += 1

    def _check(self, output: Output, name: str) -> None:
        same = folded(name)  # as smpd compares them
        here, earlier = (self.object, self.entry), self._names.get(same)
        if earlier == here:
            raise self._nonsense("has the name of an earlier one")
        if earlier is not None and earlier[0] != self.object:  # a and a.smp, say
            message = f"results of objects {earlier[0]} and {self.object}, as smpctl ls lists them, have one name"
            hint = "rename one of the two (a.smp and a name the same results), or run over each of them alone"
            raise ProcessorError("processor_output", message, hint=hint)
        if earlier is not None:  # scan.tif and scan.tif.png, say
            message = f"processor {self._processor} gives the results of entries {earlier[1]} and {self.entry} one name"
            hint = "rename one of the two entries, or run it over each in an object of its own"
            raise ProcessorError("processor_output", message, hint=hint)
        self._names[same] = here
        kind = output.media_type
        if not isinstance(kind, str) or len(kind) > 127 or not kind.isascii() or not (kind + "x").isprintable():
            raise self._nonsense("has a media type that is not text of at most 127 ASCII characters")
        attributes = output.attributes
        if not isinstance(attributes, dict) or not all(isinstance(k, str) and _plain(v) for k, v in attributes.items()):
            raise self._nonsense("has attributes other than text, numbers, booleans, and lists of these")
        try:
            size = len(msgspec.msgpack.encode(output.attributes))
        except (OverflowError, UnicodeEncodeError) as error:
            raise self._nonsense("has attributes that cannot be encoded") from error
        if size > ATTRIBUTES_BYTES:
            raise self._nonsense(f"has {size} bytes of attributes, more than {ATTRIBUTES_BYTES}")

    def _encode(self, output: Output) -> tuple[list[torch.Tensor], str]:
        """The result as uint8 tensors to be written one after the other, and what it is when it does not say so."""
        data = output.data
        if isinstance(data, torch.Tensor):
            try:
                if output.media_type == "image/png":
                    return [_tensor(encode_png(data))], "image/png"
                header, body = as_npy(data)
            except ValueError as error:
                raise self._nonsense(str(error)) from error
            return [_tensor(header), body], "application/x-npy"
        if isinstance(data, bytes | bytearray | memoryview):
            return [_tensor(data)], "application/octet-stream"
        raise self._nonsense(f"holds {type(data).__name__}, neither a tensor nor bytes")

    def _write(self, data: torch.Tensor) -> None:
        slot_bytes = self._slots[0].numel()
        # An empty result takes a slot too: that is what keeps endless empty ones from filling a queue.
        for start in range(0, max(data.numel(), 1), slot_bytes):
            if not self._free:
                self._take_freed()
            slot = self._free.pop()
            part = data[start : start + slot_bytes]
            self._slots[slot][: part.numel()].copy_(part)
            self._send(OutputChunk(slot, part.numel()))

    def _take_freed(self) -> None:
        with self._clock.waiting():
            slot = self._freed.get()
        assert slot is not None
        self._free.append(slot)

    def _nonsense(self, complaint: str) -> ProcessorError:
        return ProcessorError(
            "processor_output",
            f"result {self.count + 1} of processor {self._processor} {complaint}",
            hint="report it to the processor's author",
        )


def name_complaint(name: Any) -> str:
    """What is wrong with a result's name, or ``""``."""
    if not isinstance(name, str) or not name:
        return "is empty or no text"
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "is no valid Unicode"
    if len(encoded) > NAME_BYTES or any(len(part.encode()) > PART_BYTES for part in name.split("/")):
        return f"is longer than {NAME_BYTES} bytes, or a part of it than {PART_BYTES}"
    if any(part in {"", ".", ".."} for part in name.split("/")):
        return "is absolute or has an empty part, '.' or '..'"
    return "holds a backslash or a control character" if "\\" in name or not name.isprintable() else ""


def _plain(value: Any) -> bool:
    """Whether it is what an index holds (SEALED.md section 7): a scalar, or a list of scalars."""
    scalars = {str, int, float, bool}
    return type(value) in scalars or (isinstance(value, list) and all(type(each) in scalars for each in value))


def _tensor(data: bytes | bytearray | memoryview) -> torch.Tensor:
    # torch.frombuffer warns of bytes, which are read-only.
    target = torch.empty(memoryview(data).nbytes, dtype=torch.uint8)
    host_bytes(target)[:] = memoryview(data).cast("B")
    return target
