"""One request over HTTP/1.1 and its answer, without I/O: what is asked for, heads, checks, where a body goes.

A wanted body goes from the socket into a slot of the ring, with nothing in between; it must be framed by
Content-Length, and whoever gets :class:`Unspoken` has to ask in another way. Heads of the usual form are parsed
here, all others and the bodies of refusals by h11. Every answer is checked (RFC 9110 §14.4, §8.8.3): servers ignore
If-Match, answer 200 to a range, and cut bodies short.
"""

import re
from typing import NamedTuple

import h11

from smp_proto.errors import RemoteError, SmpError
from smpd.fetch.pins import bare_etag
from smpd.fetch.remote import changed, unreachable

REFUSAL_MAX_BYTES = 64 << 10
INTERIM_MAX = 1000  # answers of status 1xx; a server that says no more than that is waited for as long as it moves
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)
# A part of what RFC 9112 allows: visible ASCII, no folded lines, an answer with a body. h11 gets the rest.
_HEAD = re.compile(rb"HTTP/1\.1 (20[06])(?: [ -~]*+)?\r\n((?:[-!#$%&'*+.^_`|~0-9A-Za-z]++:[ -~]*+\r\n)++)\r\n")


class Unspoken(Exception):  # noqa: N818 - it is no failure, only not for this reader
    """The answer may be right, but this reader does not speak its framing."""


