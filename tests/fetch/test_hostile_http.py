"""What a server answers is checked: no wrong, short or foreign byte passes for a range."""

import asyncio
import socket
import ssl
import struct
from pathlib import Path
from typing import NamedTuple
from unittest.mock import AsyncMock

import anyio
import pytest
from fetch_link import Link, fetch_in_process, fetch_process
from scripted_http import DATA, ETAG, Asked, Peer, Script, answer, refusal, scripted
from servers import make_certificate

from smp_proto.control import S3Config, S3Secret
from smp_proto.errors import SmpError
from smpd.fetch.exchange import Unspoken
from smpd.fetch.listing import Lister
from smpd.links.fetching import Deadlines

PIN = f"etag:{len(DATA)}:{ETAG}"
SECRET = S3Secret("key", "secret")


class Certificate(NamedTuple):
    """For the server, if it speaks TLS, and for the remote."""

    server: ssl.SSLContext | None
    ca_pem: str


def sends(*parts: bytes, keep: bool = False, **head: object) -> Script:
    """A head made with changes, then these bytes instead of the body, or the right body if there are none."""

    async def script(peer: Peer, asked: Asked) -> bool:
        await peer.send(answer(asked, **head) + (b"".join(parts) if parts else asked.body))  # type: ignore[arg-type]
        return keep

    return script


