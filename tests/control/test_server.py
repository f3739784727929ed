"""The control server over its real socket."""

import contextlib
import os
import random
import socket
import stat

import anyio
import anyio.lowlevel
import pytest
from lingering import lingering
from whole import VIEWERS, whole

from smp_proto import control as c
from smp_proto.aio import Channel, close_all, decode, encode
from smp_proto.errors import DaemonError, DeniedError, NotFoundError, SmpError
from smp_proto.wire import BODY_MAX_BYTES, PROTOCOL_MAX, PROTOCOL_MIN, FrameType, encode_frame
from smpd.config import Control
from smpd.control.server import ControlServer

ANYTHING = dict


def fds_open() -> int:
    return len(os.listdir("/proc/self/fd"))


async def gone(channel) -> None:
    """Read until the daemon hangs up."""
    with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            await channel.receive()


async def test_every_request_reaches_its_handler(serving, samples):
    """Each request type is decoded and answered by its own handler, with the actor."""
    async with serving() as daemon, daemon.client() as client:
        for kind, request in samples.items():
            answer = await client.call(request, ANYTHING)
            assert answer["op"] == kind.__struct_config__.tag
            assert answer["role"] == "admin"
            assert f"({os.geteuid()})" in answer["label"]


async def test_hello_tells_range_boot_and_role(serving):
    """HELLO carries the daemon's protocol range, version, boot id and the role granted."""
    async with serving() as daemon:
        channel, hello = await daemon.hello()
        assert c.Hello(PROTOCOL_MIN, PROTOCOL_MAX, "0", "b", "admin") == hello
        channel.close()


@pytest.mark.parametrize(
    ("low", "high", "who"), [(PROTOCOL_MAX + 1, PROTOCOL_MAX + 3, "smpd"), (-1, PROTOCOL_MIN - 1, "the client")]
)
async def test_no_version_in_common(serving, low, high, who):
    """Without a version in common, either way, HELLO says which side to upgrade and the connection ends."""
    async with serving() as daemon:
        channel, hello = await daemon.hello(low, high)
        assert hello.error.code == "protocol_version"
        assert hello.error.hint == f"upgrade {who}"
        await gone(channel)
        channel.close()


async def test_a_range_that_overlaps_is_served(serving):
    """A newer client that still speaks our version is served."""
    async with serving() as daemon:
        channel, hello = await daemon.hello(0, PROTOCOL_MAX + 5)
        assert hello.error is None
        channel.close()


async def test_missing_handler_is_refused_at_start():
    """A server with a request that nobody answers does not start."""
    with pytest.raises(ValueError, match="BoxKey"):
        ControlServer([], {}, Control(), version="0", boot_id="b")


async def test_unknown_request_leaves_the_connection_usable(serving):
    """A request of a newer client is refused with `protocol`; the next one is answered."""
    async with serving() as daemon, daemon.client() as client:
        for body in ({"op": "time-travel"}, {"op": "job"}, {"op": "job", "id": 5}, [], None, {"op": ["status"]}):
            with pytest.raises(DaemonError) as caught:
                await client.call(body, ANYTHING)
            assert caught.value.code == "protocol"
        assert (await client.call(c.StatusRequest(), ANYTHING))["op"] == "status"


@pytest.mark.parametrize("field", ["op", "id"])
async def test_a_request_that_is_quoted_back_fits_its_answer(serving, field):
    """A megabyte in what an error names is cut, and is no fault of the daemon's."""

    async def missing(_actor, request, _exchange):
        raise NotFoundError("no_such_job", f"there is no job {request.id}", details={"id": request.id})

    async with serving({c.JobRequest: missing}) as daemon, daemon.client() as client:
        with pytest.raises(SmpError) as caught:
            await client.call({"op": "job", "id": "j", field: "x" * (BODY_MAX_BYTES - 100)}, ANYTHING)
        assert caught.value.code == {"op": "protocol", "id": "no_such_job"}[field]
        assert len(caught.value.message) < 10_000
        assert (await client.call(c.StatusRequest(), ANYTHING))["op"] == "status"


