"""How a channel waits: its socket stays with the event loop, and what nobody waits for stays with the kernel."""

import asyncio
import socket

import anyio
import anyio.lowlevel
import pytest

from smp_proto.channel import Channel
from smp_proto.wire import Frame, FrameType, encode_frame

DATA = Frame(FrameType.DATA, 7, b"data")
ENCODED = encode_frame(FrameType.DATA, 7, b"data")


@pytest.fixture
async def ends():
    """A channel and the peer's socket."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    channel = Channel(ours)
    yield channel, theirs
    channel.close()
    theirs.close()


async def waiting(channel: Channel) -> None:
    """Until somebody waits for the channel."""
    while channel._waiter is None:
        await anyio.lowlevel.checkpoint()


async def take(channel: Channel, found: list[Frame]) -> None:
    frame, _ = await channel.receive()
    found.append(frame)


async def test_what_nobody_waits_for_is_not_read(ends):
    """The peer is held back, and the loop is not woken again and again for what stays where it is."""
    channel, peer = ends
    found: list[Frame] = []
    async with anyio.create_task_group() as group:
        group.start_soon(take, channel, found)
        await waiting(channel)
        peer.send(ENCODED)
    assert found == [DATA]
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += peer.send(ENCODED * 100)
    with anyio.fail_after(30):
        while channel._watching is not None:  # until the loop has looked
            await anyio.lowlevel.checkpoint()
    assert not asyncio.get_running_loop().remove_reader(channel.socket.fileno())
    with pytest.raises(BlockingIOError):
        peer.send(ENCODED)
    for _ in range(sent // len(ENCODED)):
        assert await channel.receive() == (DATA, [])


async def test_a_frame_outlives_whoever_waited_for_it(ends):
    """Cancelled between its coming and the turn of the one who waits: the next one gets it."""
    channel, peer = ends
    async with asyncio.TaskGroup() as group:
        task = group.create_task(channel.receive())
        await waiting(channel)
        peer.send(ENCODED)
        channel._came()  # as the loop calls it
        task.cancel()
    assert task.cancelled()
    with anyio.fail_after(30):
        assert await channel.receive() == (DATA, [])


async def test_closing_ends_a_wait(ends):
    """Whoever waits is told at once, and the loop keeps nothing of the socket."""
    channel, _ = ends
    descriptor = channel.socket.fileno()
    with anyio.fail_after(30), pytest.raises(ExceptionGroup) as caught:
        async with anyio.create_task_group() as group:
            group.start_soon(take, channel, [])
            await waiting(channel)
            channel.close()
    assert caught.group_contains(anyio.BrokenResourceError)
    assert not asyncio.get_running_loop().remove_reader(descriptor)
