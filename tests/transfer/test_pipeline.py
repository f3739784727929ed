"""A pipeline lets go of what its units come from."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from smp_proto.errors import ResourceError
from smpd.transfer.pipeline import Pipeline


class Broken:
    """A unit that fails."""

    small = False

    def claim(self) -> None:
        return None

    async def bring(self, lane: object, plain: object) -> int:
        raise ResourceError("worker_died", "an opening process ended")


class OneLane:
    """A pool whose only lane does not come back."""

    lanes = 1

    def __init__(self) -> None:
        self.taken = 0
        self.counts = SimpleNamespace(opened=lambda length: None)

    async def take(self, *, small: bool) -> object:
        self.taken += 1
        if self.taken > 1:
            await anyio.sleep_forever()
        return object()

    def give(self, lane: object) -> None:
        """It stays away."""


async def test_what_brings_the_units_is_closed_when_one_fails() -> None:
    """By the task that used it, before the failure is told: a listing is let go of, and not asked on for a dead job."""
    closed: list[Any] = []

    async def units() -> AsyncGenerator[Any, None]:
        try:
            while True:
                yield Broken()
        finally:
            closed.append(asyncio.current_task())

    found = units()  # held, so that nothing but the pipeline closes it
    pool: Any = OneLane()
    with anyio.fail_after(10), pytest.raises(ExceptionGroup) as caught:
        await Pipeline(pool, None).run(found)
    assert caught.group_contains(ResourceError)
    assert closed == [asyncio.current_task()]
