"""Limits by user: connections, requests a second, lines in the log, and what one connection can make the daemon hold."""

import contextlib
import os
import socket
import threading
import time
from collections import Counter
from unittest.mock import patch

import anyio
import anyio.lowlevel
import pytest
from whole import OPERATORS, VIEWERS, whole

from smp_proto import control as c
from smp_proto.aio import Caller, decode, encode
from smp_proto.channel import CLIENT_UNREAD_BYTES_MAX, Channel
from smp_proto.errors import DaemonError, SmpError
from smp_proto.wire import PROTOCOL_MAX, PROTOCOL_MIN, FrameType, encode_frame
from smpctl import AsyncClient, Client
from smpctl.async_connection import greet
from smpctl.connection import Connection
from smpctl.watching import pause_after
from smpd.config import Control
from smpd.control.actor import Peer
from smpd.control.limits import _BUCKETS_KEPT, _TOPICS_KEPT, Limits, Sparing, is_master
from smpd.transfer.sealing import HandedFile

STRANGER = 70_001


class Clock:
    """Seconds, moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_empties_and_fills():
    """A burst at once, then the rate; another user's bucket is another; root and our own user have none."""
    clock = Clock()
    limits = Limits(Control(requests_per_s=10.0, requests_burst=3), clock)
    for _ in range(3):
        limits.request(5)
    with pytest.raises(DaemonError) as caught:
        limits.request(5)
    assert (caught.value.code, caught.value.retryable) == ("rate_limited", True)
    assert caught.value.details["retry_after"] == pytest.approx(0.1)
    limits.request(6)
    clock.now += 0.1
    limits.request(5)
    with pytest.raises(DaemonError):
        limits.request(5)
    clock.now += 1000
    for _ in range(3):
        limits.request(5)
    with pytest.raises(DaemonError):
        limits.request(5)
    for uid in (0, os.geteuid()):
        assert is_master(uid)
        for _ in range(100):
            limits.request(uid)


def test_buckets_are_forgotten():
    """Users who have not asked for a while take no memory."""
    clock = Clock()
    limits = Limits(Control(requests_per_s=10.0, requests_burst=3), clock)
    for uid in range(1, 5 * _BUCKETS_KEPT):
        clock.now += 1
        limits.request(uid)
    assert len(limits._buckets) <= _BUCKETS_KEPT + 1


def test_others_do_not_lock_root_out():
    """With all connections taken by others root still gets one; its own do not count among those of the others."""
    limits = Limits(Control(connections_max=4, connections_user_max=2))
    for uid in (5, 5, 6, 6):
        limits.connect(uid)
    for uid in (5, 7):
        with pytest.raises(DaemonError) as caught:
            limits.connect(uid)
        assert caught.value.code == "busy"
    limits.connect(0)
    limits.connect(0)
    with pytest.raises(DaemonError):
        limits.connect(0)
    limits.disconnect(6)
    limits.connect(7)
    for uid in (0, 0, 5, 5, 6, 7):
        limits.disconnect(uid)
    assert limits.connections == 0
    assert not limits._open


def test_a_topic_is_quiet_for_a_while():
    """One line, then none for so long, then one that says how many there would have been; topics are few."""
    clock = Clock()
    sparing = Sparing(10.0, clock)
    assert [sparing.hold("a", 1) for _ in range(4)] == [0, None, None, None]
    assert sparing.hold("a", 2) == 0
    clock.now = 10.0
    assert sparing.hold("a", 1) == 3
    for topic in range(3 * _TOPICS_KEPT):
        sparing.hold(topic)
        sparing.hold(topic)
    assert len(sparing._last) + len(sparing._held) <= 2 * _TOPICS_KEPT + 1


