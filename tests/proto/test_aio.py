"""The anyio driver over real socket pairs."""

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from smp_proto.aio import Caller, Channel, End, Exchange, close_all, decode, encode
from smp_proto.channel import UNREAD_BYTES_MAX, UNREAD_FDS_MAX
from smp_proto.errors import DaemonError, NotFoundError, SmpError
from smp_proto.serving import serve
from smp_proto.wire import BODY_MAX_BYTES, FDS_MAX, FrameType, encode_frame


def lost() -> SmpError:
    return DaemonError("daemon_down", "the other side is gone")


def pair(**options: Any) -> tuple[Channel, Channel]:
    left, right = socket.socketpair()
    return Channel(left, **options), Channel(right, **options)


async def default_handler(body: bytes, fds: list[int], exchange: Exchange) -> Any:
    """`echo` answers with its argument; `sum` adds up DATA; `names` reads what descriptors lead to; others fail."""
    request = decode(body, dict[str, Any])
    close_all(fds)
    match request["do"]:
        case "echo":
            return request["value"]
        case "sum":
            total = 0
            while (number := (await exchange.receive(int))[0]) >= 0:
                total += number
                await exchange.send(total)
            return total
        case "read":
            (count, files) = await exchange.receive(int)
            contents = [os.read(fd, 100) for fd in files]
            close_all(files)
            return [count, contents]
        case "missing":
            raise NotFoundError("no_such_file", "no file", hint="look elsewhere", details={"n": 1})
        case "wait":
            await anyio.sleep_forever()
        case "huge":
            return bytes(BODY_MAX_BYTES)
        case "odd":
            return object()
        case "group":
            async with anyio.create_task_group() as group:
                group.start_soon(raise_soon)
    raise RuntimeError("secret text")


async def raise_soon() -> None:
    raise NotFoundError("no_such_job", "no job")


@contextlib.asynccontextmanager
async def linked(handler: Any = default_handler, **options: Any) -> AsyncIterator[tuple[Caller, list[Exception]]]:
    """A caller whose peer serves, and what went wrong unexpectedly there."""
    near, far = pair()
    faults: list[Exception] = []

    async def answer() -> None:
        try:
            await serve(far, handler, unexpected=faults.append, **options)
        except DaemonError as error:
            faults.append(error)
        finally:
            far.close()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(answer)
            async with Caller(near, lost=lost) as caller:
                yield caller, faults


async def test_call():
    """A reply arrives as the type asked for; one of another type is `protocol`."""
    async with linked() as (caller, faults):
        assert await caller.call({"do": "echo", "value": [1, "a"]}, list[Any]) == [1, "a"]
        with pytest.raises(DaemonError, match="does not fit"):
            await caller.call({"do": "echo", "value": "text"}, int)
        assert not faults


async def test_a_request_is_overwritten():
    """It may have held a secret: whether it was answered, refused, or cancelled, its body is zero; the reply is whole."""
    bodies: list[bytes] = []

    async def handler(body: bytes, fds: list[int], exchange: Exchange) -> Any:
        bodies.append(body)
        asked = decode(body, dict[str, str])
        if asked.get("do") == "refuse":
            raise NotFoundError("no_such_job", "no job")
        if asked.get("do") == "wait":
            await anyio.sleep_forever()
        return asked

    async with linked(handler) as (caller, faults):
        assert await caller.call({"secret": "hunter2"}, dict[str, str]) == {"secret": "hunter2"}
        with pytest.raises(NotFoundError):
            await caller.call({"do": "refuse", "secret": "hunter2"}, type(None))
        with pytest.raises(TimeoutError):
            await caller.call({"do": "wait", "secret": "hunter2"}, type(None), timeout=0.01)
        await caller.call({"last": "one"}, dict[str, str])  # the cancelled one has ended by then
        assert not faults
    assert len(bodies) == 4
    assert not any(map(any, bodies))


