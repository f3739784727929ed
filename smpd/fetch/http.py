"""Ranged GETs over HTTP/1.1 whose bodies go from the socket into a slot of the ring, with nothing in between.

Heads are parsed by h11, and so are the bodies of refusals. A body that is wanted must be framed by
Content-Length; whoever gets :class:`Unspoken` has to ask in another way. Every answer is checked
(RFC 9110 §14.4, §8.8.3): servers ignore If-Match, answer 200 to a range, and cut bodies short.
"""

import asyncio
import re
import ssl
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import anyio
import h11

from smp_proto.errors import RemoteError, SmpError
from smpd.fetch.pins import bare_etag
from smpd.fetch.remote import ANEW, Deadlines, changed, unreachable

_SCRATCH_BYTES = 16 << 10  # small, because what comes of a body along with its head is copied
_REFUSAL_MAX_BYTES = 64 << 10
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)


class Unspoken(Exception):  # noqa: N818 - it is no failure, only not for this reader
    """The answer may be right, but this reader does not speak its framing."""


class Answer(NamedTuple):
    """Status, header fields by lower-case name, and the body where it is a refusal."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def wanted(self) -> bool:
        """Whether the body is (or should be) the range."""
        return self.status in (200, 206)


class Wanted(NamedTuple):
    """A range of a pinned object; ``etag`` as :func:`bare_etag` gives it."""

    path: str
    size: int
    etag: str
    offset: int
    length: int

    @property
    def headers(self) -> dict[str, str]:
        """What to ask with."""
        headers = {"Range": f"bytes={self.offset}-{self.offset + self.length - 1}"}
        # A weak tag never matches (RFC 9110 §13.1.1), so there the answer's own tag has to do.
        return headers if self.etag.startswith("W/") else {**headers, "If-Match": f'"{self.etag}"'}

    def check(self, answer: Answer) -> None:
        """Refuse an answer of status 200 or 206 that is not this range of this object.

        Raises:
            IntegrityError: ``source_changed``.
            RemoteError: ``remote_failed`` when the server sends something else than what was asked for.
        """
        etag = answer.headers.get("etag")
        if etag is not None and bare_etag(etag) != self.etag:
            raise changed(self.path)
        where = answer.headers.get("content-range")
        found = _CONTENT_RANGE.fullmatch(where or "")
        if found and int(found[3]) != self.size:
            raise changed(self.path)
        length = answer.headers.get("content-length", str(self.length))
        whole = where is None and answer.status == 200 and self.offset == 0 and self.length == self.size
        exact = found and (int(found[1]), int(found[2])) == (self.offset, self.offset + self.length - 1)
        if etag is None or length != str(self.length) or not (whole or exact):
            raise RemoteError(
                "remote_failed",
                f"the server's answer for {self.path} is not the range asked for",
                hint="the server, or a proxy before it, does not do ranged reads properly",
            )


class _Exchange:
    """One request and its answer, fed from the connection's callbacks."""

    def __init__(self, request: h11.Request, wanted: Wanted, into: memoryview) -> None:
        self._parser = h11.Connection(h11.CLIENT)
        self.request = self._parser.send(request) or b""
        self.request += self._parser.send(h11.EndOfMessage()) or b""
        self._wanted = wanted
        self._into = into
        self._refusal = bytearray()
        self._answer: Answer | None = None
        self._error: Exception | None = None
        self.done = anyio.Event()
        self._heard = False
        self.stale = False
        self.in_body = False
        self.clean = False
        self.received = 0
        self.progress = anyio.current_time()

    @property
    def room(self) -> memoryview:
        """Where the next bytes of the body go."""
        return self._into[self.received :]

    def advance(self, count: int) -> None:
        """Note bytes of the body that have come."""
        self.received += count
        self.progress = anyio.current_time()
        if self.received == len(self._into):
            self._finish(clean=self.clean)

    def feed(self, data: bytes) -> None:
        """Take bytes that are not the range itself; empty at the end of the stream."""
        self._heard = self._heard or bool(data)
        try:
            self._parser.receive_data(data)
            while not self.done.is_set() and not self.in_body and self._step():
                pass
        except h11.RemoteProtocolError:
            self.fail(RemoteError("remote_failed", "the server's answer is not HTTP/1.1, or was cut short"))
        except (SmpError, Unspoken) as error:
            self.fail(error)

    def _step(self) -> bool:
        event = self._parser.next_event()
        if isinstance(event, h11.Response):
            self._begin(event)
        elif isinstance(event, h11.Data):
            self._refusal += event.data
            if len(self._refusal) > _REFUSAL_MAX_BYTES:
                self._finish(clean=False)
        elif isinstance(event, h11.EndOfMessage):
            self._finish(clean=self._parser.our_state is h11.DONE and self._parser.trailing_data == (b"", False))
        return event is not h11.NEED_DATA and event is not h11.PAUSED

    def _begin(self, response: h11.Response) -> None:
        headers: dict[str, str] = {}
        for raw_name, raw in response.headers:
            name, value = raw_name.decode("ascii"), raw.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        self._answer = Answer(response.status_code, headers)
        if not self._answer.wanted:
            return
        self._wanted.check(self._answer)
        if "transfer-encoding" in headers or "content-length" not in headers:
            raise Unspoken
        self.in_body = True
        self.clean = self._parser.our_state is h11.DONE
        early, closed = self._parser.trailing_data
        count = min(len(early), len(self._into))
        self._into[:count] = early[:count]
        if len(early) > count or closed:
            self.clean = False
        self.advance(count)

    def lost(self) -> None:
        """The connection is gone."""
        self.stale = not self._heard
        if self.in_body or self.stale:
            self.fail(unreachable("the server", f"closed the connection after {self._so_far}"))
        else:
            self.feed(b"")
            self.fail(unreachable("the server", "closed the connection before its answer was whole"))

    @property
    def _so_far(self) -> str:
        return f"{self.received} of {len(self._into)} bytes"

    def stalled(self, seconds: float) -> None:
        """Nothing has come for too long."""
        self.fail(unreachable("the server", f"sent nothing for {seconds:g} s, after {self._so_far}"))

    def fail(self, error: Exception) -> None:
        """End with an error, unless it has ended."""
        if not self.done.is_set():
            self._error = error
            self._finish(clean=False)

    def _finish(self, *, clean: bool) -> None:
        self.clean, self.in_body = clean, False
        self.done.set()

    def result(self) -> Answer:
        """The answer, once done."""
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer._replace(body=bytes(self._refusal))


