"""The smpd side of a link to a fetch process, for tests: start it, ask it, look into the ring."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

import anyio

from smp_proto.aio import Caller, Channel
from smp_proto.control import AnyRemoteConfig, AnyRemoteSecret, ObjectInfo
from smp_proto.errors import ResourceError
from smpd.fetch.service import Service
from smpd.links import fetching
from smpd.links.fetching import Deadlines
from smpd.links.ring import Ring

ANSWER_S = 60.0
USUAL = Deadlines()
T = TypeVar("T")


class Link:
    """Requests to one remote, with a small ring."""

    def __init__(
        self, caller: Caller, ring: Ring, process: subprocess.Popen[bytes] | None, walls: dict[str, str]
    ) -> None:
        self.caller = caller
        self.ring = ring
        self.process = process
        self.walls = walls
        self.progress: list[int] = []
        self.busy: list[float] = []

    async def _call(self, request: fetching.Request, kind: type[T]) -> T:
        return await self.caller.call(request, kind, timeout=ANSWER_S)

    async def stat(self, path: str) -> ObjectInfo:
        return await self._call(fetching.Stat(path), ObjectInfo)

    async def delete(self, path: str, pin: str = "") -> None:
        await self._call(fetching.Delete(path, pin), type(None))

    async def move(self, path: str, pin: str, target: str) -> str:
        return (await self._call(fetching.Move(path, pin, target), fetching.Moved)).outcome

    async def probe(self) -> fetching.Probed:
        return await self._call(fetching.Probe(), fetching.Probed)

    async def list(self, prefix: str = "", recursive: bool = True) -> list[ObjectInfo]:
        found: list[ObjectInfo] = []
        with anyio.fail_after(ANSWER_S):
            async with self.caller.open(fetching.List(prefix, recursive)) as exchange:
                async for batch in exchange.messages(fetching.Listed):
                    found += batch.objects
                    await exchange.send(fetching.More())
                await exchange.result(type(None))
        return found

    async def read(self, path: str, pin: str, offset: int, length: int, slot: int = 0, at: int = 0) -> bytes:
        """Read a range and return what the slot then holds of it."""
        await self._call(fetching.Read(path, pin, offset, length, slot, at), type(None))
        with self.ring.slot(slot) as view:
            return bytes(view[at : at + length])

    async def tail(self, path: str, length: int, slot: int = 0) -> tuple[ObjectInfo, bytes]:
        """The end of an object, and what is known of it."""
        with self.ring.slot(slot) as view:
            view[:] = b"\xee" * len(view)
            info = await self._call(fetching.Tail(path, length, slot), ObjectInfo)
            assert set(view[length:]) <= {0xEE}
            return info, bytes(view[: min(length, info.size)])

    async def read_many(
        self, objects: Sequence[fetching.Whole], slot: int = 0
    ) -> tuple[Sequence[bytes | None], dict[int, str]]:
        """Objects out of one slot, None for those that failed, and the codes of the failures."""
        errors = (await self._call(fetching.ReadMany(objects, slot), fetching.ManyRead)).errors
        with self.ring.slot(slot) as view:
            got = [None if i in errors else bytes(view[o.at : o.at + o.size]) for i, o in enumerate(objects)]
        return got, {index: error.code for index, error in errors.items()}

    async def write(self, path: str, data: bytes, *, size: int | None = None) -> ObjectInfo:
        self.progress.clear()
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            request = fetching.Write(path, len(data) if size is None else size)
            with anyio.fail_after(ANSWER_S):
                async with self.caller.open(request, [file.fileno()]) as exchange:
                    async for message in exchange.messages(fetching.Progress):
                        if message.busy_s:
                            self.busy.append(message.busy_s)
                        else:
                            self.progress.append(message.done)
                    return await exchange.result(ObjectInfo)

    async def write_and_cancel(self, path: str, data: bytes) -> None:
        """Start an upload and cancel it at its first progress message."""
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            with anyio.fail_after(ANSWER_S):
                async with self.caller.open(fetching.Write(path, len(data)), [file.fileno()]) as exchange:
                    await exchange.receive(fetching.Progress)


def _lost() -> ResourceError:
    return ResourceError("worker_died", "the fetch process is gone")


@contextlib.asynccontextmanager
async def fetch_process(
    config: AnyRemoteConfig,
    secret: AnyRemoteSecret | None = None,
    *,
    slots: int = 4,
    slot_bytes: int = 1 << 20,
    connections: int = 4,
    env: dict[str, str] | None = None,
    sandbox: str = "required",
    code: str = "",
) -> AsyncIterator[Link]:
    """Start ``python -m smpd.fetch`` (or ``code`` in its place), set it up, and end it by closing the link."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond
            [sys.executable, *(["-c", code] if code else ["-m", "smpd.fetch"]), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    try:
        async with _link(ours, config, secret, slots, slot_bytes, connections, process, sandbox) as link:
            yield link
        _, said = await anyio.to_thread.run_sync(lambda: process.communicate(timeout=ANSWER_S))
        assert said.decode() == ""
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


@contextlib.asynccontextmanager
async def fetch_in_process(
    config: AnyRemoteConfig,
    secret: AnyRemoteSecret | None = None,
    *,
    deadlines: Deadlines = USUAL,
    connections: int = 4,
) -> AsyncIterator[Link]:
    """The same over a link within this process, for deadlines that a test can wait for."""
    ours, theirs = socket.socketpair()
    environment = dict(os.environ)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(Service().run, Channel(theirs))
            async with _link(ours, config, secret, 4, 1 << 20, connections, None, "off", deadlines) as link:
                yield link
    finally:
        os.environ.clear()
        os.environ.update(environment)


@contextlib.asynccontextmanager
async def _link(
    sock: socket.socket,
    config: AnyRemoteConfig,
    secret: AnyRemoteSecret | None,
    slots: int,
    slot_bytes: int,
    connections: int,
    process: subprocess.Popen[bytes] | None,
    sandbox: str,
    deadlines: Deadlines = USUAL,
) -> AsyncIterator[Link]:
    ring = Ring.create("test", slots, slot_bytes)
    try:
        async with Caller(Channel(sock), lost=_lost) as caller:
            setup = fetching.Setup(config, slots, slot_bytes, secret, connections, sandbox, deadlines)
            walls = await caller.call(setup, fetching.Walls, timeout=ANSWER_S, fds=[ring.fd])
            yield Link(caller, ring, process, walls.sandbox)
    finally:
        ring.close()