@pytest.mark.parametrize("groups", [[], [VIEWERS]])
async def test_descriptors_of_who_has_no_use_for_them(tmp_path, monkeypatch, groups):
    """They never come to be the daemon's: to close one could wait for ever, for a file system of the caller's own."""
    closed: list[int] = []

    def close(fds: list[int]) -> None:
        closed.extend(fd for fd in fds if stat.S_ISREG(os.fstat(fd).st_mode))
        close_all(fds)

    monkeypatch.setattr("smpd.host.handed.close_all", close)
    async with whole(tmp_path) as box, box.client(0) as other:
        channel = Channel(box.socket(5001, groups))
        with open(tmp_path / "file", "wb") as file:
            fds = [file.fileno()]
            await channel.send(FrameType.HELLO, 0, encode(c.Hello(1, 1, "t")), [] if groups else fds)
            if groups:
                await channel.receive()
                await channel.send(FrameType.REQUEST, 1, encode(c.StatusRequest()), fds)
            with anyio.fail_after(60):
                await gone(channel)
        channel.close()
        assert not closed
        assert (await other.call(c.JobsRequest(), c.Jobs)).jobs == []


@pytest.mark.parametrize("turned_away", [False, True])
async def test_what_a_stranger_hands_over_is_not_waited_for(serving, turned_away):
    """Before HELLO already, and of who is one connection too many: others are served meanwhile."""
    config = Control(connections_user_max=1) if turned_away else Control()
    async with serving(config=config) as daemon:
        first = await daemon.connect()
        if turned_away:
            await first.send(FrameType.HELLO, 0, encode(c.Hello(PROTOCOL_MIN, PROTOCOL_MAX, "test")))
            await first.receive()
        with lingering() as sock:
            channel = await daemon.connect()
            socket.send_fds(channel.socket, [b"\0"], [sock.fileno()])
            sock.close()
            with anyio.fail_after(60):
                await gone(channel)
            channel.close()
        first.close()


async def test_descriptors_with_a_request_are_refused_and_closed(serving):
    """No request carries descriptors: they are closed and the request refused."""
    async with serving() as daemon, daemon.client() as client:
        before = fds_open()
        with pytest.raises(DaemonError, match="descriptors"):
            await client.call(c.StatusRequest(), ANYTHING, fds=[0, 1, 2])
        with anyio.fail_after(60):
            while fds_open() != before:  # in a thread, some time
                await anyio.lowlevel.checkpoint()


async def test_errors_arrive_as_they_were_raised(serving):
    """A handler's error arrives with code, hint and family; a fault in a handler arrives without its text."""

    async def missing(_actor, _request, _exchange):
        raise NotFoundError("no_such_job", "no job j", hint="run: smpctl jobs")

    async def broken(_actor, _request, _exchange):
        raise KeyError("patient.dcm")

    async with serving({c.JobRequest: missing, c.JobsRequest: broken}) as daemon, daemon.client() as client:
        with pytest.raises(NotFoundError, match="no job j") as caught:
            await client.call(c.JobRequest("j"), ANYTHING)
        assert caught.value.hint == "run: smpctl jobs"
        with pytest.raises(SmpError) as fault:
            await client.call(c.JobsRequest(), ANYTHING)
        assert fault.value.code == "internal"
        assert "patient" not in fault.value.message + fault.value.hint


async def test_a_connection_that_closes_cancels_only_its_own_requests(serving):
    """The peer of a closed connection is cancelled; the same request on another connection goes on."""
    started, cancelled, release = anyio.Semaphore(0), anyio.Event(), anyio.Event()

    async def wait(_actor, _request, _exchange):
        started.release()
        try:
            await release.wait()
        except BaseException:
            cancelled.set()
            raise
        return {"done": True}

    answers = []

    async def ask(client) -> None:
        answers.append(await client.call(c.DoctorRequest(), ANYTHING))

    async with serving({c.DoctorRequest: wait}) as daemon, daemon.client() as stays, anyio.create_task_group() as group:
        group.start_soon(ask, stays)
        await started.acquire()
        channel, _ = await daemon.hello()
        await channel.send(FrameType.REQUEST, 1, encode(c.DoctorRequest()))
        await started.acquire()
        channel.close()
        await cancelled.wait()
        release.set()
    assert answers == [{"done": True}]


async def test_first_frame_has_a_deadline(serving):
    """A connection that says nothing is closed, and so is one that says half a HELLO."""
    async with serving(hello_s=0.05) as daemon:
        silent = await daemon.connect()
        half = await daemon.connect()
        half.socket.send(encode_frame(FrameType.HELLO, 0, encode(c.Hello(1, 1, "t")))[:-1])
        await gone(silent)
        await gone(half)
        silent.close()
        half.close()


async def test_idle_connection_after_hello_has_no_deadline(serving):
    """After HELLO a connection may be idle: the HELLO deadline does not reach it."""
    async with serving(hello_s=0.05) as daemon, daemon.client() as client:
        silent = await daemon.connect()
        await gone(silent)  # a later connection's deadline has passed
        silent.close()
        assert (await client.call(c.StatusRequest(), ANYTHING))["op"] == "status"