async def test_data_both_ways():
    """DATA flows both ways in order until END."""
    async with linked() as (caller, _), caller.open({"do": "sum"}) as exchange:
        for number in (1, 2, 3, -1):
            await exchange.send(number)
        assert [total async for total in exchange.messages(int)] == [1, 3, 6]
        assert await exchange.result(int) == 6
        with pytest.raises(anyio.EndOfStream):
            await exchange.receive(int)


async def test_errors_and_faults():
    """Errors arrive whole; a fault arrives as `internal` without its text and is reported once on the other side."""
    async with linked() as (caller, faults):
        with pytest.raises(NotFoundError) as caught:
            await caller.call({"do": "missing"}, int)
        assert (caught.value.hint, caught.value.details) == ("look elsewhere", {"n": 1})
        for what in ("fault", "odd", "huge"):
            with pytest.raises(SmpError) as fault:
                await caller.call({"do": what}, int)
            assert fault.value.code == "internal"
            assert "secret" not in str(fault.value)
        assert [type(error) for error in faults] == [RuntimeError, TypeError, ValueError]
        assert await caller.call({"do": "echo", "value": 5}, int) == 5


async def test_an_error_from_a_handlers_task_group_is_that_error():
    """An SmpError that comes wrapped by a task group is still that error to the peer."""
    async with linked() as (caller, faults):
        with pytest.raises(NotFoundError):
            await caller.call({"do": "group"}, int)
        assert not faults


async def test_descriptors_travel(tmp_path):
    """Descriptors arrive with their message, open the same files, and are closed on exec."""
    paths = [tmp_path / str(i) for i in range(FDS_MAX)]
    for path in paths:
        path.write_text(path.name)
    files = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        async with linked() as (caller, _), caller.open({"do": "read"}) as exchange:
            await exchange.send(7, files)
            assert await exchange.result(list[Any]) == [7, [path.name.encode() for path in paths]]
    finally:
        close_all(files)


async def test_cancel_ends_the_handler_once():
    """Leaving an exchange early cancels the handler, END comes once, and the next request is served."""
    cancelled = anyio.Event()

    async def handler(_body: bytes, _fds: list[int], exchange: Exchange) -> Any:
        await exchange.send(1)
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    async with linked(handler) as (caller, faults):
        async with caller.open({}) as exchange:
            assert (await exchange.receive(int))[0] == 1
        await cancelled.wait()
        assert not faults
        async with caller.open({}) as exchange:
            assert (await exchange.receive(int))[0] == 1


async def test_call_timeout_cancels():
    """A call that takes too long raises TimeoutError and leaves the link usable."""
    async with linked() as (caller, _):
        with pytest.raises(TimeoutError):
            await caller.call({"do": "wait"}, int, timeout=0.01)
        assert await caller.call({"do": "echo", "value": 1}, int) == 1


async def test_end_exactly_once():
    """Repeated, late and unknown CANCELs change nothing: each request has one END, in whatever order."""
    far, near = pair()
    request = encode_frame(FrameType.REQUEST, 1, encode({"do": "wait"}))
    quick = encode_frame(FrameType.REQUEST, 2, encode({"do": "echo", "value": 1}))
    cancel = [encode_frame(FrameType.CANCEL, stream) for stream in (1, 1, 2, 9, 1)]
    frames = [request, quick, *cancel, encode_frame(FrameType.DATA, 9, b"\1"), quick.replace(b"\2\2", b"\3\2")]
    ends: list[tuple[int, str]] = []

    async def collect() -> None:
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                frame, _ = await far.receive()
                assert frame.type is FrameType.END
                end = decode(frame.body, End)
                ends.append((frame.stream, end.error.code if end.error else "ok"))
                if len(ends) == 3:
                    far.socket.shutdown(socket.SHUT_WR)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(collect)
            for frame in frames:
                far.socket.send(frame)
            await serve(near, default_handler, unexpected=lambda error: None)
            near.close()
    far.close()
    assert sorted(stream for stream, _ in ends) == [1, 2, 3]
    assert dict(ends)[1] == "cancelled"