class _Connection(asyncio.BufferedProtocol):
    """A kept-alive connection; at most one exchange at a time."""

    def __init__(self) -> None:
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._exchange: _Exchange | None = None
        self._transport: asyncio.Transport | None = None
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        # Never empty: the loops take an empty buffer for an error, even after the body's last byte.
        exchange = self._exchange
        return exchange.room if exchange is not None and exchange.in_body else self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        exchange = self._exchange
        if exchange is None or exchange.done.is_set():
            self.abort()  # bytes that nobody asked for: whatever they are, they are no answer to the next request
        elif exchange.in_body:
            exchange.advance(nbytes)
        else:
            exchange.feed(bytes(self._scratch[:nbytes]))

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._exchange is not None:
            self._exchange.lost()

    async def run(self, exchange: _Exchange, stall_s: float) -> Answer:
        """Send a request and wait for the end of its answer. Afterwards ``open`` says whether to keep this."""
        assert self._transport is not None
        self._exchange = exchange
        try:
            self._transport.write(exchange.request)
            while not exchange.done.is_set():
                left = exchange.progress + stall_s - anyio.current_time()
                if left <= 0:
                    exchange.stalled(stall_s)
                with anyio.move_on_after(left):
                    await exchange.done.wait()
            return exchange.result()
        finally:
            self._exchange = None
            if not (exchange.done.is_set() and exchange.clean):
                self.abort()

    def abort(self) -> None:
        """Close at once."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    @property
    def facts(self) -> dict[str, str]:
        """What TLS agreed on."""
        assert self._transport is not None
        cipher = self._transport.get_extra_info("cipher")
        return {"tls": cipher[1], "cipher": cipher[0]} if cipher else {"tls": "none"}


class RangeReader:
    """A pool of at most ``connections`` kept-alive connections.

    Args:
        tls: the trust for ``https`` URLs.
    """

    def __init__(self, tls: ssl.SSLContext, connections: int, deadlines: Deadlines) -> None:
        self._tls = tls
        self._deadlines = deadlines
        self._permits = anyio.Semaphore(connections)
        self._idle: list[tuple[str, _Connection]] = []

    async def get(self, url: str, headers: dict[str, str], wanted: Wanted, into: memoryview) -> Answer:
        """Fill ``into`` with the range, or return the refusal.

        Args:
            headers: all that are to be sent; ``Host`` is added.

        Raises:
            Unspoken: the answer is framed in a way for another reader.
            IntegrityError: ``source_changed``.
            RemoteError: ``remote_unreachable``, ``remote_untrusted``, ``remote_failed``.
        """
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        request = h11.Request(method="GET", target=target, headers=[("Host", parts.netloc), *headers.items()])
        async with self._permits:
            while True:
                connection, reused = await self._take(url)
                exchange = _Exchange(request, wanted, into)
                try:
                    answer = await connection.run(exchange, self._deadlines.stall_s)
                except RemoteError:
                    # A kept-alive connection may have been closed by the server while the request was on its way.
                    if reused and exchange.stale:
                        continue
                    raise
                self._give(url, connection)
                return answer

    async def probe(self, url: str) -> dict[str, str]:
        """Connect, and say what TLS agreed on."""
        async with self._permits:
            connection, _ = await self._take(url)
            facts = connection.facts
            self._give(url, connection)
            return facts

    async def _take(self, url: str) -> tuple[_Connection, bool]:
        origin = _origin(url)
        self._idle = [(where, connection) for where, connection in self._idle if connection.open]
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index][0] == origin:
                return self._idle.pop(index)[1], True
        return await self._connect(url), False

    def _give(self, url: str, connection: _Connection) -> None:
        if connection.open:
            self._idle.append((_origin(url), connection))

    async def _connect(self, url: str) -> _Connection:
        parts = urlsplit(url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        try:
            with anyio.fail_after(self._deadlines.connect_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    _Connection, host, parts.port or (443 if secure else 80), ssl=self._tls if secure else None
                )
        except (OSError, TimeoutError) as error:
            raise connect_error(error, parts.netloc) from error
        return connection

    async def aclose(self) -> None:
        """Close the idle connections; the others belong to requests, which close them when cancelled."""
        for _, connection in self._idle:
            connection.abort()
        self._idle.clear()


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


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
