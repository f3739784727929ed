"""A run gets ready in free slots of the ring while another has the process; what it put there counts, or is dropped."""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfer.compute_box import CHUNKS, OBJECT, SLOT, Computing, boxes, held, run

from smp_proto.errors import IntegrityError, ResourceError, SmpError
from smpd.links.ring import Ring, Slots
from smpd.transfer.device import Compute
from smpd.transfer.plain import PlainRing, PlainSlots
from smpd.transfer.preparing import Preparation
from smpd.transfer.workers import Worker

SLOTS = 6


@pytest.fixture
def computing(fake_program, monkeypatch) -> Computing:
    return boxes(fake_program, monkeypatch)


class Part:
    """One run: what is brought for it, how often, and where that waits.

    Args:
        name: eight bytes that its plaintext repeats.
        stop_at: before which chunk it waits for ``gate``.
        error: what it ends with, all chunks delivered.
    """

    def __init__(self, name: str, *, act: str = "checks", stop_at: int = CHUNKS, error: SmpError | None = None) -> None:
        self.name, self.act, self._stop_at, self._error = name, act, stop_at, error
        self.gate = anyio.Event()
        self.calls = 0
        self.delivered = 0
        self.changed = anyio.Event()
        self.ended: list[SmpError | None] = []
        self.seen: list[bytes] = []  # what lay in the rings whenever it was begun
        self.scope = anyio.CancelScope()

    async def feed(self, compute: Compute, plain: PlainRing) -> None:
        self.calls += 1
        self.delivered = 0
        self.seen.append(held(compute))
        await plain.announce([OBJECT])
        for index in range(CHUNKS):
            if index == self._stop_at:
                await self.gate.wait()
            slot = await plain.take()
            with plain.target(slot).view as view:
                view[:] = self.name.encode() * (SLOT // 8)
            await plain.deliver(slot, SLOT)
            self.delivered += 1
            self._told()
        if self._stop_at == CHUNKS:
            await self.gate.wait()
        if self._error:
            raise self._error

    async def run(self, compute: Compute) -> None:
        async def feed(plain: PlainRing) -> None:
            await self.feed(compute, plain)

        error: SmpError | None = None
        with self.scope:
            try:
                await run(compute, self.act, feed, job=self.name, again=True)
            except SmpError as found:
                error = found
            self.ended.append(error)
        self._told()

    def _told(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, condition: Callable[["Part"], object]) -> None:
        with anyio.fail_after(20):
            while not condition(self):
                await self.changed.wait()


@contextlib.asynccontextmanager
async def behind(computing: Computing, first: Part, second: Part, slots: int = SLOTS):
    """The first run has the process and stopped; the second has brought what it may."""
    async with computing(slots=slots) as compute, anyio.create_task_group() as group:
        await compute.describe()
        group.start_soon(first.run, compute)
        await first.until(lambda part: part.delivered == first._stop_at)
        group.start_soon(second.run, compute)
        if slots > 1:
            await second.until(lambda part: part.delivered == min(slots // 2, second._stop_at))
        yield compute


async def test_the_next_run_gets_ready(computing: Computing) -> None:
    """In half of the slots; the process is given them when the first is done, and nothing is brought twice."""
    first, second = Part("firstrun", stop_at=1), Part("secondrn")
    async with behind(computing, first, second) as compute:
        await anyio.wait_all_tasks_blocked()
        assert second.delivered == SLOTS // 2
        assert held(compute).count(b"secondrn") == SLOTS // 2 * SLOT // 8
        first.gate.set()
        await first.until(lambda part: part.ended)
        second.gate.set()
        await second.until(lambda part: part.ended)
    assert first.ended == second.ended == [None]
    assert (first.calls, second.calls) == (1, 1)


async def test_one_that_is_ready_waits_for_its_turn(computing: Computing) -> None:
    """What brings its plaintext can tell that it waits for the processor, and when that works on it."""
    first, second = Part("firstrun", stop_at=1), Part("secondrn", stop_at=0)
    told: list[str] = []

    async def feed(plain: PlainRing) -> None:
        second.gate.set()
        await second.feed(compute, plain)
        told.append("begun" if plain.begun else "ready")
        await plain.turn()
        told.append("begun" if plain.begun else "ready")

    async with behind(computing, first, second, slots=2 * CHUNKS) as compute:
        second.scope.cancel()
        async with anyio.create_task_group() as group:
            group.start_soon(partial(run, compute, "checks", feed, job=second.name, again=True))
            await second.until(lambda part: part.delivered == CHUNKS)
            await anyio.wait_all_tasks_blocked()
            assert told == ["ready"]
            first.gate.set()
    assert told == ["ready", "begun"]


async def test_many_runs_follow_each_other(computing: Computing) -> None:
    """Each is given its own plaintext; the ring is zero at the end."""
    parts = [Part(f"run{number:05}") for number in range(12)]
    async with computing(slots=4) as compute:
        await compute.describe()
        async with anyio.create_task_group() as group:
            for part in parts:
                part.gate.set()
                group.start_soon(part.run, compute)
    assert [part.ended for part in parts] == [[None]] * len(parts)
    assert {part.calls for part in parts} == {1}


@pytest.mark.parametrize("stop_at", [2, CHUNKS])
async def test_what_got_ready_beside_a_run_that_failed_is_brought_anew(computing: Computing, stop_at: int) -> None:
    """In another process, over a ring that is zero."""
    first, second = Part("firstrun", act="dies", stop_at=0), Part("secondrn", stop_at=stop_at)
    async with behind(computing, first, second) as compute:
        second.gate.set()
        first.gate.set()
        await second.until(lambda part: part.ended)
        assert compute.host.restarts == 1
    assert [error and error.code for error in first.ended] == ["worker_died"]
    assert second.ended == [None]
    assert second.calls == 2
    assert not second.seen[1].strip(b"\0")


async def test_a_process_that_went_by_itself(computing: Computing) -> None:
    """What is in the ring is not given to another process, even if no run ended badly meanwhile."""
    first, second = Part("firstrun", stop_at=1), Part("secondrn", stop_at=2)
    async with behind(computing, first, second) as compute:
        get = compute.host._get

        async def another() -> Any:
            compute.host._get = get  # type: ignore[method-assign]
            await compute.host.end()
            return await get()

        compute.host._get = another  # type: ignore[method-assign]  # the next to ask is the second run, in its turn
        first.gate.set()
        second.gate.set()
        await second.until(lambda part: part.ended)
    assert first.ended == second.ended == [None]
    assert second.calls == 2


async def test_one_whose_turn_cannot_come(computing: Computing) -> None:
    """The process is gone and no other can be started: what got ready is zeroed, and its slots are given back."""
    first, second = Part("firstrun", act="dies", stop_at=0), Part("secondrn", stop_at=2)
    async with behind(computing, first, second) as compute:
        get = compute.host._get

        async def refuse() -> Any:
            compute.host._get = get  # type: ignore[method-assign]
            raise ResourceError("worker_died", "no process can be started")

        compute.host._get = refuse  # type: ignore[method-assign]  # the next to ask is the second run, in its turn
        first.gate.set()
        second.gate.set()
        await second.until(lambda part: part.ended)
        assert compute.slots_in_use == 0
        assert not held(compute).strip(b"\0")
    assert [error and error.code for error in second.ended] == ["worker_died"]


async def test_one_that_is_cancelled_while_it_gets_ready(computing: Computing) -> None:
    """Its slots are zeroed and given back at once, and the first run notices nothing."""
    first, second, third = Part("firstrun", stop_at=1), Part("secondrn", stop_at=2), Part("thirdrun")
    async with behind(computing, first, second) as compute:
        with anyio.fail_after(20):
            while compute.slots_in_use > 2:  # the process is still to let go of the first run's
                await anyio.lowlevel.checkpoint()
        second.scope.cancel()
        await second.until(lambda part: part.scope.cancelled_caught)
        assert compute.slots_in_use == 0
        assert b"secondrn" not in held(compute)
        async with anyio.create_task_group() as group:
            group.start_soon(third.run, compute)
            third.gate.set()
            first.gate.set()
    assert first.ended == third.ended == [None]
    assert second.ended == []


async def test_one_that_is_bad_is_refused_before_its_turn(computing: Computing) -> None:
    """Its own error, while the first run has the process."""
    bad = IntegrityError("corrupt", "not what the sender signed")
    first, second = Part("firstrun", stop_at=1), Part("secondrn", stop_at=2, error=bad)
    async with behind(computing, first, second, slots=2 * CHUNKS) as compute:
        second.gate.set()
        await second.until(lambda part: part.ended)
        assert not first.ended
        assert b"secondrn" not in held(compute)
        first.gate.set()
        await first.until(lambda part: part.ended)
        assert compute.host.restarts == 0
    assert second.ended == [bad]
    assert first.ended == [None]


async def test_one_that_turns_out_bad_in_its_turn(computing: Computing) -> None:
    """The process is never told that its input is whole, and goes with it."""
    bad = IntegrityError("corrupt", "not what the sender signed")
    first, second = Part("firstrun", stop_at=1), Part("secondrn", error=bad)
    async with behind(computing, first, second) as compute:
        first.gate.set()
        await second.until(lambda part: part.delivered == CHUNKS)
        second.gate.set()
        await second.until(lambda part: part.ended)
        assert compute.host.worker is None
    assert second.ended == [bad]


async def test_what_failed_is_never_said_to_be_there() -> None:
    """Whoever waits for it waits until it is cancelled."""
    bad = IntegrityError("corrupt", "not what the sender signed")

    async def feed(_: PlainRing) -> None:
        raise bad

    ready = Preparation(feed, cast("PlainRing", None), cast("Worker", None))
    with pytest.raises(IntegrityError):
        await ready.run()
    told: list[str] = []

    async def wait() -> None:
        await ready.fed(cast("PlainRing", None))
        told.append("it is there")

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert not told


async def test_what_was_written_and_not_passed_on_is_zeroed() -> None:
    """All of the slot, since nobody knows how far it was filled; no other is touched."""
    with contextlib.closing(Ring.create("test", 4, SLOT)) as ring:
        slots = PlainSlots(ring)
        stopped, other = PlainRing(slots, 1), PlainRing(slots, 1)
        for plain in (stopped, other):
            with plain.target(await plain.take()).view as view:
                view[:] = b"x" * SLOT
        stopped.close()
        await slots.zero()
        assert os.pread(ring.fd, 4 * SLOT, 0).count(b"x") == SLOT
        other.close()
        await slots.zero()
        assert not os.pread(ring.fd, 4 * SLOT, 0).strip(b"\0")
        assert slots.in_use == 0


async def test_a_ring_of_one_slot_is_the_first_runs_alone(computing: Computing) -> None:
    """The second begins in its turn."""
    first, second = Part("firstrun", stop_at=1), Part("secondrn")
    second.gate.set()
    async with behind(computing, first, second, slots=1):
        await anyio.wait_all_tasks_blocked()
        assert second.calls == 0
        first.gate.set()
        await second.until(lambda part: part.ended)
    assert first.ended == second.ended == [None]


@given(st.integers(1, 6), st.lists(st.sampled_from(["take", "give", "zero"]), max_size=30))
def test_slots_are_never_held_twice(count: int, acts: list[str]) -> None:
    """Whoever waits gets one; what is taken to be zeroed is free, and nobody else's."""

    async def play() -> None:
        slots = Slots(count)
        owned: list[int] = []

        async def take() -> None:
            owned.append(await slots.take())

        async with anyio.create_task_group() as group:
            for act in acts:
                if act == "take":
                    group.start_soon(take)
                elif act == "give" and owned:
                    slots.give(owned.pop(0))
                    found = slots.take_those({0, 2, 4})  # before whoever waits for that slot has run
                    assert not set(found) & set(owned)
                    for index in found:
                        slots.give(index)
                elif act == "zero":
                    found = slots.take_those({0, 2, 4})
                    assert not set(found) & set(owned)
                    await anyio.lowlevel.checkpoint()
                    for index in found:
                        slots.give(index)
                await anyio.wait_all_tasks_blocked()
                assert len(set(owned)) == len(owned) <= count
                assert slots.free == count - len(owned) or len(owned) == count
            group.cancel_scope.cancel()

    anyio.run(play)
