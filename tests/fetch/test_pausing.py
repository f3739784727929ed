"""Parts of uploads and pages of listings are done again where a fault may pass, and wait when the server asks for it."""

import hashlib
import re
import tempfile
import time
from urllib.parse import parse_qs, urlsplit

import anyio
import pytest
from fetch_link import Link, fetch_in_process
from scripted_http import Asked, Peer, refusal, scripted

from smp_proto.control import S3Config, S3Secret
from smp_proto.errors import RemoteError, SmpError
from smpd.fetch import pausing, upload
from smpd.links import fetching

SECRET = S3Secret("key", "secret")
PART = 1 << 20
BODY = hashlib.shake_256(b"parts").digest(4 * PART - 5)


class Store:
    """Takes multipart uploads and lists; ``faults`` says what happens to the n-th request of a kind in its place."""

    def __init__(self, faults: dict[tuple[str, int], str]) -> None:
        self.faults = faults
        self.asked: list[tuple[str, float]] = []
        self.parts: dict[int, bytes] = {}
        self.whole = b""

    async def __call__(self, peer: Peer, asked: Asked) -> bool:
        query = parse_qs(urlsplit(asked.head.split(" ")[1]).query, keep_blank_values=True)
        kind = self.kind(asked.method, query)
        body = await peer.reader.readexactly(asked.length)
        self.asked.append((kind, time.monotonic()))
        fault = self.faults.get((kind, sum(each == kind for each, _ in self.asked)))
        if fault == "reset":
            peer.writer.transport.abort()
            return False
        if fault:
            status, code, *more = fault.split("|")
            return bool(await refusal(status, code, "".join(f"{line}\r\n" for line in more))(peer, asked))
        await self.answer(peer, kind, query, body)
        return True

    @staticmethod
    def kind(method: str, query: dict[str, list[str]]) -> str:
        if method == "POST":
            return "create" if "uploads" in query else "complete"
        return {"PUT": "part", "HEAD": "head", "DELETE": "abort", "GET": "page"}[method]

    async def answer(self, peer: Peer, kind: str, query: dict[str, list[str]], body: bytes) -> None:
        head, text = "", ""
        if kind == "part":
            self.parts[int(query["partNumber"][0])] = body
            head = f'ETag: "{hashlib.md5(body).hexdigest()}"\r\n'
        elif kind == "create":
            text = "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
        elif kind == "complete":
            numbers = [int(each) for each in re.findall(rb"<PartNumber>(\d+)<", body)]
            self.whole = b"".join(self.parts[number] for number in numbers)
            text = '<CompleteMultipartUploadResult><ETag>"e"</ETag></CompleteMultipartUploadResult>'
        elif kind == "head":
            await peer.send(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: %d\r\n\r\n' % len(self.whole))
            return
        elif kind == "page":
            token = query.get("continuation-token", ["0"])[0]
            more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{int(token) + 1}</NextContinuationToken>"
            text = f'<ListBucketResult><Contents><Key>o{token}</Key><Size>1</Size><ETag>"e"</ETag></Contents>'
            text += (more if int(token) < 3 else "<IsTruncated>false</IsTruncated>") + "</ListBucketResult>"
        await peer.send(f"HTTP/1.1 200 OK\r\n{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PART_BYTES", PART)


async def run(store: Store, connections: int = 2) -> tuple[Link, list[str]]:
    """Upload and list; returns the names."""
    async with scripted({"x": store, "b": store}) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path")
        async with fetch_in_process(config, SECRET, connections=connections) as link:
            assert (await link.write("x", BODY)).size == len(BODY)
            return link, [info.path for info in await link.list()]


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (kind, fault)
        for kind in ("create", "part", "complete", "page")
        for fault in ("503 Slow Down|SlowDown", "429 Too Many|", "500 Oh|InternalError", "reset")
        if kind != "create" or fault[0] == "4" or "Slow" in fault
    ],
)
async def test_one_fault_costs_one_step(kind: str, fault: str) -> None:
    """Only what failed is done again; the others count once, and what arrives is whole."""
    store = Store({(kind, 1 if kind in ("create", "complete") else 2): fault})
    _, names = await run(store)
    counts = {each: sum(one == each for one, _ in store.asked) for each, _ in store.asked}
    expected = {"create": 1, "part": 4, "complete": 1, "head": 1, "page": 4}
    assert counts == expected | {kind: expected[kind] + 1}
    assert store.whole == BODY
    assert names == ["o0", "o1", "o2", "o3"]


