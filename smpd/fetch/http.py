"""Kept-alive connections to one HTTP server, and what it means when one does not come about."""

import asyncio
import functools
import math
import ssl
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import urlsplit

import anyio

from smp_proto.errors import RemoteError, UsageError
from smpd.fetch.connection import Body, Connection
from smpd.fetch.crowd import Crowd
from smpd.fetch.dialling import dial
from smpd.fetch.exchange import REFUSAL_MAX_BYTES, Answer, Exchange, Suffix, Wanted
from smpd.fetch.remote import ANEW, unreachable
from smpd.links.fetching import Deadlines

Head = bytes | Callable[[], Awaitable[bytes]]
Trust = Callable[[], ssl.SSLContext]
_NOTHING = memoryview(b"")
_NO_ROOM = (429, 503)  # RFC 6585 §4, RFC 9110 §15.6.4
_LEAST = 16  # requests at once: as many as a process has lanes by default


class Origin(NamedTuple):
    """A server: how to reach it."""

    secure: bool
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> "Origin":
        """The server of a URL."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        return cls(secure, parts.hostname or "", parts.port or (443 if secure else 80))

    def __str__(self) -> str:
        """As it stands in the field Host (RFC 9110 §7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


class Pool:
    """At most ``connections`` connections to one server.

    Args:
        tls: gives the trust for a secure origin.
    """

    def __init__(self, origin: Origin, tls: Trust, connections: int, deadlines: Deadlines) -> None:
        self.origin = origin
        self._tls = tls
        self._deadlines = deadlines
        self._crowd = Crowd(_LEAST, connections)
        self._idle: list[Connection] = []

    async def get(self, head: Head, wanted: Wanted | Suffix, into: memoryview) -> Answer:
        """Put what is wanted into the front of ``into``, or return the refusal.

        Args:
            head: the whole request, or what makes it once it is to be sent: a signature holds for minutes.

        Raises:
            Unspoken: the answer is framed in a way for another reader.
            IntegrityError: ``source_changed``.
            RemoteError: ``remote_unreachable``, ``remote_untrusted``, ``remote_failed``.
        """
        return await self._ask(head, lambda: Exchange(wanted, into))

    async def ask(
        self,
        method: str,
        head: Head,
        body: Body | bytes | None = None,
        *,
        answer_s: float = 0.0,
        keep_bytes: int = REFUSAL_MAX_BYTES,
    ) -> Answer:
        """Send a request, and return the answer, whatever it is, with its body.

        Args:
            head: as for :meth:`get`.
            body: makes what follows the head, anew for each attempt.
            answer_s: how long the answer may take once all was sent, where that is not ``stall_s``.
            keep_bytes: the most that the body of an answer may be; a refusal is cut there.

        Raises:
            UsageError: ``bad_request``, the file is shorter than that.
            ResourceError: ``disk_failed``.
            RemoteError: ``remote_unreachable``, ``remote_untrusted``, ``remote_failed``.
        """
        # What must not be done twice is not sent where it could be lost on the way (RFC 9110 §9.2.2).
        fresh = method == "POST"
        return await self._ask(head, lambda: Exchange(None, _NOTHING, method, keep_bytes), body, answer_s, fresh=fresh)

    async def _ask(
        self,
        head: Head,
        make: Callable[[], Exchange],
        body: Body | bytes | None = None,
        answer_s: float = 0.0,
        *,
        fresh: bool = False,
    ) -> Answer:
        async with self._crowd:
            asked = anyio.current_time()
            while True:
                connection, reused = (await self._anew(), False) if fresh else await self._take()
                exchange = make()
                try:
                    sent = head if isinstance(head, bytes) else await head()
                except BaseException:
                    self._give(connection)  # nothing was sent
                    raise
                try:
                    answer = await connection.run(exchange, sent, body, answer_s)
                except RemoteError:
                    # A kept-alive connection may have been closed by the server while the request was on its way.
                    if reused and exchange.stale:
                        continue
                    raise
                self._give(connection)
                if answer.status in _NO_ROOM:
                    self._crowd.refused(asked)
                else:  # how long an answer takes to begin says nothing where a body goes before it
                    self._crowd.answered(connection.answered_s if body is None else math.inf)
                return answer

    async def probe(self) -> dict[str, str]:
        """Connect, and say what TLS agreed on."""
        async with self._crowd:
            connection, _ = await self._take()
            facts = connection.facts
            self._give(connection)
            return facts

    async def _anew(self) -> Connection:
        """A connection that nothing was asked over, in place of one that is idle: else each would be one more."""
        if self._idle:
            self._idle.pop(0).abort()
        return await self._connect()

    async def _take(self) -> tuple[Connection, bool]:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection, True
        return await self._connect(), False

    def _give(self, connection: Connection) -> None:
        if connection.open:
            self._idle.append(connection)

    async def _connect(self) -> Connection:
        secure, host, port = self.origin
        try:
            with anyio.fail_after(self._deadlines.connect_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self._deadlines),
                    sock=await dial(host, port),
                    ssl=self._tls() if secure else None,
                    server_hostname=host if secure else None,
                )
        except (OSError, TimeoutError) as error:
            raise connect_error(error, str(self.origin)) from error
        return connection

    async def aclose(self) -> None:
        """Close the idle connections; the others belong to requests, which close them when cancelled."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()


def trust(ca_pem: str) -> ssl.SSLContext:
    """The system's authorities and those given.

    Raises:
        UsageError: ``bad_config``.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca_pem:
        try:
            context.load_verify_locations(cadata=ca_pem.encode("ascii", "ignore").decode())  # comments may be any text
        except (ValueError, ssl.SSLError) as error:
            hint = "give --ca-file (of a webhook notify.ca_file) a file of certificates in PEM form"
            raise UsageError("bad_config", "the extra certificates are not PEM text", hint=hint) from error
    return context


def trusting(ca_pem: str, *, secure: bool) -> Trust:
    """Gives :func:`trust`; made now for a secure origin, else at its first use: it takes 50 ms that few need then.

    Raises:
        UsageError: ``bad_config``.
    """
    made = functools.cache(lambda: trust(ca_pem))
    if secure or ca_pem:
        made()
    return made


def connect_error(error: BaseException, host: str) -> RemoteError:
    """The error for a connection that did not come about."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return RemoteError(
            "remote_untrusted",
            f"the certificate of {host} is not trusted: {error.verify_message}",
            hint=f"if the server has its own authority, give its certificate: {ANEW} --ca-file FILE",
        )
    if isinstance(error, ssl.SSLError):
        return unreachable(host, "does not complete a TLS handshake")
    if isinstance(error, TimeoutError):
        return unreachable(host, "does not answer")
    if isinstance(error, ConnectionRefusedError):
        return unreachable(host, "refuses the connection")
    if isinstance(error, OSError) and type(error).__name__ == "gaierror":
        return unreachable(host, "is not a known host name")
    return unreachable(host, "cannot be reached")
