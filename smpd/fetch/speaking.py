"""What aiobotocore asks, over our own connections: one set of deadlines and one judge of progress for everything.

Not for bodies that are to be streamed, and not through a proxy: those are left to aiohttp.
"""

import contextlib
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.httpsession import AIOHTTPSession

from smp_proto.errors import UsageError
from smpd.fetch.http import Origin, Pool, Trust

PAGE_MAX_BYTES = 16 << 20  # of an answer that is kept, a page of a listing say: 1,000 names of at most 1,024 bytes
_LEFT_OUT = ("expect", "host")  # nobody waits for 100-continue; Host is ours to say
_answer_s: ContextVar[float] = ContextVar("answer_s", default=0.0)


@contextlib.contextmanager
def patient(answer_s: float) -> Iterator[None]:
    """How long an answer may take to what is asked in the block; 0 for ``stall_s``."""
    token = _answer_s.set(answer_s)
    try:
        yield
    finally:
        _answer_s.reset(token)


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
            method, head, body or None, answer_s=_answer_s.get(), keep_bytes=PAGE_MAX_BYTES
        )
        return AioAWSResponse(url, answer.status, answer.headers, _Kept(answer.body))


class _Kept:
    """A body as botocore reads it."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self) -> bytes:
        return self._body


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
                return await super().send(request)
            return await speaker.send(request.method, request.url, request.headers, bytes(body))

    return Session


def _text(value: str | bytes) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if not re.fullmatch(r"[ -~]*", text):
        raise UsageError("bad_config", "a key, token or name holds a character that no header may")
    return text
