"""Group commit: who waits, what is committed together, and what becomes of it when the block fails."""

import threading
from collections.abc import Sequence

import anyio
import anyio.lowlevel
import pytest

from smp_proto.errors import ResourceError, one_error
from smpd.transfer.grouping import GroupCommit


async def test_what_comes_meanwhile_is_committed_together() -> None:
    """Each returns once its item is committed; those that came during a commit share the next one."""
    batches: list[list[int]] = []
    begun, go_on = threading.Event(), threading.Event()

    def commit(items: Sequence[int]) -> None:
        batches.append(list(items))
        begun.set()
        assert go_on.wait(10)

    async def add(item: int) -> None:
        await commits.add(item)
        assert any(item in batch for batch in batches)

    commits = GroupCommit(commit)
    async with commits.running():
        async with anyio.create_task_group() as group:
            group.start_soon(add, 0)
            assert await anyio.to_thread.run_sync(begun.wait, 10)
            for item in (1, 2, 3):
                group.start_soon(add, item)
            await anyio.wait_all_tasks_blocked()
            go_on.set()
    assert batches == [[0], [1, 2, 3]]


async def test_a_block_that_fails_keeps_what_was_added() -> None:
    """Items that wait while the block fails, or is cancelled, are committed: they need not come again."""
    committed: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def commit(items: Sequence[int]) -> None:
        begun.set()
        assert go_on.wait(10)
        committed.extend(items)

    async def fail() -> None:
        commits = GroupCommit(commit)
        async with commits.running(), anyio.create_task_group() as group:
            for item in range(3):
                group.start_soon(commits.add, item)
                assert await anyio.to_thread.run_sync(begun.wait, 10)
            await anyio.wait_all_tasks_blocked()
            go_on.set()
            raise ResourceError("worker_died", "gone")

    with anyio.fail_after(30), pytest.raises(ResourceError, match="gone"), one_error():
        await fail()
    assert sorted(committed) == [0, 1, 2]


async def test_a_commit_that_fails_ends_the_block_and_is_not_tried_again() -> None:
    """Its error is the block's; what is left is not committed to a disk that has just failed."""
    tried: list[int] = []

    def commit(items: Sequence[int]) -> None:
        tried.extend(items)
        raise ResourceError("disk_full", "full")

    async def run() -> None:
        commits = GroupCommit(commit)
        async with commits.running(), anyio.create_task_group() as group:
            group.start_soon(commits.add, 0)
            await anyio.lowlevel.checkpoint()
            group.start_soon(commits.add, 1)

    with anyio.fail_after(30), pytest.raises(ResourceError, match="full"), one_error():
        await run()
    assert tried in ([0], [0, 1])
