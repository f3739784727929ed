"""Drives the real compute process over the real link with real rings, as smpd does."""

import contextlib
import dataclasses
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from smp_proto.aio import Caller, Channel, Exchange
from smp_proto.errors import ResourceError, SmpError
from smpd.links.computing import (
    AnyFromCompute,
    Chunk,
    Done,
    Finish,
    Freed,
    InputEntry,
    InputObject,
    Objects,
    OutputBegin,
    OutputChunk,
    OutputEnd,
    OutputFreed,
    Ready,
    Run,
    Setup,
)
from smpd.links.ring import Ring, Slots

DEADLINE_S = 60
# The processes of all tests that do not ask for another: SMP_TEST_DEVICE=cuda has a GPU pass what the CPU passes.
DEVICE = os.environ.get("SMP_TEST_DEVICE", "cpu")
Slot4 = tuple[int, int, int, int]
BUILT_IN = ("digest", "tensor.stats", "image.resize", "image.blur", "image.sharpen", "image.edges")
HOSTILE_MODULE = Path(__file__).parent / "hostile.py"
HOSTILE = tuple(re.findall(r'^@processor\("([^"]+)"', HOSTILE_MODULE.read_text(encoding="utf-8"), re.MULTILINE))


def install_hostile(folder: Path) -> None:
    """Leave the distribution ``smp-hostile`` in a folder, as an installer would."""
    for name in ("hostile.py", "hostile_escapes.py"):
        shutil.copy(HOSTILE_MODULE.with_name(name), folder)
    info = folder / "smp_hostile-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: smp-hostile\nVersion: 1.0\n")
    points = [f"{name} = hostile:{name.partition('.')[2]}" for name in HOSTILE]
    points += ["wrong.name = hostile:sums", "wrong.import = hostile_missing:f", "digest = hostile:sums"]
    # torch imports, with itself, what calls itself a backend of it: nobody listed that, and it would be there first.
    foreign = "[torch.backends]\nforeign = smp_nowhere:autoload\n"
    (info / "entry_points.txt").write_text(foreign + "[smpd.processors]\n" + "\n".join(points) + "\n")


@dataclasses.dataclass
class Entry:
    """An entry to send."""

    name: str
    data: bytes
    media_type: str = "application/octet-stream"
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Result:
    """A result entry as it came."""

    name: str
    media_type: str
    attributes: dict[str, Any]
    data: bytearray = dataclasses.field(default_factory=bytearray)
    chunks: int = 0


class Compute:
    """A compute process that is ready."""

    def __init__(self, caller: Caller, started: "Started", ready: Ready) -> None:
        self.caller = caller
        self.process = started.process
        self.plain = started.plain
        self.result = started.result
        self.ready = ready
        self.chunk_bytes = self.plain.slot_bytes
        self.freed: list[int] = []

    async def run(
        self, processor: str, entries: Sequence[Entry], timeout_s: float = 30, **params: Any
    ) -> tuple[Done, list[Result]]:
        """Run a processor over entries laid one after the other."""
        plain = b"".join(entry.data for entry in entries)
        listed, offset = [], 0
        for entry in entries:
            listed.append(InputEntry(entry.name, offset, len(entry.data), entry.media_type, entry.attributes))
            offset += len(entry.data)
        request = Run("job", processor, params, timeout_s)
        slots = Slots(self.plain.slots)
        results: list[Result] = []
        with anyio.fail_after(DEADLINE_S):
            async with self.caller.open(request) as exchange:
                for start in range(0, max(len(listed), 1), 100):
                    more = start + 100 < len(listed)
                    await exchange.send(Objects([InputObject("", listed[start : start + 100], more)]))
                async with unwrapped(), anyio.create_task_group() as group:
                    group.start_soon(self._fill, exchange, slots, plain)
                    try:
                        async for message in exchange.messages(AnyFromCompute):
                            await self._take(exchange, slots, results, message)
                    finally:
                        group.cancel_scope.cancel()
                done = await exchange.result(Done)
        assert slots.free == self.plain.slots, "a slot was not freed"
        return done, results

    async def _fill(self, exchange: Exchange, slots: Slots, plain: bytes) -> None:
        for offset in range(0, len(plain), self.chunk_bytes):
            slot = await slots.take()
            part = plain[offset : offset + self.chunk_bytes]
            with self.plain.slot(slot) as view:
                view[: len(part)] = part
            with contextlib.suppress(anyio.BrokenResourceError):
                await exchange.send(Chunk(slot, offset, len(part)))
        with contextlib.suppress(anyio.BrokenResourceError):
            await exchange.send(Finish(len(plain)))

    async def _take(self, exchange: Exchange, slots: Slots, results: list[Result], message: AnyFromCompute) -> None:
        match message:
            case Freed(slot):
                self.plain.wipe(slot)  # whoever still reads it gets zeros
                self.freed.append(slot)
                slots.give(slot)
            case OutputBegin(name, media_type, attributes):
                results.append(Result(name, media_type, attributes))
            case OutputChunk(slot, length):
                with self.result.slot(slot) as view:
                    results[-1].data += view[:length]
                results[-1].chunks += 1
                await exchange.send(OutputFreed(slot))
            case OutputEnd():
                pass

    async def error(
        self, processor: str, entries: Sequence[Entry] = (), timeout_s: float = 30, **params: Any
    ) -> SmpError:
        """Run and return the error, which there must be."""
        try:
            done, results = await self.run(processor, entries, timeout_s, **params)
        except SmpError as error:
            return error
        raise AssertionError(f"no error but {done} and {results}")

    async def ended(self) -> int:
        """Wait for the process to end, and return its status."""
        return await anyio.to_thread.run_sync(self.process.wait, 20)

    def rss_bytes(self) -> int:
        """Resident memory of the process without the shared rings."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError


@contextlib.asynccontextmanager
async def unwrapped() -> AsyncIterator[None]:
    """Raise the one error of a task group as itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


