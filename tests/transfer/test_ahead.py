"""Ranges that are fetched before there is room for their plaintext, with a real fetch process."""

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from transfer.test_ranges import (
    ME,
    MIB,
    Count,
    Plain,
    all_lanes_are_back,
    opened,
    plaintext,
    pools,
    sealed,
    unchecked,
)

from smp_proto.errors import RemoteError, SmpError
from smp_proto.sealed.bundle import BundleWriter
from smpd.links.ring import Ring
from smpd.transfer.ahead import Ahead
from smpd.transfer.lanes import Lane
from smpd.transfer.pipeline import bring_object
from smpd.transfer.pool import RemotePool
from smpd.transfer.source import Cut, Source, open_source

__all__ = ["plaintext", "sealed"]  # fixtures


class Reads:
    """The reads of a pool, counted; they wait while the gate is shut, and fail as often as they are told to.

    One that is cancelled at the gate ends when ``settled`` is set, as a fetch process may take a moment to let go.
    """

    def __init__(self, pool: RemotePool) -> None:
        self.begun: list[int] = []
        self.ended = 0
        self.failures = 0
        self.gate = anyio.Event()
        self.gate.set()
        self.settled = anyio.Event()
        self.settled.set()
        self._changed = anyio.Event()
        self._read = pool.read
        pool.read = self  # type: ignore[assignment,method-assign]

    async def __call__(self, lane: Any, path: str, pin: str, offset: int, length: int) -> int:
        self.begun.append(offset)
        try:
            try:
                await self.gate.wait()
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await self.settled.wait()
                raise
            if self.failures:
                self.failures -= 1
                raise RemoteError("remote_failed", "as told")
            return await self._read(lane, path, pin, offset, length)
        finally:
            self.ended += 1
            self._changed.set()
            self._changed = anyio.Event()

    async def until(self, ended: int) -> None:
        """Wait until so many have ended."""
        with anyio.fail_after(30):
            while self.ended < ended:
                await self._changed.wait()


@contextlib.asynccontextmanager
async def fetching(folder: Path, **options: int) -> AsyncIterator[tuple[RemotePool, Source, Reads]]:
    async with opened(folder, **options) as (pool, source):
        yield pool, source, Reads(pool)


async def bring(pool: RemotePool, source: Source, ahead: Ahead | None) -> tuple[bytes, Count]:
    plain, count = Plain(), Count()
    with anyio.fail_after(30):
        await bring_object(pool, source, spool=None, marks={}, plain=plain, tally=count, ahead=ahead)
    return bytes(plain.data), count


async def until_still() -> None:
    """Until what was begun has ended, or waits for something."""
    for _ in range(3):
        await anyio.wait_all_tasks_blocked()


def take_all_ahead(group: TaskGroup, pool: RemotePool) -> tuple[list[Lane], Callable[[int], Awaitable[None]]]:
    """Ask for as many lanes as there are; those that were given, and how to ask for one more."""
    taken: list[Lane] = []
    take = ahead_taker(pool, taken)
    for number in range(pool.lanes):
        group.start_soon(take, number)
    return taken, take


def ahead_taker(pool: RemotePool, taken: list[Lane]) -> Callable[[int], Awaitable[None]]:
    async def take(number: int) -> None:
        taken.append(await pool.take_ahead(number))

    return take


