"""Group commit: what many tasks want durable becomes so together."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Generic, TypeVar

import anyio

from smp_proto.errors import SmpError

T = TypeVar("T")


class GroupCommit(Generic[T]):
    """Collects items and commits all that came meanwhile as one.

    Args:
        commit: makes items durable; blocking. What it raises ends the block of :meth:`running`.
    """

    def __init__(self, commit: Callable[[Sequence[T]], None]) -> None:
        self._commit = commit
        self._pending: list[T] = []
        self._wake = anyio.Event()
        self._done = anyio.Event()
        self._failed = False

    async def add(self, item: T) -> None:
        """Have an item committed; returns once it is."""
        self._pending.append(item)
        done = self._done
        self._wake.set()
        await done.wait()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Commit for the length of a block, which waits in :meth:`add` for what it needs.

        What was added when the block fails is committed before it ends: it need not be done again.
        """
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._run)
                yield
                group.cancel_scope.cancel()
        finally:
            if self._pending and not self._failed:
                with anyio.CancelScope(shield=True), contextlib.suppress(SmpError):
                    await self._commit_pending()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            done, self._done = self._done, anyio.Event()
            with anyio.CancelScope(shield=True):
                await self._commit_pending()
            done.set()

    async def _commit_pending(self) -> None:
        batch, self._pending = self._pending, []
        try:
            await anyio.to_thread.run_sync(self._commit, batch)
        except BaseException:
            self._failed = True
            raise