@pytest.mark.parametrize(
    "bad",
    [
        encode_frame(FrameType.HELLO, 0),
        encode_frame(FrameType.END, 1),
        encode_frame(FrameType.REQUEST, 1, encode({"do": "wait"})) * 2,
        b"\0\0\0\0\0\0\0\1\x63\0",
    ],
)
async def test_serve_refuses_what_an_asker_may_not_send(bad):
    """HELLO late, END from the asker, a stream opened twice, an unknown type: `protocol`, after cancelling the rest."""
    far, near = pair()
    far.socket.send(bad)
    with pytest.raises(DaemonError) as caught, anyio.fail_after(10):
        await serve(near, default_handler, unexpected=lambda error: None)
    assert caught.value.code == "protocol"
    near.close()
    far.close()


async def test_what_a_violation_cuts_short_ends_with_it():
    """An asker that breaks the protocol is told so on what it has open, not that the daemon is stopping."""
    far, near = pair()
    far.socket.send(encode_frame(FrameType.REQUEST, 1, encode({"do": "wait"})) + encode_frame(FrameType.HELLO, 0))
    with anyio.fail_after(10):
        with pytest.raises(DaemonError):
            await serve(near, default_handler, unexpected=lambda error: None)
        frame, _ = await far.receive()
    error = decode(frame.body, End).error
    assert (frame.type, frame.stream, error and error.code) == (FrameType.END, 1, "protocol")
    near.close()
    far.close()


@pytest.mark.parametrize(
    "bad",
    [
        encode_frame(FrameType.REQUEST, 1),
        encode_frame(FrameType.DATA, 77),
        encode_frame(FrameType.END, 1, b"\xc1"),
        b"\xff" * 10,
    ],
)
async def test_caller_refuses_what_an_answerer_may_not_send(bad):
    """What no answerer sends ends every open request with `protocol`."""
    near, far = pair()
    with anyio.fail_after(10):
        async with Caller(near, lost=lost) as caller, caller.open({"do": "x"}) as exchange:
            far.socket.send(bad)
            with pytest.raises(DaemonError) as caught:
                await exchange.receive(int)
            assert caught.value.code == "protocol"
    far.close()


@pytest.mark.parametrize("last_words", [b"", encode_frame(FrameType.DATA, 1, b"abc")[:-1], b"\0\0"])
async def test_peer_dies(last_words):
    """A peer that is gone, between frames or inside one, ends open and later requests with the link's own error."""
    near, far = pair()
    with anyio.fail_after(10):
        async with Caller(near, lost=lost) as caller:
            async with caller.open({"do": "x"}) as exchange:
                far.socket.send(last_words)
                far.close()
                with pytest.raises(DaemonError, match="the other side is gone"):
                    await exchange.receive(int)
            assert not caller.alive
            with pytest.raises(DaemonError, match="the other side is gone"):
                await caller.call({"do": "x"}, int)


async def test_asker_dies_inside_a_frame():
    """serve ends quietly, its handlers cancelled, when the asker is gone in the middle of a frame."""
    far, near = pair()
    far.socket.send(encode_frame(FrameType.REQUEST, 1, encode({"do": "wait"})) + b"\0\0\1")
    far.close()
    with anyio.fail_after(10):
        await serve(near, default_handler, unexpected=lambda error: None)
    near.close()


async def test_sixty_four_streams_at_once():
    """64 requests in flight on one link, with DATA both ways, each get their own answers."""

    async def one(caller: Caller, base: int) -> None:
        async with caller.open({"do": "sum"}) as exchange:
            for number in range(20):
                await exchange.send(base + number)
                assert (await exchange.receive(int))[0] == base * (number + 1) + number * (number + 1) // 2
            await exchange.send(-1)
            results[base] = await exchange.result(int)

    results: dict[int, int] = {}
    async with linked() as (caller, faults), anyio.create_task_group() as group:
        for base in range(64):
            group.start_soon(one, caller, base)
    assert results == {base: base * 20 + 190 for base in range(64)}
    assert not faults


