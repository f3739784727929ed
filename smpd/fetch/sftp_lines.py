"""The SSH connections to one server: kept, shared, and made one after the other.

A connection serves several uses at once. Another one is made when all are in use, though not more often than every
:data:`GROW_S`: on a fast line the logins would cost more than they bring, and sshd drops some of many connections that
have not logged in yet (MaxStartups). When the server takes no more, those there are do.
"""

import contextlib
from collections.abc import AsyncIterator

import anyio
import asyncssh

from smp_proto.errors import IntegrityError, RemoteError
from smpd.fetch.sftp_login import GONE, Login
from smpd.fetch.sftp_session import ReadSession

GROW_S = 0.25
_REFUSED_S = 30.0  # how long to do with the connections there are when the server refused another
_SHARED = 2  # uses of a connection at once, when all are in use: while one starts or ends, the other goes on


class Line:
    """A connection, with a session for reading and one for everything else, each opened when first needed."""

    def __init__(self, connection: asyncssh.SSHClientConnection, stall_s: float) -> None:
        self.connection = connection
        self.users = 0
        self.spoiled = False
        self._stall_s = stall_s
        self._opening = anyio.Lock()
        self._reads: ReadSession | None = None
        self._client: asyncssh.SFTPClient | None = None

    @property
    def usable(self) -> bool:
        """Whether more may be asked of it."""
        return not self.spoiled and not self.connection.is_closed()

    async def reads(self) -> ReadSession:
        """The session for reading."""
        async with self._opening:
            if self._reads is None or not self._reads.usable:
                self._reads = await ReadSession.start(self.connection, self._stall_s)
            return self._reads

    async def client(self) -> asyncssh.SFTPClient:
        """The session for everything else."""
        async with self._opening:
            if self._client is None:
                with anyio.fail_after(self._stall_s):
                    self._client = await self.connection.start_sftp_client()
            return self._client


class Lines:
    """All connections of one remote.

    Args:
        connections: how many there may be.
    """

    def __init__(self, login: Login, connections: int, stall_s: float) -> None:
        self._login = login
        self._connections = connections
        self._stall_s = stall_s
        self._permits = anyio.Semaphore(connections * _SHARED)
        self._connecting = anyio.Lock()
        self._lines: list[Line] = []
        self._grow_at = 0.0

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[Line]:
        """A connection for the length of a block. It is kept unless anything odd happened."""
        async with self._permits:
            line = await self._pick()
            line.users += 1
            keep = False
            try:
                yield line
                keep = True
            except (asyncssh.SFTPError, IntegrityError) as error:
                keep = not isinstance(error, GONE)  # the server said no, or another object, in good order
                raise
            finally:
                line.users -= 1
                line.spoiled = line.spoiled or not keep
                if line.spoiled and not line.users:
                    line.connection.abort()

    def abort(self) -> None:
        """Close all connections."""
        for line in self._lines:
            line.connection.abort()

    async def _pick(self) -> Line:
        line = self._least()
        if line is not None and not self._may_grow(line):
            return line
        waited = self._connecting.locked()
        async with self._connecting:
            if waited and (line := self._least()) is not None:
                return line
            try:
                made = Line(await self._login.connect(), self._stall_s)
            except (RemoteError, *GONE) as error:
                line = self._least()
                if line is None or (isinstance(error, RemoteError) and error.code == "remote_untrusted"):
                    raise
                self._grow_at = anyio.current_time() + _REFUSED_S
                return line
            self._lines.append(made)
            self._grow_at = anyio.current_time() + GROW_S
            return made

    def _least(self) -> Line | None:
        self._lines = [line for line in self._lines if line.usable]
        return min(self._lines, key=lambda line: line.users, default=None)

    def _may_grow(self, least: Line) -> bool:
        """Whether to make another connection rather than to share the one with the fewest uses."""
        full = len(self._lines) >= self._connections or self._connecting.locked()
        return bool(least.users) and not full and anyio.current_time() >= self._grow_at