class Answer(NamedTuple):
    """Status, header fields by lower-case name, and the body where it was not wanted in a slot."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def wanted(self) -> bool:
        """Whether the body is (or should be) the range."""
        return self.status in (200, 206)

    @property
    def extent(self) -> tuple[int, int, int] | None:
        """First and last byte of the body within the object, and the object's size; None where the head is unclear."""
        where = self.headers.get("content-range")
        if found := _CONTENT_RANGE.fullmatch(where or ""):
            return int(found[1]), int(found[2]), int(found[3])
        length = self.headers.get("content-length", "")
        if where is None and self.status == 200 and re.fullmatch(r"\d{1,19}", length, re.ASCII):
            return 0, int(length) - 1, int(length)
        return None


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
        headers = {"range": f"bytes={self.offset}-{self.offset + self.length - 1}"}
        # A weak tag never matches (RFC 9110 §13.1.1), so there the answer's own tag has to do.
        return headers if self.etag.startswith("W/") else {"if-match": f'"{self.etag}"', **headers}

    def check(self, answer: Answer) -> int:
        """Return the length of the body; refuse an answer of status 200 or 206 that is not this range of this object.

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
        return self.length


class Suffix(NamedTuple):
    """The last ``length`` bytes of an object of which nothing is known yet, or all of a smaller one."""

    path: str
    length: int

    @property
    def headers(self) -> dict[str, str]:
        """What to ask with (RFC 9110 §14.1.2)."""
        return {"range": f"bytes=-{self.length}"}

    def check(self, answer: Answer) -> int:
        """Return the length of the body.

        Raises:
            Unspoken: this is not the end of the object; servers ignore the field, or do not know this form of it.
        """
        if answer.extent is None:
            raise Unspoken
        first, last, size = answer.extent
        count = last + 1 - first
        length = answer.headers.get("content-length")
        if last != size - 1 or count != min(size, self.length) or length != str(count) or not count:
            raise Unspoken
        return count


def parse_head(data: bytes) -> tuple[Answer, int] | None:
    """The head of a plain, successful answer at the front of ``data``, and its length; None for all others.

    What this takes, h11 takes, and means the same by it: one Content-Length, no Transfer-Encoding, and a
    connection that stays open.
    """
    match = _HEAD.match(data)
    if match is None:
        return None
    headers: dict[str, str] = {}
    for line in match[2].decode("ascii").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name = name.lower()
        if name in headers:
            return None
        headers[name] = value.strip(" ")
    length = headers.get("content-length", "")
    plain = length.isdigit() and len(length) <= 19 and "transfer-encoding" not in headers
    if not plain or headers.get("connection", "keep-alive").lower() != "keep-alive":
        return None
    return Answer(int(match[1]), headers), match.end()


class Exchange:
    """One request and its answer, fed by a connection.

    Args:
        wanted: what of an answer of status 200 or 206 goes into ``into``; with None each body is kept in the answer.
        method: what was asked by, since an answer to HEAD has no body whatever its head says.
        keep_bytes: the most that is kept of a body that is not wanted. What is more of a refusal is left out.
    """

    def __init__(
        self,
        wanted: Wanted | Suffix | None,
        into: memoryview,
        method: str = "GET",
        keep_bytes: int = REFUSAL_MAX_BYTES,
    ) -> None:
        self._method = method
        self._keep_bytes = keep_bytes
        self._parser: h11.Connection | None = None
        self._wanted = wanted
        self._into = into
        self._refusal = bytearray()
        self._answer: Answer | None = None
        self._error: Exception | None = None
        self._heard = False
        self._interim = 0
        self.done = False
        self.stale = False
        self.in_body = False
        self.clean = False
        self.received = 0

    @property
    def room(self) -> memoryview:
        """Where the next bytes of the body go."""
        return self._into[self.received :]

    def advance(self, count: int) -> None:
        """Note bytes of the body that have come."""
        self.received += count
        if self.received == len(self._into):
            self._finish(clean=self.clean)

    def feed(self, data: bytes) -> None:
        """Take bytes that are not the range itself; empty at the end of the stream."""
        try:
            if not self._heard and self._wanted is not None and (head := parse_head(data)):
                self._heard = True
                answer, length = head
                self._begin(answer, self._wanted, data[length:], clean=True)
                return
            self._heard = self._heard or bool(data)
            self._feed_h11(data)
        except h11.RemoteProtocolError:
            if data:  # else it was cut short, which is a fault of the connection
                self.fail(RemoteError("remote_failed", "the server's answer is not HTTP/1.1"))
        except (SmpError, Unspoken) as error:
            self.fail(error)

    def _feed_h11(self, data: bytes) -> None:
        if self._parser is None:
            self._parser = h11.Connection(h11.CLIENT)
            # Of what was sent only the method matters to it.
            self._parser.send(h11.Request(method=self._method, target="/", headers=[("Host", "h")]))
            self._parser.send(h11.EndOfMessage())
        self._parser.receive_data(data)
        while not self.done and not self.in_body and self._step(self._parser):
            pass

    def _step(self, parser: h11.Connection) -> bool:
        event = parser.next_event()
        if isinstance(event, h11.Response):
            self._respond(event, parser)
        elif isinstance(event, h11.Data):
            self._refusal += event.data
            if len(self._refusal) > self._keep_bytes:
                self._overflow()
        elif isinstance(event, h11.InformationalResponse):
            self._interim += 1
            if self._interim > INTERIM_MAX:
                self.fail(RemoteError("remote_failed", "the server says that it goes on, and nothing else"))
        elif isinstance(event, h11.EndOfMessage):
            self._finish(clean=parser.our_state is h11.DONE and parser.trailing_data == (b"", False))
        return event is not h11.NEED_DATA and event is not h11.PAUSED

    def _overflow(self) -> None:
        if self._answer is not None and self._answer.status < 300:  # what is cut must not pass for the whole
            self.fail(RemoteError("remote_failed", f"the server's answer is longer than {self._keep_bytes} bytes"))
        self._finish(clean=False)

    def _respond(self, response: h11.Response, parser: h11.Connection) -> None:
        headers: dict[str, str] = {}
        for raw_name, raw in response.headers:
            name, value = raw_name.decode("ascii"), raw.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        answer = Answer(response.status_code, headers)
        if self._wanted is None or not answer.wanted:
            self._answer = answer
            return
        early, closed = parser.trailing_data
        self._begin(answer, self._wanted, early, clean=parser.our_state is h11.DONE and not closed)

    def _begin(self, answer: Answer, wanted: Wanted | Suffix, early: bytes, *, clean: bool) -> None:
        length = wanted.check(answer)
        if "transfer-encoding" in answer.headers or "content-length" not in answer.headers:
            raise Unspoken
        self._answer = answer
        self._into = self._into[:length]
        self.in_body = True
        count = min(len(early), length)
        self._into[:count] = early[:count]
        self.clean = clean and len(early) == count
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

    def stalled(self, why: str) -> None:
        """Too little has moved for too long."""
        self.fail(unreachable("the server", f"{why}, after {self._so_far}"))

    def fail(self, error: Exception) -> None:
        """End with an error, unless it has ended."""
        if not self.done:
            self._error = error
            self._finish(clean=False)

    def _finish(self, *, clean: bool) -> None:
        self.clean, self.in_body = clean, False
        self.done = True

    def result(self) -> Answer:
        """The answer, once done."""
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer._replace(body=bytes(self._refusal)) if self._refusal else self._answer
