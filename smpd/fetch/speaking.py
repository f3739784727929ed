"""What aiobotocore asks, over our own connections: one set of deadlines and one judge of progress for everything.

Not for bodies that are to be streamed, and not through a proxy: those are left to aiohttp.
"""

import contextlib
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.httpsession import AIOHTTPSession

from smp_proto.errors import RemoteError, UsageError
from smpd.fetch.http import Origin, Pool, Trust

PAGE_MAX_BYTES = 16 << 20  # of an answer that is kept, a page of a listing say: 1,000 names of at most 1,024 bytes
_LEFT_OUT = ("expect", "host")  # nobody waits for 100-continue; Host is ours to say
# AWS says by one where a bucket is, and by a second where that does not say the region. botocore asks again and again.
_REDIRECTS_MAX = 2


@dataclass(slots=True)
class _Operation:
    answer_s: float = 0.0
    redirects: int = 0


_under_way: ContextVar[_Operation | None] = ContextVar("under_way", default=None)


@contextlib.contextmanager
def operation(answer_s: float) -> Iterator[None]:
    """One operation of a client in the block, however many requests that takes.

    Args:
        answer_s: how long an answer may take; 0 for ``stall_s``.
    """
    token = _under_way.set(_Operation(answer_s))
    try:
        yield
    finally:
        _under_way.reset(token)


def _current() -> _Operation:
    return _under_way.get() or _Operation()


class Speaker:
    """Sends what botocore has prepared and signed.

    Args:
        pool_of: the connections to a server.
    """

    def __init__(self, pool_of: Callable[[Origin], Pool]) -> None:
        self._pool_of = pool_of

    async def send(self, method: str, url: str, headers: Mapping[str, str | bytes], body: bytes) -> AioAWSResponse:
        """The answer, whole."""
        where = urlsplit(url)
        origin = Origin.of(url)
        fields = {name.lower(): _text(value) for name, value in headers.items() if name.lower() not in _LEFT_OUT}
        fields |= {"host": str(origin), "accept-encoding": "identity"}
        if body or method in ("POST", "PUT"):
            fields["content-length"] = str(len(body))
        target = f"{where.path or '/'}?{where.query}" if where.query else where.path or "/"
        lines = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
        head = f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("ascii")

        answer = await self._pool_of(origin).ask(
            method, head, body or None, answer_s=_current().answer_s, keep_bytes=PAGE_MAX_BYTES
        )
        return _kept(url, answer.status, answer.headers, answer.body)


class _Kept:
    """A body as botocore reads it."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self) -> bytes:
        return self._body


def declares_entities(body: bytes) -> bool:
    """Whether XML declares a type, by which some MiB become GiB, or may: NUL is of UTF-16, which would hide that.

    No S3 server does either, but a proxy's page may say that it is HTML.
    """
    return b"<!DOCTYPE" in body or b"\0" in body


def _kept(url: str, status: int, headers: Mapping[str, str], body: bytes) -> AioAWSResponse:
    """An answer with its body.

    Raises:
        RemoteError: ``remote_failed``, it is one that botocore is not to read. Of a refusal the body is left out.
    """
    if declares_entities(body) and not body.lstrip().startswith(b"{"):  # JSON of a queue may hold any text
        if status < 300:
            raise RemoteError("remote_failed", f"{_server(url)} sent an answer that cannot be read")
        body = b""
    return AioAWSResponse(url, status, headers, _Kept(body))


async def _whole(answer: AioAWSResponse) -> AioAWSResponse:
    """An answer of aiohttp's with its body, which is not to be streamed: it would be read whatever its length."""
    body = bytearray()
    async for part in answer.raw.content.iter_any():
        body += part
        if len(body) > PAGE_MAX_BYTES:
            answer.raw.close()
            text = f"{_server(answer.url)} sent an answer that is longer than {PAGE_MAX_BYTES} bytes"
            raise RemoteError("remote_failed", text)
    return _kept(answer.url, answer.status_code, answer.headers, bytes(body))


def session_over(speaker: Speaker, tls: Trust) -> type[AIOHTTPSession]:
    """The class of sessions that aiobotocore is to use.

    Args:
        tls: gives the trust for what is left to aiohttp.
    """

    class Session(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore has no types
        def _build_verify_context(self) -> ssl.SSLContext:
            return tls()

        async def send(self, request: Any) -> AioAWSResponse:
            body = request.body or b""
            proxied = self._proxy_config.proxy_url_for(request.url) is not None
            if request.stream_output or proxied or not isinstance(body, bytes | bytearray):
                streamed, request.stream_output = request.stream_output, True  # what is kept is read here
                answer: AioAWSResponse = await super().send(request)
                request.stream_output = streamed
                if not streamed or answer.status_code >= 300:  # else botocore reads all of a refusal
                    answer = await _whole(answer)
            else:
                answer = await speaker.send(request.method, request.url, request.headers, bytes(body))
            _count_redirect(answer)
            return answer

    return Session


def _count_redirect(answer: AioAWSResponse) -> None:
    """Count an answer that points elsewhere.

    Raises:
        RemoteError: that is one too many of an operation.
    """
    if answer.status_code not in (301, 302, 307):  # those that botocore looks at
        return
    current = _current()
    current.redirects += 1
    if current.redirects > _REDIRECTS_MAX:
        here, there = (_server(url) for url in (answer.url, answer.headers.get("location", "")))
        elsewhere = bool(there) and there != here
        hint = f"use that as the remote's endpoint: {there}" if elsewhere else "check that an S3 server is there"
        text = f"{here} does not answer but redirects{f' to {there}' if elsewhere else ''}"
        raise RemoteError("remote_failed", text, hint=hint, retryable=False)


def _server(url: str) -> str:
    """The server of a URL that a server sent, for messages; empty where it names none."""
    found = re.match(r"https?://[A-Za-z0-9.:\[\]-]{1,253}(?=[/?#]|$)", url)
    return found[0] if found else ""


def _text(value: str | bytes) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if not re.fullmatch(r"[ -~]*", text):
        raise UsageError("bad_config", "a key, token or name holds a character that no header may")
    return text