@pytest.mark.parametrize("fault", ["500 Oh|InternalError", "reset"])
async def test_an_upload_that_may_have_been_begun_is_not_begun_again(fault: str) -> None:
    """The server may have made one that nobody was told of: whoever asked clears that away, and then asks again."""
    store = Store({("create", 1): fault})
    async with scripted({"x": store}) as endpoint:
        async with fetch_in_process(S3Config("b", endpoint=endpoint, addressing="path"), SECRET) as link:
            with pytest.raises(RemoteError) as caught:
                await link.write("x", BODY)
    assert caught.value.retryable
    assert [kind for kind, _ in store.asked] == ["create"]


async def test_a_part_that_is_refused_holds_the_others() -> None:
    """Retry-After of one part holds every further one, and smpd is told."""
    store = Store({("part", 2): "503 Slow Down|SlowDown|Retry-After: 1"})
    link, _ = await run(store, connections=1)
    times = [when for kind, when in store.asked if kind == "part"]
    assert times[2] - times[1] >= 0.95
    assert link.busy == [pytest.approx(1.0, abs=0.1)]


async def test_who_goes_while_the_server_has_no_room_is_let_go() -> None:
    """Also before an upload has begun: else smpd takes the process for one that hangs, and ends it."""
    store = Store({("create", 1): "503 Slow Down|SlowDown|Retry-After: 30"})
    async with scripted({"x": store}) as endpoint:
        async with fetch_in_process(S3Config("b", endpoint=endpoint, addressing="path"), SECRET) as link:
            began = time.monotonic()
            with tempfile.TemporaryFile() as file:
                file.truncate(len(BODY))
                async with link.caller.open(fetching.Write("x", len(BODY)), [file.fileno()]) as exchange:
                    assert (await exchange.receive(fetching.Progress))[0].busy_s
                    await exchange.cancel()
            assert time.monotonic() - began < 25  # and not the 30 that the server asked for


async def test_smpd_can_hold_what_is_under_way() -> None:
    """Another process was refused: the parts here wait, too."""
    store = Store({})
    async with scripted({"x": store}) as endpoint:
        async with fetch_in_process(S3Config("b", endpoint=endpoint, addressing="path"), SECRET) as link:
            began = time.monotonic()
            await link.caller.call(fetching.Hold(0.5), type(None), timeout=10)
            await link.write("x", BODY)
            assert store.asked[0][1] - began >= 0.45


async def test_more_patience_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that asks for longer, or goes on refusing, ends the request; smpd waits in its place."""
    monkeypatch.setattr(pausing, "PATIENCE_S", 5.0)
    for fault in ("503 Slow Down|SlowDown|Retry-After: 6", "500 Oh|InternalError"):
        store = Store({("part", number): fault for number in range(1, 99)})
        async with scripted({"x": store}) as endpoint:
            async with fetch_in_process(S3Config("b", endpoint=endpoint, addressing="path"), SECRET) as link:
                with pytest.raises(SmpError) as caught, anyio.fail_after(20):
                    await link.write("x", BODY)
        assert caught.value.code == ("remote_busy" if "503" in fault else "remote_failed")
        assert sum(kind == "abort" for kind, _ in store.asked) == 1  # a part on its way may be noted after it


@pytest.mark.parametrize("circle", [0, 1, 2, 3, 7])
async def test_a_listing_that_goes_round_is_an_error(circle: int) -> None:
    """A server that says there is more and does not say where, or says the same again, has not told all."""
    asked = 0

    async def page(peer: Peer, _: Asked) -> bool:
        nonlocal asked
        asked += 1
        assert asked < 100
        token = f"<NextContinuationToken>t{asked % circle}</NextContinuationToken>" if circle else ""
        text = f"<ListBucketResult><IsTruncated>true</IsTruncated>{token}</ListBucketResult>"
        await peer.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
        return True

    async with scripted({"b": page}) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path")
        async with fetch_in_process(config, SECRET) as link:
            with pytest.raises(RemoteError, match="the end of a listing") as caught:
                await link.list()
    assert not caught.value.retryable