async def test_who_asks_too_often_is_told_when(tmp_path):
    """Over the socket: `rate_limited` with `retry_after`, for requests and for connections; others are served."""
    async with whole(tmp_path, control={"requests_per_s": 0.5, "requests_burst": 4}) as box:
        async with box.client(STRANGER, (VIEWERS,)) as caller, box.client(STRANGER + 1, (VIEWERS,)) as other:
            for _ in range(3):  # the connection took one
                await caller.call(c.BoxKey(), c.PublicKey)
            with pytest.raises(DaemonError) as caught:
                await caller.call(c.BoxKey(), c.PublicKey)
            assert caught.value.code == "rate_limited"
            assert 0 < caught.value.details["retry_after"] <= 2
            await other.call(c.BoxKey(), c.PublicKey)
            async with box.client(0) as root:
                for _ in range(20):
                    await root.call(c.BoxKey(), c.PublicKey)
            with pytest.raises(DaemonError) as caught:
                for _ in range(3):
                    async with box.client(STRANGER, (VIEWERS,)):
                        pass
            assert caught.value.code == "rate_limited"


async def test_bodies_of_open_requests_are_counted(serving):
    """Requests that are long in answering do not let a client pile up megabytes: it is dropped at the limit."""
    held: Counter[str] = Counter()

    async def for_ever(_actor, _request, _exchange):
        held["requests"] += 1
        await anyio.sleep_forever()

    async with serving({c.JobRequest: for_ever}) as daemon:
        channel, _ = await daemon.hello()
        body = encode(c.JobRequest("x" * 1_000_000))
        with contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream):
            for stream in range(1, 60):
                await channel.send(FrameType.REQUEST, stream, body)
            while True:
                await channel.receive()
        assert held["requests"] <= CLIENT_UNREAD_BYTES_MAX // 1_000_000
        channel.close()
        while daemon.server.connections:
            await anyio.lowlevel.checkpoint()


