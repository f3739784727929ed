"""A TCP proxy that spoils what passes through it: latency, a trickle, resets, half-closed and silent connections, cuts.

A fault is put in once, at a byte of what the server (or the client) sends, counted over all connections from then on.
It knows enough of HTTP to refuse a request in the server's place, and to change a field of an answer's head.
"""

import asyncio
import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["latency", "trickle", "reset", "half-close", "black-hole", "truncate", "refuse", "etag", "act"]
HALF_CLOSED_S = 1.0  # how long a half-closed connection is kept before it is closed


@dataclass
class Fault:
    """What happens, and when.

    Args:
        kind: ``latency`` delays all from then on, ``trickle`` lets a byte pass now and then, ``black-hole`` nothing,
            ``truncate`` ends the stream in good order, ``half-close`` ends one direction only, ``refuse`` answers the
            next requests itself, ``etag`` changes the tag of the next answer, ``act`` calls ``action``.
        at: after so many bytes in that direction.
        up: of what the client sends, rather than the server.
        seconds: of latency.
        answer: of ``refuse``.
        times: of ``refuse``, how many requests.
    """

    kind: Kind
    at: int = 0
    up: bool = False
    seconds: float = 0.0
    answer: bytes = b""
    times: int = 1
    action: Callable[[], None] = lambda: None
    hit: bool = False


class Proxy:
    """Use :func:`faulty`. Runs in a thread of its own; methods may be called from any."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._counts = {True: 0, False: 0}
        self._open: set[asyncio.Task[None]] = set()
        self.received = 0  # bytes from the server since the fault was put in
        self.requests: list[tuple[int, int]] = []  # ranges asked of the server since then, first and last byte
        self.connections = 0
        self.asked: list[tuple[bytes, float]] = []  # requests by line and range, and when, on the monotonic clock
        self.refused = b"", 0.0
        self.port = 0

    def put(self, fault: Fault | None) -> None:
        """Put a fault in, and count from now on."""
        with self._lock:
            self._fault = fault
            self._counts = {True: 0, False: 0}
            self.received = 0
            self.requests.clear()
            self.asked.clear()

    def down(self) -> None:
        """Refuse connections, and break those that are open."""
        self._run(self._down())

    def up(self) -> None:
        """Take connections again, on the same port."""
        self._run(self._listen())

    def drop(self) -> None:
        """Reset every connection."""
        self._run(self._drop())

    # ── in the thread ──────────────────────────────────────────────────────────────────────────────────

    def _run(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _down(self) -> None:
        assert self._server
        self._server.close()
        await self._drop()

    async def _drop(self) -> None:
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._open.add(task)
        self.connections += 1
        back: asyncio.StreamWriter | None = None
        try:
            there, back = await asyncio.open_connection(*self._target)
            both = [self._pass(reader, back, writer, up=True), self._pass(there, writer, back, up=False)]
            await asyncio.gather(*both)
        except (OSError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            _reset(writer)
        finally:
            self._open.discard(task)
            for each in (writer, back):
                if each is not None:
                    each.close()

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, other: asyncio.StreamWriter, *, up: bool
    ) -> None:
        """One direction. Its end ends the other, unless it is half-closed."""
        late = False
        while data := await source.read(1 << 14):
            if not up:
                self.received += len(data)
            elif self._refused(data, other):
                await other.drain()
                continue
            fault = self._due(len(data), up=up)
            if fault is None:
                if late:
                    await asyncio.sleep(0.002)
                sink.write(data)
                await sink.drain()
                continue
            if fault.kind == "latency":
                late = True
                await asyncio.sleep(fault.seconds)
                sink.write(data)
            elif fault.kind == "act":
                await asyncio.get_running_loop().run_in_executor(None, fault.action)
                sink.write(data)
            elif fault.kind == "etag":
                changed = re.sub(rb'(?i)(\r\netag: ?"?)[0-9a-f]{4}', rb"\g<1>0ff0", data)
                fault.hit = fault.hit or changed != data
                sink.write(changed)
            else:
                await self._break(fault.kind, data, source, sink, other)
                return
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
        raise ConnectionResetError

    async def _break(
        self,
        kind: Kind,
        data: bytes,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        other: asyncio.StreamWriter,
    ) -> None:
        sink.write(data[: len(data) // 2])
        if kind == "reset":
            _reset(sink)
            _reset(other)
        elif kind == "truncate":
            await sink.drain()
            raise ConnectionResetError
        elif kind == "half-close":
            await sink.drain()
            sink.write_eof()
            await asyncio.sleep(HALF_CLOSED_S)
            raise ConnectionResetError
        elif kind == "trickle":
            with contextlib.suppress(ConnectionError):
                for at in range(len(data) // 2, len(data)):
                    sink.write(data[at : at + 1])
                    await sink.drain()
                    await asyncio.sleep(0.1)
        else:
            await asyncio.sleep(3600)

    def _due(self, count: int, *, up: bool) -> Fault | None:
        """The fault, if it comes within the next bytes; once."""
        with self._lock:
            self._counts[up] += count
            fault = self._fault
            if fault is None or fault.hit or fault.kind == "refuse" or fault.up != up or self._counts[up] <= fault.at:
                return None
            if fault.kind == "etag":
                return fault  # in the head that comes next
            fault.hit = True
            return fault

    def _refused(self, data: bytes, client: asyncio.StreamWriter) -> bool:
        """Answer a request in the server's place, if that is the fault; note what ranges are asked for."""
        if not re.match(rb"(GET|HEAD|PUT|POST|DELETE) [^\r\n]+ HTTP/1\.1\r\n", data):
            return False
        extent = re.search(rb"(?i)\r\nrange: bytes=(\d*)-(\d+)\r\n", data)
        request = data.partition(b"\r\n")[0] + (extent[0] if extent else b""), time.monotonic()
        with self._lock:
            self.asked.append(request)
            fault = self._fault
            if fault is not None and fault.kind == "refuse" and self._counts[False] >= fault.at and fault.times:
                fault.times -= 1
                fault.hit = True
                self.refused = request
                client.write(fault.answer)
                return True
            if extent and extent[1]:
                self.requests.append((int(extent[1]), int(extent[2])))
        return False


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.contextmanager
def faulty(host: str, port: int) -> Iterator[Proxy]:
    """A proxy before a server, for the length of a block."""
    proxy = Proxy((host, port))
    thread = threading.Thread(target=proxy._loop.run_forever, daemon=True)
    thread.start()
    try:
        proxy.up()
        yield proxy
    finally:
        proxy.down()
        proxy._loop.call_soon_threadsafe(proxy._loop.stop)
        thread.join(10)
        proxy._loop.close()


def until(test: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait until something is true; returns it."""
    end = time.monotonic() + seconds
    while not (found := test()):
        assert time.monotonic() < end, "it never came so far"
        time.sleep(0.01)
    return found
