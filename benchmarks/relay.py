"""A long line on one machine: passes connections on, late, no faster than a rate, each within a window.

In a process of its own: ``python -m benchmarks.relay PORT --delay 0.05 --rate 300e6 --window 2097152`` prints the port
that it listens on. It stands for a line whose every connection has a window that its round trip does not fill: what is
tried is how many requests are under way, not TCP.
"""

import argparse
import asyncio
import contextlib
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.results import ROOT

_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Line:
    """What the line is like.

    Attributes:
        delay_s: one way.
        rate: bytes a second towards the client, of all connections together.
        window: the most of one connection's bytes that are on their way, in each direction.
    """

    delay_s: float
    rate: float
    window: int

    def __str__(self) -> str:
        """For people."""
        window = f"{self.window / (1 << 20):g} MiB a connection on their way at most"
        return f"{2000 * self.delay_s:g} ms there and back, {self.rate / 1e6:g} MB/s, {window}"


class Relay:
    """Passes connections on to a port of this machine."""

    def __init__(self, port: int, line: Line) -> None:
        self._port = port
        self._line = line
        self._free_at = 0.0  # when the line has room towards the client

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(ConnectionError):
            await asyncio.sleep(2 * self._line.delay_s)  # the handshake
            beyond, onwards = await asyncio.open_connection("127.0.0.1", self._port)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, onwards, shared=False))
                group.create_task(self._pass(beyond, writer, shared=True))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, shared: bool) -> None:
        loop = asyncio.get_running_loop()
        under_way: deque[tuple[float, bytes]] = deque()
        room, more = asyncio.Semaphore(self._line.window // _CHUNK_BYTES), asyncio.Event()
        ended = False

        async def arrive() -> None:
            while under_way or not ended:
                if not under_way:
                    more.clear()
                    await more.wait()
                    continue
                at, data = under_way.popleft()
                if (wait_s := at - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                writer.write(data)
                await writer.drain()
                loop.call_later(self._line.delay_s, room.release)  # when the acknowledgement is back
            writer.close()

        async def leave() -> None:
            nonlocal ended
            while True:
                await room.acquire()
                data = await reader.read(_CHUNK_BYTES)
                if not data:
                    break
                at = loop.time()
                if shared:
                    at = self._free_at = max(self._free_at, at) + len(data) / self._line.rate
                under_way.append((at + self._line.delay_s, data))
                more.set()
            ended = True
            more.set()

        with contextlib.suppress(ConnectionError):
            async with asyncio.TaskGroup() as group:
                group.create_task(arrive())
                group.create_task(leave())


@contextlib.contextmanager
def relay(port: int, line: Line) -> Iterator[int]:
    """Start one before a port; its own port."""
    argv = [sys.executable, "-m", "benchmarks.relay", port, "--delay", line.delay_s, "--rate", line.rate]
    argv += ["--window", line.window]
    with subprocess.Popen(list(map(str, argv)), stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


async def _main(port: int, line: Line) -> None:
    server = await asyncio.start_server(Relay(port, line).serve, "127.0.0.1", 0, limit=_CHUNK_BYTES)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--delay", type=float, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--window", type=int, required=True)
    options = parser.parse_args()
    uvloop.run(_main(options.port, Line(options.delay, options.rate, options.window)))