@pytest.mark.parametrize("slots", [2, 5])
async def test_what_came_ahead_is_not_asked_for_again(plaintext, sealed, slots):
    """Half of the lanes at most wait; the rest comes as ever, each range once, and all lanes are back."""
    async with fetching(sealed, slots=slots) as (pool, source, reads):
        async with Ahead(pool, source.cut).running() as ahead:
            await reads.until(min(4, pool.lanes // 2))
            await until_still()
            assert reads.begun == [index * MIB for index in range(min(4, pool.lanes // 2))]
            data, count = await bring(pool, source, ahead)
        assert data == plaintext
        assert sorted(reads.begun) == sorted(set(reads.begun))
        assert count.fetched_bytes == source.trailer.payload_bytes
        await all_lanes_are_back(pool)


async def test_what_is_under_way_is_waited_for(plaintext, sealed):
    """The job gets its turn while the first ranges are still on their way: they are not asked for twice."""
    async with fetching(sealed) as (pool, source, reads):
        reads.gate = anyio.Event()
        async with Ahead(pool, source.cut).running() as ahead, anyio.create_task_group() as group:
            await until_still()
            assert reads.begun == [0, MIB]
            found: list[tuple[bytes, Count]] = []

            async def job() -> None:
                found.append(await bring(pool, source, ahead))

            group.start_soon(job)
            await until_still()
            reads.gate.set()
        assert found[0][0] == plaintext
        assert sorted(reads.begun) == sorted(set(reads.begun))
        await all_lanes_are_back(pool)


async def test_what_was_asked_for_meanwhile_is_left_out(sealed):
    """While it waits for a lane the job goes on without that range: it begins with those that come later, and keeps them."""
    async with fetching(sealed, slots=5) as (pool, source, reads):
        take, room, taken = pool.take, anyio.Event(), iter(range(100))

        async def take_later() -> Lane:
            if next(taken):
                await room.wait()
            return await take()

        pool.take = take_later  # type: ignore[method-assign]
        async with Ahead(pool, source.cut).running() as ahead:
            await reads.until(1)
            await until_still()
            first = ahead.claim(0)
            assert first is not None
            assert await first.wait() == MIB
            assert ahead.claim(1) is None
            room.set()
            await reads.until(3)
            await until_still()
            assert sorted(reads.begun) == [0, 2 * MIB, 3 * MIB]
            kept = [ahead.claim(index) for index in (2, 3, 4)]
            assert kept[:2].count(None) == 0
            assert kept[2] is None
            for arrival in [first, *kept[:2]]:
                assert arrival is not None
                pool.give(arrival.lane)
        await all_lanes_are_back(pool)


async def test_others_are_not_held_up(plaintext, sealed):
    """While ranges wait for a job's turn another job brings its object, also where one range may be under way."""
    async with fetching(sealed) as (pool, source, reads):
        async with Ahead(pool, source.cut).running() as ahead:
            await reads.until(2)
            await until_still()
            pool.pacing.window = 1
            assert (await bring(pool, source, None))[0] == plaintext
            assert (await bring(pool, source, ahead))[0] == plaintext
        await all_lanes_are_back(pool)


async def test_half_of_the_lanes_wait_at_most(plaintext, sealed):
    """Of however many objects; the next job's ranges are fetched when the first one's were taken over, not before."""
    async with fetching(sealed) as (pool, source, reads):
        async with Ahead(pool, source.cut).running() as one, Ahead(pool, source.cut).running() as two:
            await reads.until(2)
            await until_still()
            assert len(reads.begun) == 2
            assert (await bring(pool, source, one))[0] == plaintext
            assert (await bring(pool, source, two))[0] == plaintext
        await all_lanes_are_back(pool)


async def test_more_of_them_wait_where_ranges_take_long(sealed, monkeypatch):
    """On a long line an object takes longer to come than to be worked on; a quarter is left to who has room."""
    async with fetching(sealed, slots=4) as (pool, _, _):
        pool.pacing.window = pool.lanes
        async with anyio.create_task_group() as group:
            taken, take = take_all_ahead(group, pool)
            await until_still()
            assert len(taken) == pool.lanes // 2
            monkeypatch.setattr("smpd.transfer.pool.LONG_S", 0.0)
            async with pool.lane() as lane:
                await pool.read(lane, "loose/0", (await pool.stat("loose/0")).pin, 0, MIB)
            pool.caught_up(0)
            group.start_soon(take, pool.lanes)
            await until_still()
            assert len(taken) - 1 == pool.lanes * 3 // 4  # one has caught up
            group.cancel_scope.cancel()
        for lane in taken:
            pool.give(lane)
        await all_lanes_are_back(pool)


async def test_lanes_of_a_process_that_joined_do_not_add_to_them(sealed):
    """It may leave while ranges wait in lanes of the others: then whoever has room would get none, and wait for ever."""
    async with fetching(sealed, slots=8) as (pool, _, _):
        assert pool._joining is not None
        packing = pool._joining._packing
        pool.pacing.window = pool.lanes
        packing.joined(there=True)
        assert packing.used == 2
        async with anyio.create_task_group() as group:
            taken, _ = take_all_ahead(group, pool)
            await until_still()
            assert len(taken) == 8 // 2
            packing.used = 1
            taken.append(await pool.take())
            group.cancel_scope.cancel()
        for lane in taken:
            pool.give(lane)


async def test_what_fails_ahead_is_asked_for_again(plaintext, sealed):
    """A failure that nobody waits for is nobody's; it is told when the range is asked for."""
    async with fetching(sealed) as (pool, source, reads):
        reads.failures = 2
        async with Ahead(pool, source.cut).running() as ahead:
            await reads.until(2)
            assert (await bring(pool, source, ahead))[0] == plaintext
        reads.failures = 100
        async with Ahead(pool, source.cut).running() as ahead:
            with pytest.raises((SmpError, ExceptionGroup)):
                await bring(pool, source, ahead)
        reads.failures = 0
        await all_lanes_are_back(pool)


@pytest.mark.parametrize("claimed", [False, True])
async def test_a_job_that_goes_gives_all_back(sealed, claimed):
    """Cancelled while its ranges are on their way: no lane is given back before nothing is written to it any more."""
    async with fetching(sealed) as (pool, source, reads):
        reads.gate, reads.settled = anyio.Event(), anyio.Event()
        leaving = anyio.CancelScope()

        async def job() -> None:
            with leaving:
                async with Ahead(pool, source.cut).running() as ahead:
                    await (bring(pool, source, ahead) if claimed else anyio.sleep_forever())

        async with anyio.create_task_group() as group:
            group.start_soon(job)
            await until_still()
            begun = pool.lanes if claimed else pool.lanes // 2
            assert len(reads.begun) == begun
            leaving.cancel()
            await until_still()
            assert (reads.ended, pool.lanes_in_use) == (0, begun)
            reads.settled.set()
        assert reads.ended == begun
        await all_lanes_are_back(pool)


@pytest.mark.parametrize("claimed", [False, True])
async def test_a_process_that_goes_meanwhile_leaves_its_ring_as_long_as_it_is_needed(plaintext, sealed, claimed):
    """What waits stays readable when the fetch process was let go, and the rings go with the last lane."""
    async with fetching(sealed) as (pool, source, reads):
        async with Ahead(pool, source.cut).running() as ahead:
            await reads.until(2)
            await until_still()
            for host in pool.processes.hosts:
                await host.end()
            assert pool.processes.ring_bytes == 4 * MIB
            if claimed:
                for index in (0, 1):
                    arrival = ahead.claim(index)
                    assert arrival is not None
                    into = bytearray(MIB)
                    pool.processes.ring(arrival.lane).read(arrival.lane.slot, 0, memoryview(into))
                    assert into == (sealed / "object.smp").read_bytes()[index * MIB : (index + 1) * MIB]
                    pool.give(arrival.lane)
        with anyio.fail_after(30):
            while pool.processes.ring_bytes:
                await anyio.lowlevel.checkpoint()
        assert (await bring(pool, source, None))[0] == plaintext
        await all_lanes_are_back(pool)


async def test_a_lane_that_comes_back_from_nobody_takes_its_ring_along(sealed):
    """Whoever waited for it was cancelled in the same instant: it is as any other that is given back."""
    async with pools(sealed, slots=1, processes=1) as found:
        pool = await found.get("local")
        info = await pool.stat("object.smp")
        lane = await pool.take()
        await pool.read(lane, "object.smp", info.pin, 0, 1000)
        await pool.processes.hosts[0].end()
        assert pool.processes.ring_bytes == MIB
        async with anyio.create_task_group() as group:
            group.start_soon(pool.take)
            await until_still()
            group.cancel_scope.cancel()
            pool.give(lane)
        with anyio.fail_after(30):
            while pool.processes.ring_bytes:
                await anyio.lowlevel.checkpoint()


async def test_a_remote_that_is_removed_waits_for_nobodys_turn(sealed):
    """What waits in its lanes is let go of, so that the remote can be closed while the job still waits."""
    async with fetching(sealed) as (pool, source, reads), Ahead(pool, source.cut).running():
        await reads.until(2)
        await until_still()
        with anyio.fail_after(30):
            await pool.aclose()
        assert not pool.lanes_in_use


@pytest.mark.parametrize("size", [0, 1000])
async def test_what_came_along_is_not_fetched(tmp_path, size):
    """An object that came with its envelope has no range to be fetched, and is brought through without a lane."""
    plaintext = os.urandom(size)
    with (tmp_path / "object.smp").open("wb") as file:
        writer = BundleWriter(file.write, sender=ME, recipients=[ME.public])
        writer.begin("scan.bin")
        writer.write(plaintext)
        writer.end()
        writer.finish()
    async with fetching(tmp_path) as (pool, source, reads), Ahead(pool, source.cut).running() as ahead:
        await until_still()
        assert source.whole
        lanes = [await pool.take() for _ in range(pool.pacing.window)]
        for each in (None, ahead):
            assert (await bring(pool, source, each))[0] == plaintext
        assert not reads.begun
        for lane in lanes:
            pool.give(lane)
        await all_lanes_are_back(pool)


async def test_what_came_in_part_is_fetched(plaintext, sealed):
    """An object whose end came along takes lanes for the rest."""
    async with fetching(sealed) as (pool, source, reads):
        assert source.ending
        assert not source.whole
        assert (await bring(pool, source, None))[0] == plaintext
        assert reads.begun


async def test_a_ring_counts_until_it_is_unmapped(sealed, monkeypatch):
    """What is said of the memory that rings take is true while one of them goes."""
    async with fetching(sealed) as (pool, source, reads):
        counted: list[int] = []
        close = Ring.close

        def closing(ring: Ring) -> None:
            counted.append(pool.processes.ring_bytes)
            close(ring)

        monkeypatch.setattr(Ring, "close", closing)
        async with Ahead(pool, source.cut).running():
            await reads.until(2)
            await until_still()
            for host in pool.processes.hosts:
                await host.end()
        with anyio.fail_after(30):
            while pool.processes.ring_bytes:
                await anyio.lowlevel.checkpoint()
        assert len(counted) == 2
        assert min(counted) >= 2 * MIB


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A folder with an object whose index does not come along with its end, and its plaintext."""
    folder = tmp_path_factory.mktemp("indexed")
    plaintext = os.urandom(3 * MIB)
    with (folder / "object.smp").open("wb") as file:
        writer = BundleWriter(file.write, sender=ME, recipients=[ME.public])
        for number in range(4096):
            writer.begin(f"{number:04}/" + "x" * 60)
            writer.write(plaintext[number * 768 : (number + 1) * 768])
            writer.end()
        writer.finish()
    return folder, plaintext


async def test_ranges_come_while_a_long_index_does(indexed):
    """They are on their way before the index is there, do not hold it up where they fill the line, and come once."""
    folder, plaintext = indexed
    async with pools(folder, slots=4) as found, anyio.create_task_group() as group, contextlib.AsyncExitStack() as held:
        pool = await found.get("local")
        pool.pacing.window = 2
        reads = Reads(pool)
        reads.gate = anyio.Event()
        told: list[tuple[Cut, Ahead]] = []
        asked: list[int] = []

        async def early(cut: Cut) -> None:
            told.append((cut, await held.enter_async_context(Ahead(pool, cut).running())))

        async def watch() -> None:
            while len(reads.begun) < 3:
                await until_still()
            asked.extend(reads.begun)
            reads.gate.set()

        group.start_soon(watch)
        source = await open_source(pool, "object.smp", [ME], lambda _: ME.public, unchecked, early=early)
        index = source.trailer.payload_bytes
        assert sorted(asked) == [0, MIB, index]
        ((cut, ahead),) = told
        assert cut == source.cut
        assert cut.cutting is source.cutting
        data, count = await bring(pool, source, ahead)
        source.close()
        await held.aclose()
        assert data == plaintext
        assert sorted(reads.begun) == sorted(set(reads.begun))
        assert count.fetched_bytes == index
        await all_lanes_are_back(pool)
