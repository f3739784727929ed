"""Frames and descriptors over real socket pairs."""

import array
import contextlib
import os
import socket
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from lingering import lingering

from smp_proto.aio import Channel, close_all
from smp_proto.channel import close_aside
from smp_proto.errors import DaemonError
from smp_proto.wire import BODY_MAX_BYTES, FDS_MAX, FrameType, encode_frame


def pair(**options: Any) -> tuple[Channel, Channel]:
    left, right = socket.socketpair()
    return Channel(left, **options), Channel(right, **options)


async def test_received_descriptors_are_close_on_exec():
    """A received descriptor is not inherited by a worker started later."""
    near, far = pair()
    await near.send(FrameType.DATA, 1, b"", [0])
    _, fds = await far.receive()
    assert [os.get_inheritable(fd) for fd in fds] == [False]
    close_all(fds)
    near.close()
    far.close()


def raw_send(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


@pytest.mark.parametrize(
    "parts",
    [
        [(encode_frame(FrameType.DATA, 1, b"x", 2), [0])],
        [(encode_frame(FrameType.DATA, 1, b"x", 1), [0, 1])],
        [(encode_frame(FrameType.DATA, 1, b"x", 0), [0])],
        [(encode_frame(FrameType.DATA, 1, b"x", 1), [])],
        [(encode_frame(FrameType.DATA, 1, b"x"), [0]), (encode_frame(FrameType.DATA, 1, b"x", 1), [])],
        [(encode_frame(FrameType.DATA, 1, b"x", 1), [0]), (encode_frame(FrameType.DATA, 1), [1])],
        [(encode_frame(FrameType.DATA, 1, b"xyz", 1)[:12], [0]), (b"z", [1])],
        [(encode_frame(FrameType.DATA, 1, b"xyz", 1)[:5], [0] * (FDS_MAX // 2 + 1)), (b"\0", [0] * (FDS_MAX // 2))],
    ],
)
async def test_declared_count_must_match(parts):
    """A frame that brings more or fewer descriptors than it announces is refused, and nothing leaks."""
    near, far = pair()
    for data, fds in parts:
        raw_send(near.socket, data, fds)
    near.socket.shutdown(socket.SHUT_WR)

    async def drain() -> None:
        while True:
            close_all((await far.receive())[1])

    with pytest.raises(DaemonError, match="more or fewer descriptors"):
        await drain()
    near.close()
    far.close()


async def test_more_descriptors_than_fit_are_refused():
    """MSG_CTRUNC is a violation: the kernel dropped descriptors."""
    near, far = pair()
    raw_send(near.socket, encode_frame(FrameType.DATA, 1, b"", FDS_MAX), [0] * (FDS_MAX + 10))
    with pytest.raises(DaemonError, match="descriptors"):
        await far.receive()
    near.close()
    far.close()


@pytest.mark.parametrize("flags", [0, socket.MSG_OOB])
@pytest.mark.parametrize("read", [True, False])
async def test_descriptors_that_are_not_taken_are_not_waited_for(read, flags):
    """To close a socket can take as long as its owner likes: what nobody takes is neither dropped nor closed here."""
    near, far = pair()
    far.descriptors, far.discard = lambda: False, close_aside
    with lingering() as sock:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
        near.socket.sendmsg([b"x"], rights, flags)
        sock.close()
        if read:
            with pytest.raises(DaemonError, match="not taken"):
                await far.receive()
        far.close()
    near.close()


async def test_more_descriptors_than_fit_are_not_waited_for():
    """Those that are too many, too, are closed by who has the time."""
    near, far = pair()
    far.discard = close_aside
    with lingering() as sock:
        raw_send(near.socket, b"x", [0] * FDS_MAX + [sock.fileno()])
        sock.close()
        with pytest.raises(DaemonError, match="more or fewer"):
            await far.receive()
        far.close()
    near.close()


async def test_frames_and_descriptors_in_small_pieces():
    """A frame cut after any byte, with its descriptors on the first piece, arrives with them."""
    near, far = pair()
    data = encode_frame(FrameType.DATA, 3, b"hello", 2) + encode_frame(FrameType.DATA, 4, b"", 0)
    for cut in range(1, len(data)):
        raw_send(near.socket, data[:cut], [0, 1])
        await anyio.lowlevel.checkpoint()
        near.socket.send(data[cut:])
        frame, fds = await far.receive()
        assert (frame.stream, frame.body, len(fds)) == (3, b"hello", 2)
        close_all(fds)
        assert (await far.receive())[0].stream == 4
    near.close()
    far.close()


async def test_a_peer_that_does_not_read_is_given_up():
    """A send that makes no progress for the stall time fails, and the connection is shut down for its reader, too."""
    near, far = pair(stall_s=0.05)
    with anyio.fail_after(10):
        with pytest.raises(anyio.BrokenResourceError):
            await near.send(FrameType.DATA, 1, bytes(BODY_MAX_BYTES))
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await near.receive()
    near.close()
    far.close()


async def test_closing_ends_a_blocked_send_and_a_blocked_receive():
    """Closing a channel wakes those who wait on it."""
    near, far = pair()

    async def blocked(what: Any, *args: Any) -> None:
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
            await what(*args)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(blocked, near.send, FrameType.DATA, 1, bytes(BODY_MAX_BYTES))
            group.start_soon(blocked, near.receive)
            await anyio.wait_all_tasks_blocked()
            near.close()
    far.close()
    near.close()


async def test_cancelling_a_send_never_garbles():
    """A send cancelled half way completes its frame, so that the next one is understood."""
    near, far = pair()
    body = bytes(BODY_MAX_BYTES)
    async with anyio.create_task_group() as group:
        group.start_soon(near.send, FrameType.DATA, 1, body)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True), anyio.fail_after(10):
            assert (await far.receive())[0].body == body
    async with anyio.create_task_group() as group:
        group.start_soon(near.send, FrameType.DATA, 2, b"next")
        assert (await far.receive())[0].body == b"next"
    near.close()
    far.close()


async def test_frames_of_several_senders_do_not_mix():
    """One that the socket takes only a part of is followed by the rest of it, although there is room for another."""
    near, far = pair()
    large = os.urandom(BODY_MAX_BYTES)
    frames = [encode_frame(FrameType.DATA, 1, large), encode_frame(FrameType.DATA, 2, b"small")]
    data = bytearray()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(near.send, FrameType.DATA, 1, large)
            await anyio.wait_all_tasks_blocked()
            data += far.socket.recv(1 << 16)
            group.start_soon(near.send, FrameType.DATA, 2, b"small")
            while len(data) < sum(map(len, frames)):
                await anyio.lowlevel.checkpoint()
                with contextlib.suppress(BlockingIOError):
                    data += far.socket.recv(1 << 16)
    assert data == b"".join(frames)
    near.close()
    far.close()


async def test_what_is_unwanted_may_be_taken_and_discarded():
    """Of a peer that is done with after it: no look goes before each read, and what it sent is closed."""
    ours, theirs = socket.socketpair()
    channel, closed = Channel(ours), list[int]()
    channel.descriptors, channel.takes_unwanted = lambda: False, True
    channel.discard = closed.extend
    read, write = os.pipe()
    with theirs:
        socket.send_fds(theirs, [encode_frame(FrameType.DATA, 7, b"", 1)], [read])
        with pytest.raises(DaemonError) as caught:
            await channel.receive()
    channel.close()
    assert caught.value.code == "protocol"
    assert len(closed) == 1
    for fd in (*closed, read, write):
        os.close(fd)
