"""An HTTP server for tests that answers each request as its object's name says, rightly or not."""

import asyncio
import contextlib
import hashlib
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

DATA = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(4096))  # 128 KiB
ETAG = "0123456789abcdef"


class Asked(NamedTuple):
    """One request: the range asked for (inclusive), how many came before it on its connection, and its head."""

    start: int
    end: int
    earlier: int
    head: str = ""

    @property
    def method(self) -> str:
        return self.head.partition(" ")[0]

    @property
    def length(self) -> int:
        """Of the request's own body."""
        found = re.search(r"(?im)^content-length: (\d+)\r$", self.head)
        return int(found[1]) if found else 0

    @property
    def body(self) -> bytes:
        return DATA[self.start : self.end + 1]


class Peer:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> None:
        """Wait until the client has closed."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1 << 16):
                pass


Script = Callable[[Peer, Asked], Awaitable[bool | None]]  # true keeps the connection


def answer(
    asked: Asked,
    status: str = "206 Partial Content",
    *,
    etag: str | None = f'"{ETAG}"',
    where: str | None = "",
    length: int | None = -1,
    more: str = "",
) -> bytes:
    """A head; by default the right one."""
    lines = [f"HTTP/1.1 {status}"]
    if etag is not None:
        lines.append(f"ETag: {etag}")
    if where is not None:
        lines.append(f"Content-Range: {where or f'bytes {asked.start}-{asked.end}/{len(DATA)}'}")
    if length is not None:
        lines.append(f"Content-Length: {len(asked.body) if length < 0 else length}")
    return ("\r\n".join(lines) + "\r\n" + more + "\r\n").encode()


def refusal(status: str, code: str = "", more: str = "") -> Script:
    """A refusal with S3's XML, or with no body."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode() if code else b""

    async def script(peer: Peer, asked: Asked) -> bool:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        await peer.send(head.encode() + body)
        return True

    return script


@contextlib.asynccontextmanager
async def scripted(scripts: dict[str, Script], tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serve; yields the endpoint. The last part of a path chooses the script."""

    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        serving.add(task)
        try:
            await converse(reader, writer)
        finally:
            serving.discard(task)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        earlier = 0
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                found = re.search(r"(?im)^range: bytes=(\d+)-(\d+)\r$", head)
                start, end = (int(found[1]), int(found[2])) if found else (0, len(DATA) - 1)
                if suffix := re.search(r"(?im)^range: bytes=-(\d+)\r$", head):
                    start = max(0, len(DATA) - int(suffix[1]))
                name = head.split(" ")[1].rpartition("/")[2].partition("?")[0]
                if not await scripts[name](Peer(reader, writer), Asked(start, end, earlier, head)):
                    break
                earlier += 1
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for task in list(serving):  # each ends when its client has closed
            await asyncio.wait([task], timeout=10)