async def test_too_many_connections(serving):
    """Over the limit a connection is told `busy` at once; when another ends there is room again."""
    config = Control(connections_max=3, connections_user_max=2)
    async with serving(config=config) as daemon:
        first, _ = await daemon.hello()
        second, _ = await daemon.hello()
        third = await daemon.connect()
        frame, _ = await third.receive()
        assert decode(frame.body, c.Hello).error.code == "busy"
        await gone(third)
        third.close()
        first.close()
        while daemon.server.connections > 1:
            await anyio.lowlevel.checkpoint()
        fourth, hello = await daemon.hello()
        assert hello.error is None
        for channel in (second, fourth):
            channel.close()


async def test_too_many_requests_on_one_connection(serving):
    """More open requests than allowed end that connection, and no other."""

    async def for_ever(_actor, _request, _exchange):
        await anyio.sleep_forever()

    config = Control(requests_max=4)
    async with serving({c.DoctorRequest: for_ever}, config=config) as daemon, daemon.client() as other:
        channel, _ = await daemon.hello()
        for stream in range(1, 6):
            await channel.send(FrameType.REQUEST, stream, encode(c.DoctorRequest()))
        await gone(channel)
        channel.close()
        assert (await other.call(c.StatusRequest(), ANYTHING))["op"] == "status"


async def test_a_peer_that_never_reads_is_dropped(serving):
    """Replies that nobody takes: the connection is dropped after the stall, its tasks end, others are served."""
    finished = anyio.Event()

    async def flood(_actor, _request, exchange):
        try:
            while True:
                await exchange.send(b"x" * 65_536)
        finally:
            finished.set()

    config = Control(stall_s=0.05)
    async with serving({c.Watch: flood}, config=config) as daemon, daemon.client() as other:
        channel, _ = await daemon.hello()
        await channel.send(FrameType.REQUEST, 1, encode(c.Watch()))
        assert (await other.call(c.StatusRequest(), ANYTHING))["op"] == "status"
        await finished.wait()
        while daemon.server.connections > 1:
            await anyio.lowlevel.checkpoint()
        channel.close()


async def test_a_peer_that_asks_and_never_reads_cannot_pile_up_replies(serving):
    """Requests answered but not yet sent count as open, so there are never more than `requests_max` of them."""
    answered = 0

    async def big(_actor, _request, _exchange):
        nonlocal answered
        answered += 1
        return b"x" * 500_000

    config = Control(requests_max=8, stall_s=0.3)
    async with serving({c.JobsRequest: big}, config=config) as daemon:
        channel, _ = await daemon.hello()
        with contextlib.suppress(anyio.BrokenResourceError):
            for stream in range(1, 2000):
                await channel.send(FrameType.REQUEST, stream, encode(c.JobsRequest()))
        assert answered <= 16
        channel.close()


async def test_garbage_never_hangs_the_server(serving):
    """Random frames end their own connection at most; memory of descriptors stays flat and others are served."""
    rng = random.Random(7)
    async with serving() as daemon, daemon.client() as other:
        before = fds_open()
        for round_ in range(150):
            greet = round_ % 2
            channel = (await daemon.hello())[0] if greet else await daemon.connect()
            channel.socket.setblocking(True)
            for _ in range(20):
                kind, size = rng.randrange(8), rng.choice([0, 1, 9, 60])
                header = [
                    size.to_bytes(4, "big"),
                    rng.randrange(3).to_bytes(4, "big"),
                    bytes([kind, rng.choice([0, 0, 1])]),
                ]
                try:
                    channel.socket.send(b"".join(header) + rng.randbytes(size), socket.MSG_DONTWAIT)
                except OSError:
                    break
            channel.close()
        while daemon.server.connections > 1:
            await anyio.lowlevel.checkpoint()
        assert fds_open() == before
        assert (await other.call(c.StatusRequest(), ANYTHING))["op"] == "status"


async def test_no_role_is_told_which_group_to_join(serving, monkeypatch):
    """A caller without a role gets `forbidden` in HELLO, naming the group, and is hung up on."""
    monkeypatch.setattr("smpd.control.actor.RoleGroups.role_of", lambda *_: None)
    async with serving() as daemon:
        channel, hello = await daemon.hello()
        assert hello.error.code == "forbidden"
        assert "group smpd," in hello.error.hint
        await gone(channel)
        channel.close()
        with pytest.raises(DeniedError):
            async with daemon.client():
                pass
