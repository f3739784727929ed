"""The SSH connections to one server: kept, shared, and made one after the other.

A connection serves several uses at once. While all are in use another one is made from time to time, one after the
other (sshd drops some of many that have not logged in yet, MaxStartups). The last one is given up if it brought
nothing: each is bound by its window on a long line, but on a short one by processors that they share. When the server
takes no more, those there are do.
"""

import contextlib
from collections.abc import AsyncIterator

import anyio
import asyncssh

from smp_proto.errors import IntegrityError, RemoteError
from smpd.fetch.patience import while_moving
from smpd.fetch.sftp_login import GONE, Login
from smpd.fetch.sftp_session import Meter, ReadSession, moved
from smpd.links.fetching import Deadlines

GROW_S = 0.25  # how long a rate is measured
CONNECTIONS_MAX = 8  # each takes a login, and two processes of the server
_SETTLED_S = 30.0  # how long to do with the connections there are when another was refused or brought nothing
_GAIN = 1.15  # by which factor another one has to raise the rate
_SHARED = 2  # uses of a connection at once, when all are in use: while one starts or ends, the other goes on


class Line:
    """A connection, with a session for reading and one for everything else, each opened when first needed."""

    def __init__(self, connection: asyncssh.SSHClientConnection, deadlines: Deadlines, meter: Meter) -> None:
        self._meter = meter
        self.connection = connection
        self.users = 0
        self.spoiled = False
        self._deadlines = deadlines
        self._opening = anyio.Lock()
        self._reads: ReadSession | None = None
        self._client: asyncssh.SFTPClient | None = None

    @property
    def usable(self) -> bool:
        """Whether more may be asked of it."""
        return not self.spoiled and not self.connection.is_closed()

    def patience(self, patience_s: float = 0.0) -> contextlib.AbstractContextManager[None]:
        """Waits in a block for as long as bytes move on this connection.

        Raises:
            Stalled: they do not.
        """
        return while_moving(self._deadlines, lambda: moved(self.connection), patience_s)

    def retire(self) -> None:
        """Take no more uses, and close once there are none."""
        self.spoiled = True
        if not self.users:
            self.connection.abort()

    async def reads(self) -> ReadSession:
        """The session for reading."""
        async with self._opening:
            if self._reads is None or not self._reads.usable:
                self._reads = await ReadSession.start(self.connection, self._deadlines, self._meter)
            return self._reads

    async def client(self) -> asyncssh.SFTPClient:
        """The session for everything else."""
        async with self._opening:
            if self._client is None:
                with self.patience():
                    self._client = await self.connection.start_sftp_client()
            return self._client


class Lines:
    """All connections of one remote.

    Args:
        connections: how many there may be.

    Attributes:
        at_once: how many uses there can be at once.
    """

    def __init__(self, login: Login, connections: int, deadlines: Deadlines) -> None:
        self._login = login
        self._connections = connections
        self._deadlines = deadlines
        self.at_once = connections * _SHARED
        self._permits = anyio.Semaphore(self.at_once)
        self._connecting = anyio.Lock()
        self._lines: list[Line] = []
        self._meter = Meter()
        self._rate = 0.0  # in bytes a second, with one connection fewer
        self._begin(0.0)

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
                if not keep or line.spoiled:
                    line.retire()

    def abort(self) -> None:
        """Close all connections."""
        for line in self._lines:
            line.connection.abort()

    async def _pick(self) -> Line:
        line = self._least()
        if line is not None and not self._wants_more(line):
            return line
        waited = self._connecting.locked()
        async with self._connecting:
            if waited and (line := self._least()) is not None:
                return line
            try:
                made = Line(await self._login.connect(), self._deadlines, self._meter)
            except (RemoteError, *GONE) as error:
                line = self._least()
                if line is None or (isinstance(error, RemoteError) and error.code == "remote_untrusted"):
                    raise
                self._grow_at = anyio.current_time() + _SETTLED_S
                return line
            self._lines.append(made)
            self._begin(anyio.current_time())
            return made

    def _least(self) -> Line | None:
        self._lines = [line for line in self._lines if line.usable]
        return min(self._lines, key=lambda line: line.users, default=None)

    def _wants_more(self, least: Line) -> bool:
        """Whether to make another connection rather than to share the one with the fewest uses."""
        now = anyio.current_time()
        if not any(line.users for line in self._lines):
            self._begin(now, self._grow_at)  # a rate is of busy times
        if not least.users or now < self._grow_at or self._connecting.locked():
            return False
        rate = (self._meter.received - self._before) / (now - self._since)
        paid = len(self._lines) == 1 or rate >= _GAIN * self._rate
        if paid and len(self._lines) < self._connections:
            self._rate = rate
            return True
        if not paid:
            self._lines[-1].retire()
        self._grow_at = now + _SETTLED_S
        return False

    def _begin(self, now: float, grow_at: float = 0.0) -> None:
        self._since = now
        self._before = self._meter.received
        self._grow_at = max(grow_at, now + GROW_S)
