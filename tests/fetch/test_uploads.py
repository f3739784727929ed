"""Bodies that we send: early and wrong answers, servers that stall or want a hash, connections that went stale."""

import hashlib
import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from counting_s3 import counting_s3
from fetch_link import Link, fetch_in_process, fetch_process
from scripted_http import Asked, Peer, Script, refusal, scripted
from servers import Served, make_certificate

from smp_proto.control import LocalConfig, ObjectInfo, S3Config, S3Secret
from smp_proto.errors import SmpError
from smpd.fetch import pausing, upload
from smpd.fetch.connection import Body, Connection
from smpd.fetch.exchange import Exchange
from smpd.fetch.http import Origin, Pool
from smpd.links.fetching import Deadlines, Noted, Progress, Write

MIB = 1 << 20
SECRET = S3Secret("key", "secret")
BODY = hashlib.shake_256(b"body").digest(3 * MIB)
OK = b'HTTP/1.1 200 OK\r\nETag: "0f"\r\nContent-Length: 0\r\n\r\n'


async def take(peer: Peer, asked: Asked) -> bytes:
    if "100-continue" in asked.head:  # the client's way
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    return await peer.reader.readexactly(asked.length)


def stores(kept: list[bytes], refuse: Callable[[Asked], Script | None] = lambda asked: None) -> Script:
    """Keeps bodies, and tells HEAD of the last one's size; unless ``refuse`` says what to answer instead."""

    async def script(peer: Peer, asked: Asked) -> bool:
        if asked.method == "HEAD":
            await peer.send(b'HTTP/1.1 200 OK\r\nETag: "0f"\r\nContent-Length: %d\r\n\r\n' % len(kept[-1]))
            return True
        body = await take(peer, asked)
        if other := refuse(asked):
            return bool(await other(peer, asked))
        kept.append(body)
        await peer.send(OK)
        return True

    return script


def is_signed(asked: Asked) -> bool:
    return "unsigned-payload" not in asked.head.lower()


def config_of(endpoint: str, ca_pem: str = "") -> S3Config:
    return S3Config("b", endpoint=endpoint, addressing="path", ca_pem=ca_pem)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_body_arrives_whole_and_is_not_hashed(scheme: str, tmp_path: Path) -> None:
    """One request, the length announced, UNSIGNED-PAYLOAD under the signature; the connection is used again."""
    context, ca_pem = None, ""
    if scheme == "https":
        cert, key = make_certificate(tmp_path)
        context, ca_pem = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), cert.read_text()
        context.load_cert_chain(cert, key)
    kept: list[bytes] = []
    seen: list[tuple[bool, int]] = []

    def note(asked: Asked) -> None:
        seen.append((is_signed(asked), asked.earlier))

    async with scripted({"x": stores(kept, note)}, context) as endpoint:
        async with fetch_process(config_of(endpoint, ca_pem), SECRET, connections=1) as link:
            for size in (len(BODY), 1, 0, len(BODY)):
                info = await link.write("x", BODY[:size])
                assert (info.size, link.progress) == (size, [size])
                assert kept.pop() == BODY[:size]
                kept.clear()
    assert seen == [(False, 2 * number) for number in range(4)]  # a HEAD in between