async def test_answered_requests_are_counted_no_more(serving):
    """Large requests one after the other are all answered on one connection."""
    async with serving() as daemon, daemon.client() as client:
        for _ in range(3 * CLIENT_UNREAD_BYTES_MAX // 1_000_000):
            assert (await client.call(c.JobRequest("x" * 1_000_000), dict))["op"] == "job"


async def test_complaints_are_few(tmp_path, monkeypatch):
    """A thousand refusals make a few lines in the log."""
    lines: list[str] = []

    class Log:
        def warning(self, event, **_facts):
            lines.append(event)

    monkeypatch.setattr("smpd.control.server._log", Log())
    async with whole(tmp_path) as box:
        async with box.client(STRANGER, (VIEWERS, OPERATORS)) as caller:
            for _ in range(300):
                with pytest.raises(DaemonError):
                    await caller.call({"op": "nothing"}, dict)
    assert lines == ["request refused"]


async def test_turned_away_with_the_reason(tmp_path):
    """HELLO itself carries the error."""
    async with whole(tmp_path, control={"requests_per_s": 0.01, "requests_burst": 1}) as box:
        async with box.client(STRANGER, (VIEWERS,)):
            with box.socket(STRANGER, (VIEWERS,)) as sock:
                data = await anyio.to_thread.run_sync(sock.recv, 1 << 16)
    assert decode(data[10:], c.Hello).error.code == "rate_limited"


async def test_our_own_clients_wait(tmp_path):
    """Both clients ask again after as long as they are told, and give up when there is no time for it."""
    control = {"requests_per_s": 20.0, "requests_burst": 3}
    async with whole(tmp_path, control=control) as box:
        stranger = Peer(STRANGER, 65_000, os.getpid(), frozenset({VIEWERS}))
        with patch("smpd.control.server.peer_of", lambda _: stranger):

            def ask() -> list[str]:
                with Client(box.path) as client:
                    return [client.box_key().key_id for _ in range(6)]

            assert len(await anyio.to_thread.run_sync(ask)) == 6
            async with AsyncClient(box.path) as client:
                for _ in range(6):
                    await client.box_key()
    error = DaemonError("rate_limited", "m", details={"retry_after": 5.0})
    assert pause_after(error, time.monotonic() + 60) == 5.0
    for other, until in ((error, time.monotonic() + 1), (DaemonError("busy", "m", details={"retry_after": 0.1}), 1e12)):
        with pytest.raises(DaemonError):
            pause_after(other, until)


@pytest.mark.parametrize("client", ["blocking", "asynchronous"])
async def test_one_that_was_turned_away_before_it_spoke_learns_why(client, monkeypatch):
    """The daemon may say so and close the connection before the client has said anything."""
    ours, theirs = socket.socketpair()
    why = DaemonError("rate_limited", "ask later", details={"retry_after": 0.5})
    hello = c.Hello(PROTOCOL_MIN, PROTOCOL_MAX, "0", error=why.body())
    with theirs:
        theirs.sendall(encode_frame(FrameType.HELLO, 0, encode(hello)))
    with ours, pytest.raises(DaemonError) as caught:
        if client == "blocking":
            monkeypatch.setattr("smpctl.connection.connect", lambda path: ours)
            Connection("nowhere")
        else:
            await greet(Channel(ours))
    assert caught.value.code == "rate_limited"
    assert caught.value.details == {"retry_after": 0.5}


async def test_files_on_a_disk_that_hangs_hold_up_nobody_else(tmp_path, monkeypatch):
    """However many are handed over: others are answered as ever, and so is who handed them over, once the disk is back."""
    back, hung = threading.Event(), threading.Semaphore(0)
    read = HandedFile.read

    def hang(content: HandedFile) -> memoryview:
        if content._name == "hung":
            hung.release()
            back.wait(60)
        return read(content)

    monkeypatch.setattr(HandedFile, "read", hang)
    (tmp_path / "file").write_bytes(b"x")
    async with whole(tmp_path / "box", compute={"processors": ()}) as box, anyio.create_task_group() as group:
        box.daemon.remotes.add("lake", c.LocalConfig(str(tmp_path)), mode="zero-knowledge")
        spec = c.PutSpec("lake:o.smp", [box.daemon.public.text()])
        operator = (VIEWERS, OPERATORS)
        async with box.client(STRANGER, operator) as anna, box.client(STRANGER + 1, operator) as bert:

            async def put(who: Caller, name: str, key: str) -> None:
                async with who.open(c.Submit(spec, key)) as exchange:
                    with (tmp_path / "file").open("rb") as file:
                        await exchange.send(c.PutFile(name, 1, last=True), [file.fileno()])
                    await exchange.result(c.JobView)

            async def put_hung(number: int) -> None:
                with contextlib.suppress(SmpError):  # nothing was sealed when the daemon ended
                    await put(anna, "hung", f"k{number}")

            try:
                for number in range(50):
                    group.start_soon(put_hung, number)
                for _ in range(8):
                    assert await anyio.to_thread.run_sync(hung.acquire, True, 30, limiter=anyio.CapacityLimiter(1))
                await anyio.wait_all_tasks_blocked()
                with anyio.fail_after(20):
                    await put(bert, "file", "k")
            finally:
                back.set()


async def test_watches_of_one_user(tmp_path):
    """On all connections together; one more is told why, and there is room again once one ends. Others, and root, watch."""
    async with whole(tmp_path, control={"watches_user_max": 3}) as box, contextlib.AsyncExitStack() as stack:
        box.daemon.box.journal.add(c.GetSpec("r:x"), owner="root(0)", key="k")

        async def client(uid):
            return await stack.enter_async_context(box.client(uid, [VIEWERS]))

        async def watch(caller, on):
            exchange = await on.enter_async_context(caller.open(c.Watch()))
            return (await exchange.receive(c.Event))[0].kind

        first, second = await client(STRANGER), await client(STRANGER)
        async with contextlib.AsyncExitStack() as short:
            assert await watch(first, short) == "snapshot"
            for _ in range(2):
                assert await watch(second, stack) == "snapshot"
            for caller in (first, second):
                with pytest.raises(DaemonError, match="has 3 watches open") as caught:
                    await watch(caller, stack)
                assert (caught.value.code, caught.value.retryable) == ("busy", True)
            await first.call(c.StatusRequest(), c.Status)
            other, root = await client(STRANGER + 1), await client(0)
            for _ in range(3):
                assert await watch(other, stack) == "snapshot"
            for _ in range(5):
                assert await watch(root, stack) == "snapshot"
        await first.call(c.StatusRequest(), c.Status)  # its CANCEL was read before
        assert await watch(first, stack) == "snapshot"
