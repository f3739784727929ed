"""What becomes of an object once its result is delivered: it stays, is deleted, or is moved within its remote.

Each may be done again after a crash. Where an object is moved to is noted before, as a place where nothing was, so what
is found there later, and is the same, was brought there by us.
"""

from collections.abc import Callable
from typing import TypeVar

import anyio
import structlog

from smp_proto.errors import ErrorBody, NotFoundError, SmpError, StateError
from smpd.links.fetching import Move, Moved
from smpd.sync.rules import Rules
from smpd.sync.standing import Standing
from smpd.sync.store import SyncStore
from smpd.sync.world import World
from smpd.transfer.pool import RemotePool

_log = structlog.get_logger("smpd.sync")
T = TypeVar("T")


class Afterwards:
    """Does for one sync what its spec says is to be done afterwards."""

    def __init__(self, standing: Standing, rules: Rules, store: SyncStore, world: World) -> None:
        self._standing = standing
        self._rules = rules
        self._store = store
        self._world = world

    async def do(self, row: int, job: str, path: str, pin: str) -> ErrorBody | None:
        """Delete or move the source of a job that is done, unless it was replaced meanwhile.

        Returns:
            What keeps it from being done for now: the result was delivered all the same.

        Raises:
            SmpError: what passes soon.
        """
        act = {"delete": self._delete, "move": self._move}.get(self._standing.spec.after)
        if act is None:
            return None
        try:
            await self._world.require(self._standing.owner, self._standing.spec)
            await act(await self._world.remote(self._rules.remote), row, job, path, pin)
        except SmpError as error:
            if error.retryable:
                raise
            if error.code not in ("no_such_object", "source_changed"):
                _log.warning("source stays", sync=self._standing.spec.name, job_id=job, code=error.code)
                what = "deleted" if self._standing.spec.after == "delete" else "moved"
                error.message = f"its job is done, but it could not be {what}: {error.message}"
                return error.body()
        return None

    async def _delete(self, pool: RemotePool, row: int, job: str, path: str, pin: str) -> None:
        if (await pool.stat(path)).pin == pin:
            await self._record("object.delete", job, path)
            await pool.delete(path, pin)

    async def _move(self, pool: RemotePool, row: int, job: str, path: str, pin: str) -> None:
        target = await _thread(self._store.moving, row)
        places, again = self._rules.moved_to(path, pin), {"again": True}
        if not target:
            if (await pool.stat(path)).pin != pin:
                return
            target = places[0] if await _is_free(pool, places[0]) else places[1]
            await _thread(self._store.move, row, target)
            again = {}
        await self._record("object.move", job, path, **again)
        try:
            await pool.ask(Move(path, pin, target), Moved)
        except StateError:
            if target == places[1]:
                raise
            await _thread(self._store.move, row, places[1])  # something came to be there after we looked
            await pool.ask(Move(path, pin, places[1]), Moved)

    async def _record(self, event: str, job: str, path: str, **more: bool) -> None:
        subject = f"{self._rules.remote}:{path}"
        await self._world.audit(event, actor=self._standing.owner, job=job, subject=subject, **more)


async def _is_free(pool: RemotePool, path: str) -> bool:
    try:
        await pool.stat(path)
    except NotFoundError as error:
        if error.code != "no_such_object":
            raise
        return True
    return False


async def _thread(call: Callable[..., T], *arguments: object) -> T:
    return await anyio.to_thread.run_sync(call, *arguments)