async def refused(caller: Caller) -> None:
    with pytest.raises(SmpError, match=r"gone|cancelled|refused"):
        await caller.call({"do": "wait"}, int)


async def test_streams_are_limited():
    """One request more than allowed ends the connection with `protocol`."""
    async with linked(streams_max=3) as (caller, faults):
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(refused, caller)
        assert [error.code for error in faults] == ["protocol"]


async def test_a_request_too_large_is_refused_here():
    """A request that fits no frame is refused before anything is sent, and the link stays usable."""
    async with linked() as (caller, _):
        with pytest.raises(DaemonError, match="limit"):
            await caller.call({"do": "echo", "value": bytes(BODY_MAX_BYTES)}, bytes)
        assert not caller._open
        assert await caller.call({"do": "echo", "value": 1}, int) == 1


@pytest.mark.parametrize(
    ("size", "fds", "count"), [(1 << 19, 0, UNREAD_BYTES_MAX >> 19), (1, 32, UNREAD_FDS_MAX // 32)]
)
async def test_what_is_not_read_is_bounded(size, fds, count):
    """A peer that floods a stream nobody reads is cut off; its bytes and descriptors are released."""

    async def deaf(_body: bytes, _fds: list[int], _exchange: Exchange) -> Any:
        await anyio.sleep_forever()

    near, far = pair()
    faults: list[str] = []

    async def answer() -> None:
        try:
            await serve(far, deaf, unexpected=lambda error: None)
        except DaemonError as error:
            faults.append(error.message)
        far.close()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(answer)
            await near.send(FrameType.REQUEST, 1)
            with contextlib.suppress(anyio.BrokenResourceError):
                for _ in range(count + 2):
                    await near.send(FrameType.DATA, 1, bytes(size), [0] * fds)
    near.close()
    assert "too many unread" in faults[0]


class Endless(socket.socket):
    """A socket on which there is always more: CANCELs for streams that are not open."""

    flood = encode_frame(FrameType.CANCEL, 1) * 1000

    def recvmsg(self, *_args: Any) -> Any:
        return bytes(bytearray(self.flood)), [], 0, None


async def test_a_flood_does_not_keep_the_loop():
    """While a peer never pauses, other tasks of the loop still run."""
    with Endless(socket.AF_UNIX) as sock:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: serve(Channel(sock), default_handler, unexpected=lambda error: None))
            for _ in range(50):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()


async def test_streams_are_freed():
    """A request that has ended no longer counts, and its number may be used again."""
    async with linked(streams_max=1) as (caller, faults):
        for value in range(5):
            caller._next = 1
            assert await caller.call({"do": "echo", "value": value}, int) == value
        assert not faults


async def test_a_stream_number_in_use_is_not_taken_again():
    """After four billion requests the numbers begin again and pass over those still open."""
    async with linked() as (caller, _), caller.open({"do": "wait"}) as first:
        caller._next = 0xFFFF_FFFF
        async with caller.open({"do": "wait"}) as second:
            assert await caller.call({"do": "echo", "value": 1}, int) == 1
            assert (first.stream, second.stream, caller._next) == (1, 0xFFFF_FFFF, 3)


async def test_link_error_after_a_violation_while_sending():
    """A request that was being sent when the link broke ends with the link's error and does not wait for ever."""
    near, far = pair()
    with anyio.fail_after(10):
        async with Caller(near, lost=lost) as caller:
            far.socket.send(b"\xff" * 10)
            with pytest.raises(SmpError):
                await caller.call({"do": "echo", "value": bytes(1 << 19)}, bytes)
    far.close()