async def test_a_server_that_wants_the_hash_gets_it() -> None:
    """Over plain HTTP, what is refused without a hash is sent again with one, and from then on at once."""
    for status in ("400 Bad Request", "403 Forbidden", "501 Not Implemented"):
        kept: list[bytes] = []
        seen: list[bool] = []

        def unless_signed(asked: Asked, status: str = status, seen: list[bool] = seen) -> Script | None:
            seen.append(is_signed(asked))
            return None if seen[-1] else refusal(status, "XAmzContentSHA256Mismatch")

        async with scripted({"x": stores(kept, unless_signed)}) as endpoint:
            async with fetch_in_process(config_of(endpoint), SECRET) as link:
                await link.write("x", BODY)
                await link.write("x", b"again")
        assert kept == [BODY, b"again"]
        assert seen == [False, True, True]


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (refusal("403 Forbidden", "AccessDenied"), "remote_forbidden"),
        (refusal("403 Forbidden", "SignatureDoesNotMatch"), "remote_auth"),
        (refusal("404 Not Found", "NoSuchBucket"), "no_such_bucket"),
        (refusal("503 Slow Down", "SlowDown", "Retry-After: 7\r\n"), "remote_busy"),
        (refusal("500 Oh", "InternalError"), "remote_failed"),
        (refusal("200 OK"), "remote_failed"),  # no ETag
        (refusal("204 No Content", more='ETag: "0f"\r\n'), "remote_failed"),
    ],
)
async def test_a_refused_body_is_its_error(script: Script, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each refusal is told as it is for reads."""
    monkeypatch.setattr(pausing, "PATIENCE_S", 0.0)
    async with scripted({"x": stores([], lambda _: script)}) as endpoint:
        async with fetch_in_process(config_of(endpoint), SECRET) as link:
            with pytest.raises(SmpError) as caught:
                await link.write("x", BODY)
    assert caught.value.code == code


async def test_an_early_refusal_ends_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers before it has read the body is heard, and its connection not used again."""
    monkeypatch.setattr(pausing, "PATIENCE_S", 0.0)
    answers: list[int] = []

    async def early(peer: Peer, asked: Asked) -> None:
        answers.append(asked.earlier)
        await refusal("503 Slow Down", "SlowDown")(peer, asked)
        await peer.gone()

    async with scripted({"x": early}) as endpoint:
        async with fetch_in_process(config_of(endpoint), SECRET, connections=1) as link:
            for _ in range(2):
                with pytest.raises(SmpError) as caught:
                    await link.write("x", BODY * 2)
                assert caught.value.code == "remote_busy"
    assert answers == [0, 0]


@pytest.mark.parametrize("reads", [True, False], ids=["silent", "blocked"])
async def test_a_stalled_upload_is_given_up(reads: bool) -> None:
    """A server that never answers, and one that stops reading, are unreachable."""

    async def stall(peer: Peer, asked: Asked) -> None:
        if reads:
            await peer.gone()
        else:
            peer.writer.transport.pause_reading()
            await released.wait()

    released = anyio.Event()
    async with scripted({"x": stall}) as endpoint:
        deadlines = Deadlines(connect_s=0.1, stall_s=0.2, answer_s=0.3)
        async with fetch_in_process(config_of(endpoint), SECRET, deadlines=deadlines) as link:
            with pytest.raises(SmpError) as caught:
                # Of the silent one little, as it is given the time that a slow line would take.
                await link.write("x", b"1" if reads else BODY * 2)
            released.set()
    assert (caught.value.code, caught.value.retryable) == ("remote_unreachable", True)


async def test_a_connection_that_went_stale_is_replaced() -> None:
    """A kept-alive connection that the server closes when the next body comes costs nothing but a new one."""
    kept: list[bytes] = []
    keeps = stores(kept)

    async def forgetful(peer: Peer, asked: Asked) -> bool:
        return not asked.earlier and bool(await keeps(peer, asked))

    async with scripted({"x": forgetful}) as endpoint:
        async with fetch_in_process(config_of(endpoint), SECRET) as link:
            for _ in range(3):
                await link.write("x", BODY)
    assert kept == [BODY] * 3


async def test_a_cancelled_body_closes_its_connection() -> None:
    """Cancelling in the middle of a body does not leave half of it on a connection that is used again."""
    begun, closed = anyio.Event(), anyio.Event()

    async def hang(peer: Peer, asked: Asked) -> None:
        await peer.reader.readexactly(1)
        begun.set()
        await peer.gone()
        closed.set()

    async with scripted({"x": hang}) as endpoint:
        async with fetch_process(config_of(endpoint), SECRET, connections=1) as link:
            with anyio.fail_after(20):
                async with anyio.create_task_group() as group:
                    group.start_soon(link.write, "x", BODY)
                    await begun.wait()
                    group.cancel_scope.cancel()
                await closed.wait()


async def test_a_cancelled_body_that_nobody_reads_is_not_sent_on() -> None:
    """The thread that sends a file ends with its request, although the server takes nothing."""
    begun, cancelled, closed = anyio.Event(), anyio.Event(), anyio.Event()
    came: list[int] = []

    async def block(peer: Peer, asked: Asked) -> None:
        # Together with what the sender's side holds (tcp_wmem) this is less than the body.
        peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        peer.writer.transport.pause_reading()
        begun.set()
        await cancelled.wait()
        peer.writer.transport.resume_reading()
        while part := await peer.reader.read(1 << 20):
            came.append(len(part))
        closed.set()

    body = BODY * 2
    async with scripted({"x": block}) as endpoint:
        async with fetch_in_process(config_of(endpoint), SECRET, connections=1) as link:
            with anyio.fail_after(20):
                async with anyio.create_task_group() as group:
                    group.start_soon(link.write, "x", body)
                    await begun.wait()
                    group.cancel_scope.cancel()
                cancelled.set()
                await closed.wait()
    assert sum(came) < len(body)


async def test_independent_servers_take_bodies_without_a_hash(
    rclone: Served, moto: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rclone and moto, over plain HTTP, need no hash: the client's way is not taken."""
    from smpd.fetch import upload

    async def never(*_: object) -> bytes:
        raise AssertionError("the body was read for the client")

    for server in (rclone, moto):
        async with fetch_in_process(server.config, server.secret) as link:
            with monkeypatch.context() as patch:
                patch.setattr(upload.Uploader, "_put_by_client", never)
                info = await link.write("unhashed", BODY * 3)
            assert await link.read("unhashed", info.pin, 5 * MIB, MIB) == (BODY * 3)[5 * MIB : 6 * MIB]
            await link.delete("unhashed")


async def test_who_goes_as_the_answer_comes_leaves_no_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Cancelled while the whole answer is there, and what sent the body is not done: the connection is closed."""
    scope = anyio.CancelScope()
    send = Connection._send_by_kernel

    async def send_and_go(self: Connection, exchange: Exchange, body: Body) -> bool:
        await send(self, exchange, body)
        while not exchange.done:
            await anyio.lowlevel.checkpoint()
        scope.cancel()
        await anyio.sleep_forever()
        raise AssertionError

    kept: list[bytes] = []
    path = tmp_path / "body"
    path.write_bytes(BODY)
    async with scripted({"x": stores(kept)}) as endpoint:
        origin = Origin.of(endpoint)
        pool = Pool(origin, ssl.create_default_context, 2, Deadlines())
        head = f"PUT /x HTTP/1.1\r\nhost: {origin}\r\ncontent-length: {len(BODY)}\r\n\r\n".encode()
        with path.open("rb") as file:
            body = Body(file.fileno(), 0, len(BODY))
            assert (await pool.ask("PUT", head, body)).status == 200
            (connection,) = pool._idle
            monkeypatch.setattr(Connection, "_send_by_kernel", send_and_go)
            with scope:
                await pool.ask("PUT", head, body)
        assert scope.cancelled_caught
        assert (connection.open, pool._idle, kept) == (False, [], [BODY, BODY])


async def test_a_request_that_cannot_be_signed_keeps_no_connection() -> None:
    """The credentials of a profile may be gone, or take long, when a request is to be sent: its connection is free."""

    async def nothing() -> bytes:
        raise LookupError("no credentials")

    async def forever() -> bytes:
        scope.cancel()
        await anyio.sleep_forever()
        raise AssertionError

    async with scripted({"x": stores([])}) as endpoint:
        pool = Pool(Origin.of(endpoint), ssl.create_default_context, 2, Deadlines())
        for _ in range(3):
            with pytest.raises(LookupError):
                await pool.ask("PUT", nothing)
            assert len(pool._idle) == 1
        with anyio.CancelScope() as scope:
            await pool.ask("PUT", forever)
        assert len(pool._idle) == 1
        await pool.aclose()


async def test_a_connection_that_is_closed_while_its_request_is_signed_is_not_waited_for() -> None:
    """It is as any that was closed while nobody used it: the request goes over another."""
    kept: list[bytes] = []
    store = stores(kept)

    signing = anyio.Event()

    async def once(peer: Peer, asked: Asked) -> bool:
        await store(peer, asked)
        await signing.wait()
        return False

    async with scripted({"x": once}) as endpoint:
        origin = Origin.of(endpoint)
        pool = Pool(origin, ssl.create_default_context, 2, Deadlines(stall_s=1.0))
        whole = f"PUT /x HTTP/1.1\r\nhost: {origin}\r\ncontent-length: 0\r\n\r\n".encode()

        async def slowly() -> bytes:
            signing.set()
            while connection.open:
                await anyio.lowlevel.checkpoint()
            return whole

        assert (await pool.ask("PUT", whole)).status == 200
        (connection,) = pool._idle
        assert connection.open
        assert (await pool.ask("PUT", slowly)).status == 200
        assert len(kept) == 2


@pytest.mark.parametrize("paced", [False, True])
@pytest.mark.parametrize("size", [2 * upload.PART_BYTES, 1000])
async def test_an_upload_that_takes_long_is_told_of(size: int, paced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While no part is done, or all that it consists of, its progress is told again and again: nobody is to take it for one that hangs."""
    monkeypatch.setattr(upload, "TOLD_S", 0.001)
    go, told = threading.Event(), list[int]()

    def hold(method: str, key: str, query: dict[str, list[str]]) -> None:
        if method == "PUT":
            assert go.wait(60.0)

    with counting_s3() as (store, served), tempfile.TemporaryFile() as file:
        store.before = hold
        file.truncate(size)
        async with fetch_in_process(served.config, served.secret) as link:
            request = Write("x", size, paced=paced)
            with anyio.fail_after(60.0):
                async with link.caller.open(request, [file.fileno()]) as exchange:
                    async for step in exchange.messages(Progress):
                        told.append(step.done)
                        if told == [0] * 5:
                            go.set()
                        if paced and step.done < size:
                            await exchange.send(Noted())
        assert (told[:5], told[-1]) == ([0] * 5, size)
        assert len(store.objects["x"]) == size


async def write_over(link: Link, pin: str, size: int, path: str = "x") -> None:
    """Write in place of that version, or of nothing."""
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        async with link.caller.open(Write(path, size, replaces=pin), [file.fileno()]) as exchange:
            async for _ in exchange.messages(Progress):
                pass
            await exchange.result(ObjectInfo)


@pytest.mark.parametrize("there", [False, True])
async def test_an_upload_that_the_server_let_go_of_may_be_tried_again(there: bool) -> None:
    """A rule of the bucket, or who cleared up, aborted it: that is not an object that is missing, or has changed."""
    with counting_s3() as (store, served):
        if there:
            store.store("x", b"older")

        def before(method: str, key: str, query: dict[str, list[str]]) -> None:
            if method == "PUT":
                store.uploads.clear()

        store.before = before
        async with fetch_in_process(served.config, served.secret) as link:
            pin = (await link.stat("x")).pin if there else ""
            with pytest.raises(SmpError, match="let go of") as caught:
                await write_over(link, pin, 9 * MIB)
            assert (caught.value.code, caught.value.retryable) == ("remote_failed", True)


async def test_an_object_that_went_and_came_again_is_not_replaced() -> None:
    """What was to be replaced is deleted, and somebody else's is there when that is found out: it is the target's."""

    async def script(peer: Peer, asked: Asked) -> bool:
        await take(peer, asked)
        gone = "if-match" in asked.head.lower()
        other = (
            refusal("404 Not Found", "NoSuchKey") if gone else refusal("412 Precondition Failed", "PreconditionFailed")
        )
        return bool(await other(peer, asked))

    async with scripted({"x": script}) as endpoint:
        async with fetch_in_process(config_of(endpoint), SECRET) as link:
            with pytest.raises(SmpError) as caught:
                await write_over(link, "etag:10:0f", 10)
            assert caught.value.code == "target_changed"


@pytest.mark.parametrize("remote", ["openssh", "local"])
async def test_a_folder_at_the_target_is_no_object_of_somebody_else(
    remote: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """It did not appear meanwhile, and neither sending it again nor resuming the job helps: what is there is told."""
    server = Served(LocalConfig(str(tmp_path)), None, tmp_path)
    if remote != "local":
        server = request.getfixturevalue(remote)
    assert server.path is not None
    place = server.path / "in-the-way"
    (place / "folder").mkdir(parents=True)
    (place / "link").symlink_to("nowhere")
    async with fetch_in_process(server.config, server.secret) as link:
        for path in ("in-the-way/folder", "in-the-way/link"):
            with pytest.raises(SmpError, match="is no file") as caught:
                await write_over(link, "", 10, path)
            assert (caught.value.code, caught.value.retryable) == ("remote_failed", False)
    assert sorted(os.listdir(place)) == ["folder", "link"]


async def test_a_server_that_lost_its_patience_still_knows_conditions() -> None:
    """A body that came too slowly is a 400, too: nothing is sent without its condition for that."""
    asked: list[str] = []

    async def script(peer: Peer, each: Asked) -> bool:
        await take(peer, each)
        asked.append(each.head.lower())
        return bool(await refusal("400 Bad Request", "RequestTimeout")(peer, each))

    async with scripted({"x": script}) as endpoint:
        async with fetch_in_process(config_of(endpoint), SECRET) as link:
            with pytest.raises(SmpError):
                await write_over(link, "", 10)
    assert all("if-none-match: *" in head for head in asked)


async def test_what_has_a_connection_of_its_own_leaves_no_further_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload in parts has two, to be begun and to be completed: there are never more than there may be."""
    monkeypatch.setattr(upload, "PART_BYTES", MIB)
    idle: list[int] = []
    give = Pool._give

    def given(pool: Pool, connection: Connection) -> None:
        give(pool, connection)
        idle.append(len(pool._idle))

    monkeypatch.setattr(Pool, "_give", given)
    with counting_s3() as (_, served):
        async with fetch_in_process(served.config, served.secret, connections=2) as link:
            for _ in range(4):
                await link.write("x", BODY)
    assert max(idle) == 2