def died() -> SmpError:
    """The error of a process that is gone."""
    return ResourceError("worker_died", "the compute process is gone")


class KeptChannel(Channel):
    """A channel over a socket that the next test goes on using: closing it does not tell the peer."""

    def shutdown(self) -> None:
        """Leave the connection open."""


class Started:
    """A compute process, the socket to it and its rings, not bound to an event loop."""

    def __init__(self, plugins: Path | None, slots: Slot4, code: str, stderr: int | None) -> None:
        self.socket, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-P", *(["-c", code] if code else ["-m", "smpd.compute"]), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(plugins or "")},
            stderr=stderr,
        )
        theirs.close()
        self.plain = Ring.create("plain", *slots[:2])
        self.result = Ring.create("result", *slots[2:])
        self.ready: Ready | None = None

    async def connect(self, caller: Caller, setup: Setup) -> Ready:
        """Have Setup answered, once."""
        if self.ready is None:
            self.ready = await caller.call(setup, Ready, timeout=DEADLINE_S, fds=[self.plain.fd, self.result.fd])
        return self.ready

    def close(self) -> None:
        """Close the link, upon which the process must end."""
        self.socket.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("the process did not end when the link closed") from None
        finally:
            self.process.wait()
            self.plain.close()
            self.result.close()


_SHARED: dict[tuple[tuple[str, ...], Path | None], Started] = {}


def close_shared() -> None:
    """End the processes that tests have shared."""
    while _SHARED:
        _SHARED.popitem()[1].close()


@contextlib.asynccontextmanager
async def compute(
    *processors: str,
    plugins: Path | None = None,
    slots: Slot4 = (4, 1 << 16, 2, 1 << 16),
    sandbox: str = "required",
    device: str = DEVICE,
    memory_bytes: int = 0,
    code: str = "",
    stderr: int | None = None,
    shared: bool = False,
) -> AsyncIterator[Compute]:
    """A process that has answered Setup.

    Args:
        slots: number and bytes of the plain ring's, then of the result ring's.
        code: is run instead of the module, with the descriptor in argv.
        shared: take the one that another test has left, or leave it to the next; such a test must not end it.
    """
    started = _SHARED.get((processors, plugins)) if shared else None
    started = started or Started(plugins, slots, code, stderr)
    if shared:
        _SHARED[processors, plugins] = started
    setup = Setup(*slots, list(processors), device, sandbox, memory_bytes)
    try:
        channel = KeptChannel(started.socket.dup()) if shared else Channel(started.socket.dup())
        async with unwrapped(), Caller(channel, lost=died) as caller:
            ready = await started.connect(caller, setup)
            yield Compute(caller, started, ready)
    finally:
        if not shared:
            started.close()
