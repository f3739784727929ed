"""Threads for what users hand over: they are left behind where they hang, and their user is told."""

import os
import threading

import anyio
import anyio.lowlevel
import pytest

from smp_proto.errors import DaemonError
from smpd.host import handed
from smpd.host.handed import Handed, Share


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


async def closed(fd: int) -> None:
    with anyio.fail_after(60):
        while is_open(fd):
            await anyio.lowlevel.checkpoint()


async def test_a_descriptor_stays_open_while_a_thread_uses_it() -> None:
    """A request that ends does not close what a thread it left behind still reads: the number would be another's."""
    begun, back = threading.Event(), threading.Event()
    fd, share = os.open("/dev/null", os.O_RDONLY), Share()
    held = Handed(share, [fd])

    def hang() -> None:
        begun.set()
        back.wait(60)

    async with anyio.create_task_group() as group:
        group.start_soon(held.use, hang)
        await anyio.to_thread.run_sync(begun.wait, 30)
        group.cancel_scope.cancel()
    held.close()
    assert is_open(fd)
    back.set()
    await closed(fd)


async def test_who_left_all_threads_hanging_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is served again once they are back; what was not begun is not done any more."""
    monkeypatch.setattr(handed, "_HANGS_S", 0.0)
    begun, back, late = threading.Semaphore(0), threading.Event(), threading.Event()
    share = Share()

    def hang() -> None:
        begun.release()
        back.wait(60)

    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(handed._AT_ONCE + 1)]
    all_held = [Handed(share, [fd]) for fd in fds]
    async with anyio.create_task_group() as group:
        for held in all_held[:-1]:
            group.start_soon(held.use, hang)
            await anyio.to_thread.run_sync(begun.acquire, True, 30)
        group.start_soon(all_held[-1].use, late.set)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    for held in all_held:
        held.close()
    with pytest.raises(DaemonError) as caught:
        await Handed(share).use(str)
    assert caught.value.code == "busy"
    back.set()
    for fd in fds:
        await closed(fd)
    assert not late.is_set()
    with anyio.fail_after(60):
        assert await Handed(share).use(str) == ""


async def test_who_has_much_to_be_closed_hands_over_no_more() -> None:
    """Until it is closed."""
    share, back = Share(), threading.Event()
    async with anyio.create_task_group() as group:
        for _ in range(handed._AT_ONCE):
            group.start_soon(share.run, lambda: back.wait(60))
        await anyio.wait_all_tasks_blocked()
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(handed._UNCLOSED_MAX + 1)]
        share.close(fds)
        assert not share.takes()
        back.set()
    for fd in fds:
        await closed(fd)
    with anyio.fail_after(60):
        while not share.takes():
            await anyio.lowlevel.checkpoint()