async def truncated(peer: Peer, asked: Asked) -> None:
    await peer.send(answer(asked) + asked.body[: len(asked.body) // 2])


async def half_closed(peer: Peer, asked: Asked) -> None:
    await truncated(peer, asked)
    if peer.writer.can_write_eof():  # TLS has no half-closed connections
        peer.writer.write_eof()
        await peer.gone()


async def reset(peer: Peer, asked: Asked) -> None:
    await truncated(peer, asked)
    sock = peer.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.writer.transport.abort()


async def cut_off(peer: Peer, asked: Asked) -> None:
    """The whole answer but its last byte, and over TLS no close_notify."""
    await peer.send((answer(asked) + asked.body)[:-1])
    peer.writer.transport.abort()


async def half_a_head(peer: Peer, asked: Asked) -> None:
    await peer.send(answer(asked)[:50])


async def extra(peer: Peer, asked: Asked) -> bool:
    await peer.send(answer(asked) + asked.body + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad")
    return True


async def forgetful(peer: Peer, asked: Asked) -> bool:
    """Closes a kept-alive connection when the next request comes."""
    if asked.earlier:
        return False
    await peer.send(answer(asked) + asked.body)
    return True


async def flood(peer: Peer, asked: Asked) -> None:
    await peer.send(b"HTTP/1.1 206 Partial Content\r\n")
    for number in range(10_000):
        await peer.send(b"X-%d: %s\r\n" % (number, b"x" * 100))


RIGHT: dict[str, Script] = {
    "right": sends(keep=True),
    "status-200": sends(status="200 OK", keep=True),
    "informed": sends(status="100 Continue\r\n\r\nHTTP/1.1 206 Partial Content", keep=True),
    "forgetful": forgetful,  # after one that keeps its connection
    "closing": sends(more="Connection: close\r\n"),
    "extra": extra,
    "encoded": sends(more="Content-Encoding: gzip\r\n", keep=True),
}
WRONG: dict[str, tuple[Script, str]] = {
    "truncated": (truncated, "remote_unreachable"),
    "half-closed": (half_closed, "remote_unreachable"),
    "reset": (reset, "remote_unreachable"),
    "cut-off": (cut_off, "remote_unreachable"),
    "half-a-head": (half_a_head, "remote_unreachable"),
    "silent": (sends(b"", status="206 Partial Content"), "remote_unreachable"),
    "shorter": (sends(length=10), "remote_failed"),
    "longer": (sends(length=len(DATA) * 2), "remote_failed"),
    "other-range": (sends(where=f"bytes 0-99/{len(DATA)}"), "remote_failed"),
    "no-total": (sends(where="bytes 100-65635/*"), "remote_failed"),
    "odd-range": (sends(where="bytes 100-65635"), "remote_failed"),
    "no-range": (sends(where=None), "remote_failed"),
    "no-range-200": (sends(where=None, status="200 OK"), "remote_failed"),
    "other-total": (sends(where=f"bytes 100-65635/{len(DATA) + 1}"), "source_changed"),
    "other-etag": (sends(etag='"fedcba"'), "source_changed"),
    "weak-etag": (sends(etag=f'W/"{ETAG}"'), "source_changed"),
    "two-etags": (sends(more=f'ETag: "{ETAG}"\r\n'), "source_changed"),
    "no-etag": (sends(etag=None), "remote_failed"),
    "flood": (flood, "remote_failed"),
    "no-http": (sends(status="206"[:0]), "remote_failed"),
    "two-lengths": (sends(more="Content-Length: 7\r\n"), "remote_failed"),
    "412": (refusal("412 Precondition Failed", "PreconditionFailed"), "source_changed"),
    "416": (refusal("416 Range Not Satisfiable", "InvalidRange"), "source_changed"),
    "401": (refusal("401 Unauthorized"), "remote_auth"),
    "403": (refusal("403 Forbidden", "AccessDenied"), "remote_forbidden"),
    "403-key": (refusal("403 Forbidden", "InvalidAccessKeyId"), "remote_auth"),
    "403-sig": (refusal("403 Forbidden", "SignatureDoesNotMatch"), "remote_auth"),
    "404": (refusal("404 Not Found", "NoSuchKey"), "no_such_object"),
    "404-bucket": (refusal("404 Not Found", "NoSuchBucket"), "no_such_bucket"),
    "429": (refusal("429 Too Many Requests", more="Retry-After: 7\r\n"), "remote_busy"),
    "503": (refusal("503 Slow Down", "SlowDown", "Retry-After: 7\r\n"), "remote_busy"),
    "500": (refusal("500 Oh", "InternalError"), "remote_failed"),
    "204": (refusal("204 No Content"), "remote_failed"),
    "400": (refusal("400 Bad Request", "InvalidRequest"), "remote_failed"),
}


async def check_all(link: Link) -> None:
    """Every script, one after the other over the same pool, each followed by a right answer."""
    for name in [*RIGHT, *RIGHT]:
        got = await link.read(name, PIN, 100, 65536)
        assert DATA[100:65636] == got, name
    for name, (_, code) in WRONG.items():
        with pytest.raises(SmpError) as caught:
            await link.read(name, PIN, 100, 65536)
        assert (name, code) == (name, caught.value.code)
        if code == "remote_busy":
            assert caught.value.details["retry_after"] == 7.0
        assert caught.value.retryable == (
            code in ("remote_unreachable", "remote_busy") or (code == "remote_failed" and name not in ("204", "400"))
        ), name
        assert DATA[:100] == await link.read("right", PIN, 0, 100), name


def everything() -> dict[str, Script]:
    return RIGHT | {name: script for name, (script, _) in WRONG.items()}


@pytest.fixture(params=["http", "https"])
def certificate(request: pytest.FixtureRequest, tmp_path: Path) -> Certificate:
    """Both schemes: what the server is to have, and what the remote is to trust."""
    if request.param == "http":
        return Certificate(None, "")
    cert, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return Certificate(context, cert.read_text())


async def test_no_wrong_answer_passes_in_the_process(certificate: Certificate) -> None:
    """Each wrong answer is its error, each odd but right one is read; the pool stays usable (uvloop)."""
    async with scripted(everything(), certificate.server) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path", ca_pem=certificate.ca_pem)
        async with fetch_process(config, SECRET, connections=1) as link:
            await check_all(link)


async def test_no_wrong_answer_passes_on_asyncio(certificate: Certificate) -> None:
    """The same on the standard event loop."""
    async with scripted(everything(), certificate.server) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path", ca_pem=certificate.ca_pem)
        async with fetch_in_process(config, SECRET) as link:
            await check_all(link)


async def test_a_whole_object_may_come_as_200_without_content_range() -> None:
    """A 200 without Content-Range is the range only if that is the whole object."""
    scripts = {"whole": sends(where=None, status="200 OK")}
    async with scripted(scripts) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path")
        async with fetch_in_process(config, SECRET) as link:
            assert await link.read("whole", PIN, 0, len(DATA)) == DATA
            with pytest.raises(SmpError, match="not the range"):
                await link.read("whole", PIN, 0, len(DATA) - 1)


@pytest.mark.parametrize("part", ["nothing", "head", "body"])
async def test_a_stalled_answer_is_given_up(part: str, certificate: Certificate) -> None:
    """No byte for the stall deadline ends the read as unreachable, wherever it stops."""

    async def stall(peer: Peer, asked: Asked) -> None:
        data = answer(asked) + asked.body[:1000]
        await peer.send({"nothing": b"", "head": data[:20], "body": data}[part])
        await peer.gone()

    async with scripted({"stall": stall, "right": sends()}, certificate.server) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path", ca_pem=certificate.ca_pem)
        async with fetch_in_process(config, SECRET, deadlines=Deadlines(stall_s=0.2), connections=1) as link:
            with pytest.raises(SmpError, match=r"moved nothing for 0\.2 s") as caught:
                await link.read("stall", PIN, 100, 65536)
            assert caught.value.code == "remote_unreachable"
            assert DATA[100:200] == await link.read("right", PIN, 100, 100)


async def test_progress_resets_the_stall_deadline() -> None:
    """A body that takes longer than the stall deadline in all, but never pauses that long, arrives."""

    async def trickle(peer: Peer, asked: Asked) -> None:
        await peer.send(answer(asked))
        for start in range(0, 1000, 100):
            await anyio.sleep(0.05)  # the trickle itself, not synchronisation
            await peer.send(asked.body[start : start + 100])

    async with scripted({"trickle": trickle}) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path")
        async with fetch_in_process(config, SECRET, deadlines=Deadlines(stall_s=0.4)) as link:
            assert DATA[5:1005] == await link.read("trickle", PIN, 5, 1000)


async def chunked_right(peer: Peer, asked: Asked) -> None:
    await chunked(peer, asked, asked.body)


async def chunked(peer: Peer, asked: Asked, body: bytes, end: bytes = b"0\r\n\r\n", etag: str = f'"{ETAG}"') -> None:
    head = answer(asked, length=None, more="Transfer-Encoding: chunked\r\n", etag=etag)
    await peer.send(head + b"%x\r\n" % len(body) + body + b"\r\n" + end)


async def test_chunked_answers_take_the_other_way() -> None:
    """What the range reader does not speak is read through aiohttp, with the same checks."""

    async def cut(peer: Peer, asked: Asked) -> None:
        await chunked(peer, asked, asked.body[:-1], end=b"")

    async def short(peer: Peer, asked: Asked) -> None:
        await chunked(peer, asked, asked.body[:-1])

    async def long(peer: Peer, asked: Asked) -> None:
        await chunked(peer, asked, asked.body + b"x")

    async def other(peer: Peer, asked: Asked) -> None:
        await chunked(peer, asked, asked.body, etag='"other"')

    scripts = {"right": chunked_right, "cut": cut, "short": short, "long": long, "other": other}
    wrong = {"cut": "remote_unreachable", "short": "remote_unreachable", "long": "remote_failed"}
    async with scripted({**scripts, "plain": sends()}) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path")
        async with fetch_process(config, SECRET) as link:
            for _ in range(2):
                assert DATA[7:70007] == await link.read("right", PIN, 7, 70000)
                assert DATA[7:70007] == await link.read("plain", PIN, 7, 70000)
            for name, code in {**wrong, "other": "source_changed"}.items():
                with pytest.raises(SmpError) as caught:
                    await link.read(name, PIN, 7, 70000)
                assert (name, code) == (name, caught.value.code)


async def test_a_cancelled_read_leaves_nothing_behind(certificate: Certificate) -> None:
    """Cancelling in the middle of a body closes that connection; the next read gets a fresh one."""
    sent, closed = asyncio.Event(), asyncio.Event()

    async def hang(peer: Peer, asked: Asked) -> None:
        await truncated(peer, asked)
        sent.set()
        await peer.gone()
        closed.set()

    async with scripted({"hang": hang, "right": sends(keep=True)}, certificate.server) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path", ca_pem=certificate.ca_pem)
        async with fetch_process(config, SECRET, connections=1) as link:
            with anyio.fail_after(20):
                async with anyio.create_task_group() as group:
                    group.start_soon(link.read, "hang", PIN, 0, 65536)
                    await sent.wait()
                    group.cancel_scope.cancel()
                await closed.wait()
            assert DATA[3:103] == await link.read("right", PIN, 3, 100)


@pytest.mark.parametrize("size", [1 << 53, (1 << 63) + 5, 10**18 - 1])
async def test_no_object_is_larger_than_any_store(size: int) -> None:
    """A server that claims more bytes than a number may hold further on is refused where it is heard."""

    async def script(peer: Peer, asked: Asked) -> bool:
        length = min(64, size)
        head = f'HTTP/1.1 206 P\r\nETag: "{ETAG}"\r\nContent-Range: bytes {size - length}-{size - 1}/{size}\r\n'
        await peer.send(head.encode() + f"Content-Length: {length}\r\n\r\n".encode() + bytes(length))
        return True

    async with scripted({"huge": script}) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path")
        async with fetch_in_process(config, SECRET) as link:
            with pytest.raises(SmpError) as caught:
                await link.tail("huge", 64)
            assert caught.value.code == "remote_failed"


@pytest.mark.parametrize(
    "page",
    [
        b"<ListBucketResult><Contents><Key>a</Key><Size>1</Size><ETag>x</ETag><LastModified>12:00 J</LastModified></Contents>",
        b"<ListBucketResult><Contents><Key>a</Key><Size>many</Size><ETag>x</ETag></Contents>",
        b"<ListBucketResult><Contents><Key>a</Key><Size>99999999999999999999</Size><ETag>x</ETag></Contents>",
        b"<ListBucketResult><Contents>",
    ],
)
async def test_a_listing_that_cannot_be_read_is_the_servers_fault(page: bytes) -> None:
    """Nonsense in times, sizes or the XML itself is `remote_failed`, not a fault of ours."""

    async def script(peer: Peer, asked: Asked) -> bool:
        body = page + (b"</ListBucketResult>" if b"</Contents>" in page else b"")
        await peer.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        return True

    async with scripted({"b": script}) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path")
        async with fetch_in_process(config, SECRET) as link:
            with pytest.raises(SmpError) as caught:
                await link.list()
            assert caught.value.code == "remote_failed"


def redirects(asked: list[str], *more: str) -> Script:
    """Point elsewhere, always; takes down what was asked."""

    async def script(peer: Peer, each: Asked) -> bool:
        asked.append(each.head.partition("\r\n")[0])
        head = "".join(f"{line}\r\n" for line in ("HTTP/1.1 301 Moved Permanently", "Content-Length: 0", *more))
        await peer.send(f"{head}\r\n".encode())
        return True

    return script


@pytest.mark.parametrize(
    ("location", "said"), [("https://elsewhere:9000/scans/", "https://elsewhere:9000"), ("//?", ""), ("", "")]
)
async def test_a_server_that_only_redirects_is_not_asked_for_ever(location: str, said: str) -> None:
    """nginx does, of a folder; a server that wants TLS, of everything. botocore asked it until its stack was full."""
    asked: list[str] = []
    scripts: dict[str, Script] = {}
    async with scripted(scripts) as endpoint:
        script = redirects(asked, f"Location: {location or f'{endpoint}/scans/'}")
        scripts |= {"scans": script, "object": script}
        config = S3Config("scans", endpoint=endpoint, addressing="path")
        async with fetch_in_process(config, SECRET) as link:
            # A tail is asked for past botocore before, and so is a page.
            for what, requests in (
                (link.probe(), 3),
                (link.list(), 4),
                (link.stat("object"), 3),
                (link.tail("object", 64), 4),
            ):
                asked.clear()
                with pytest.raises(SmpError, match="does not answer but redirects") as caught:
                    await what
                assert len(asked) == requests
                assert caught.value.code == "remote_failed"
                assert not caught.value.retryable
                assert said in caught.value.message + caught.value.hint
                assert (f"endpoint: {said}" in caught.value.hint) == bool(said)


async def test_a_bucket_of_another_region_is_found() -> None:
    """AWS says so by a redirect, with the region in a field: it is asked again, signed for that one."""
    asked: list[str] = []
    elsewhere = redirects(asked, "x-amz-bucket-region: eu-west-3")

    async def script(peer: Peer, each: Asked) -> bool:
        if "/us-east-1/s3/" in each.head:
            return bool(await elsewhere(peer, each))
        assert "/eu-west-3/s3/" in each.head
        head = f'HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\nETag: "{ETAG}"\r\n\r\n'
        await peer.send(head.encode())
        return True

    async with scripted({"object": script}) as endpoint:
        config = S3Config("scans", endpoint=endpoint, addressing="path", region="us-east-1")
        async with fetch_in_process(config, SECRET) as link:
            assert (await link.stat("object")).size == len(DATA)
    assert len(asked) == 1


async def test_a_refusal_without_end_is_not_kept() -> None:
    """Of a server whose bodies come in chunks, so that they are read the other way: what botocore keeps is bounded."""
    sent = 0

    async def script(peer: Peer, asked: Asked) -> bool:
        nonlocal sent
        if "aiobotocore" not in asked.head:
            await peer.send(answer(asked, length=None, more="Transfer-Encoding: chunked\r\n"))
            return False
        await peer.send(b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n")
        while sent < 100 << 20:
            await peer.send(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
            sent += 1 << 20
        return False

    async with scripted({"object": script}) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path")
        async with fetch_in_process(config, SECRET) as link:
            with pytest.raises(SmpError, match="longer than") as caught:
                await link.read("object", PIN, 0, 1000)
            assert caught.value.code == "remote_failed"
    assert sent < 50 << 20


@pytest.mark.parametrize("by_client", [False, True])
async def test_no_answer_declares_entities(by_client: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of some KiB would become a name of many MiB."""
    if by_client:
        monkeypatch.setattr(Lister, "_page_directly", AsyncMock(side_effect=Unspoken))
    entity = b'<!DOCTYPE r [<!ENTITY a "' + b"a" * 10_000 + b'">]>'
    key = b"<Key>" + b"&a;" * 500 + b"</Key><Size>1</Size><ETag>x</ETag>"
    page = b'<?xml version="1.0"?>' + entity + b"<ListBucketResult><Contents>" + key + b"</Contents></ListBucketResult>"

    async def script(peer: Peer, asked: Asked) -> bool:
        await peer.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(page)}\r\n\r\n".encode() + page)
        return True

    async with scripted({"b": script}) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path")
        async with fetch_in_process(config, SECRET) as link:
            with pytest.raises(SmpError, match="cannot be read") as caught:
                await link.list()
            assert caught.value.code == "remote_failed"


async def test_a_page_of_a_proxy_is_no_s3_at_all() -> None:
    """It is HTML and says so: what counts is the status."""
    async with scripted({"b": html_of("502 Bad Gateway"), "x": html_of("403 Forbidden")}) as endpoint:
        async with fetch_in_process(S3Config("b", endpoint=endpoint, addressing="path"), SECRET) as link:
            for act, code, retryable in (
                (link.list(), "remote_failed", True),
                (link.probe(), "remote_failed", True),
                (link.delete("x"), "remote_forbidden", False),
            ):
                with pytest.raises(SmpError) as caught:
                    await act
                assert (caught.value.code, caught.value.retryable) == (code, retryable)


def html_of(status: str) -> Script:
    """A gateway's refusal."""
    body = b"<!DOCTYPE html><html><body>no</body></html>"

    async def script(peer: Peer, asked: Asked) -> bool:
        head = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n\r\n"
        await peer.send(head.encode() + body)
        return True

    return script


async def test_a_bucket_of_another_region_is_read() -> None:
    """Where the bucket's name leads to the right server AWS refuses the signature, and says the region: all goes on."""
    says = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-3</Region></Error>"

    async def script(peer: Peer, asked: Asked) -> bool:
        if "/us-east-1/s3/" in asked.head:
            head = f"HTTP/1.1 400 Bad Request\r\nx-amz-bucket-region: eu-west-3\r\nContent-Length: {len(says)}\r\n\r\n"
            await peer.send(head.encode() + (b"" if asked.method == "HEAD" else says))
            return True
        head = f'HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\nETag: "{ETAG}"\r\n\r\n'.encode()
        await peer.send(head if asked.method == "HEAD" else answer(asked) + asked.body)
        return True

    async with scripted({"object": script}) as endpoint:
        config = S3Config("scans", endpoint=endpoint, addressing="path", region="us-east-1")
        async with fetch_in_process(config, SECRET) as link:
            assert (await link.tail("object", 64))[0].size == len(DATA)
            assert await link.read("object", PIN, 100, 1000) == DATA[100:1100]


async def test_a_server_that_only_goes_on_is_given_up() -> None:
    """Interim answers move bytes, but there is no end to them."""

    async def script(peer: Peer, asked: Asked) -> None:
        while True:
            await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)

    async with scripted({"object": script}) as endpoint:
        async with fetch_in_process(S3Config("b", endpoint=endpoint, addressing="path"), SECRET) as link:
            with pytest.raises(SmpError, match="nothing else"), anyio.fail_after(60):
                await link.read("object", PIN, 0, 1000)
