"""An SFTP session for reading, on a channel of an SSH connection. Several reads share it, each cancelled on its own."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import anyio
import asyncssh

from smpd.fetch import sftp_wire as wire
from smpd.fetch.patience import acknowledged_and_received, while_moving
from smpd.links.fetching import Deadlines

# How much the server may send ahead of what was taken, which bounds what a long line carries in a round trip.
# Everything is taken at once, so it costs no memory.
WINDOW_BYTES = 16 << 20
PACKET_BYTES = 128 << 10  # OpenSSH sends 32 KiB whatever is allowed, others more


@dataclass(slots=True)
class Meter:
    """How many bytes arrived, over all sessions that share it."""

    received: int = 0


def moved(connection: asyncssh.SSHClientConnection) -> int:
    """How many bytes have moved on a connection, either way."""
    return sum(acknowledged_and_received(connection.get_extra_info("socket")))


class ReadSession(asyncssh.SSHClientSession[bytes]):
    """Use :meth:`start`. Calls raise asyncssh's SFTPError, and TimeoutError when the server stalls.

    Args:
        connection: what the channel is of.
    """

    def __init__(self, connection: asyncssh.SSHClientConnection, deadlines: Deadlines, meter: Meter) -> None:
        self._connection = connection
        self._deadlines = deadlines
        self._meter = meter
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._requests = wire.Requests(self._write)
        self._waiting: set[anyio.Event] = set()
        self._block_bytes = wire.BLOCK_BYTES

    @classmethod
    async def start(cls, connection: asyncssh.SSHClientConnection, deadlines: Deadlines, meter: Meter) -> "ReadSession":
        """Open a channel and agree on version 3."""
        with while_moving(deadlines, lambda: moved(connection)):
            _, session = await connection.create_session(
                lambda: cls(connection, deadlines, meter),
                subsystem="sftp",
                encoding=None,
                window=WINDOW_BYTES,
                max_pktsize=PACKET_BYTES,
            )
        assert isinstance(session, cls)
        await session._greet()
        return session

    @property
    def usable(self) -> bool:
        """Whether more can be asked."""
        return self._channel is not None

    async def stat(self, path: str) -> asyncssh.SFTPAttrs:
        """What the server tells of a path; links are followed."""
        return wire.attributes_of(await self._ask(wire.STAT, wire.string(path.encode())))

    @contextlib.asynccontextmanager
    async def open(self, path: str) -> AsyncIterator[bytes]:
        """The handle of a file, opened for reading, for the length of a block."""

        def opened(reply: wire.Reply) -> None:
            # Whoever asked may be gone already; the handle has to be closed all the same.
            replies.append(reply)
            if left and reply.kind == wire.HANDLE:
                self._close(reply)
            event.set()

        replies: list[wire.Reply] = []
        left = False
        event = anyio.Event()
        self._requests.ask(wire.OPEN, wire.opening(path.encode()), opened)
        try:
            await self._until(event)
            yield wire.handle_of(replies[0])
        finally:
            left = True
            if replies and replies[0].kind == wire.HANDLE:
                self._close(replies[0])

    async def fstat(self, handle: bytes) -> asyncssh.SFTPAttrs:
        """What the server tells of an open file."""
        return wire.attributes_of(await self._ask(wire.FSTAT, wire.string(handle)))

    async def read(self, handle: bytes, offset: int, into: memoryview) -> None:
        """Fill ``into``. Once this has returned or raised, also by cancellation, nothing is written there any more.

        Raises:
            asyncssh.SFTPEOFError: the file ends before.
        """
        outcome: list[asyncssh.SFTPError | None] = []
        event = anyio.Event()

        def done(error: asyncssh.SFTPError | None) -> None:
            outcome.append(error)
            event.set()

        read = wire.RangeRead(self._requests, handle, offset, into, self._block_bytes, done)
        try:
            await self._until(event)
        finally:
            read.abandon()
        if outcome[0] is not None:
            raise outcome[0]

    # ── what asyncssh calls ────────────────────────────────────────────────────────────────────────────

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """The channel is open."""
        self._channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Some of the server's answers."""
        if datatype is not None or self._channel is None:
            return  # what a server's shell says on standard error
        self._meter.received += len(data)
        try:
            self._requests.feed(data)
        except asyncssh.SFTPBadMessage:
            self._lost()

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is closed."""
        self._lost()

    def eof_received(self) -> bool:
        """The server will send no more."""
        self._lost()
        return False

    # ── asking ─────────────────────────────────────────────────────────────────────────────────────────

    async def _greet(self) -> None:
        found: list[bytes] = []
        event = anyio.Event()

        def greeted(version: bytes) -> None:
            found.append(version)
            event.set()

        self._requests.greet(greeted)
        await self._until(event)
        if wire.tells_limits(found[0]):
            self._block_bytes = wire.read_limit(await self._ask(wire.EXTENDED, wire.string(wire.LIMITS)))

    async def _ask(self, kind: int, fields: bytes) -> wire.Reply:
        replies: list[wire.Reply] = []
        event = anyio.Event()

        def answered(reply: wire.Reply) -> None:
            replies.append(reply)
            event.set()

        self._requests.ask(kind, fields, answered)
        await self._until(event)
        return replies[0]

    async def _until(self, event: anyio.Event) -> None:
        """Wait for an answer as long as anything moves on the connection: what was asked first comes first."""
        if self._channel is None:
            raise asyncssh.SFTPConnectionLost("the session is over")
        self._waiting.add(event)
        try:
            with while_moving(self._deadlines, lambda: moved(self._connection)):
                await event.wait()
        finally:
            self._waiting.discard(event)
        if self._channel is None:
            raise asyncssh.SFTPConnectionLost("the session ended")

    def _close(self, opened: wire.Reply) -> None:
        with contextlib.suppress(asyncssh.SFTPBadMessage):
            self._requests.ask(wire.CLOSE, wire.string(wire.handle_of(opened)), None)

    def _write(self, data: bytes) -> None:
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write(data)

    def _lost(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.abort()
        for event in self._waiting:
            event.set()
