"""What a source tells of by itself: a folder of its changes, a bucket of new objects through a queue.

Only a hint. Objects that are named are looked at and noted as a listing would note them, and only then is the hint
taken; where none is named the source is listed. What is lost on the way the next listing finds.
"""

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import anyio
import structlog

from smp_proto.control import ObjectInfo
from smp_proto.errors import ErrorBody, SmpError, one_error
from smpd.sync.rules import Rules
from smpd.sync.standing import Standing
from smpd.sync.store import SyncStore, wanted
from smpd.sync.world import World
from smpd.transfer.pool import RemotePool

_log = structlog.get_logger("smpd.sync")
_AGAIN_S, _AGAIN_MAX_S = 5.0, 300.0
_AT_ONCE = 8  # objects looked at


class Listening(Protocol):
    """Who wants to know."""

    paused: bool

    def found(self, fresh: int) -> None:
        """Objects were noted, so many of them new."""

    async def list_now(self) -> None:
        """List, and return when another listing may be asked for."""


class Listener:
    """Listens for one sync.

    Attributes:
        told: whether the source tells at present.
        hints: how often it did.
        ignored: messages that were none.
        error: why it does not.
    """

    def __init__(self, standing: Standing, rules: Rules, store: SyncStore, world: World, owner: Listening) -> None:
        self.told = False
        self.hints = 0
        self.ignored = 0
        self.error: ErrorBody | None = None
        self._standing = standing
        self._rules = rules
        self._store = store
        self._world = world
        self._owner = owner
        self._look = anyio.Event()
        self._scope = anyio.CancelScope()
        self._begun = False

    def look(self) -> None:
        """The sync was paused, or goes on."""
        if self._owner.paused:
            self._scope.cancel()
        self._look.set()

    async def run(self) -> None:
        """Listen until cancelled, where the source tells of anything."""
        failures = 0
        while True:
            while self._owner.paused:
                self._look = anyio.Event()
                await self._look.wait()
            with anyio.CancelScope() as self._scope:
                try:
                    await self._listen()
                except SmpError as error:
                    failures = 0 if self.told else failures + 1
                    self.error = error.body()
                    name = self._standing.spec.name
                    _log.warning("nothing is told", sync=name, code=error.code, failures=failures)
                self.told = False
                self._owner.found(0)  # there is something to see
                await anyio.sleep(min(_AGAIN_MAX_S, _AGAIN_S * 2.0 ** min(failures, 16)))
            self.told = False

    async def _listen(self) -> None:
        spec = self._standing.spec
        pool = await self._world.remote(self._rules.remote)
        if pool.kind != "local" and not spec.events:
            await anyio.sleep_forever()
        async with contextlib.aclosing(pool.watch(self._rules.prefix, spec.events)) as found:
            async for seen in found:
                begins, self.told, self.error = not self.told, True, None
                self.ignored += seen.ignored
                if begins and not self._begun:
                    self._begun = True  # the first listing is under way
                elif seen.paths:
                    self.hints += 1
                    self._owner.found(await self._note(pool, seen.paths))
                elif not seen.ignored:
                    self.hints += not begins
                    await self._owner.list_now()  # also when it begins again: nobody knows what was missed

    async def _note(self, pool: RemotePool, paths: Sequence[str]) -> int:
        """Look at objects and note them; returns how many versions are new."""
        found: list[ObjectInfo] = []
        limiter = anyio.CapacityLimiter(_AT_ONCE)

        async def look(path: str) -> None:
            async with limiter:
                try:
                    info = await pool.stat(path)
                except SmpError as error:
                    if error.retryable:
                        raise
                    return  # it went, or is not for us
            found.append(ObjectInfo(path, info.size, info.pin, info.modified))

        with one_error():
            async with anyio.create_task_group() as group:
                for path in paths:
                    if path.startswith(self._rules.prefix) and self._rules.wants(path):
                        group.start_soon(look, path)
        note = partial(self._store.note, settle=pool.mode == "standard", live=True)
        objects = wanted(found, self._rules.wants)
        return await anyio.to_thread.run_sync(note, self._standing.number, objects, None)
