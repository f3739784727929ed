"""Objects that are gone are forgotten, the newest last, and none that is there, or may be."""

import secrets
from pathlib import Path

import anyio
import pytest
from sync.world import Bucket, Machine, spec

from smp_proto.control import ObjectInfo, SyncView
from smp_proto.errors import ResourceError
from smpd.sync import forgetting
from smpd.sync.forgetting import LISTINGS, Sight


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path, Bucket())
    machine.bucket.objects = {f"in/{number:02}.smp": "1" for number in range(12)}
    return machine


def rows(machine: Machine) -> list[int]:
    return [row[0] for row in machine.db.rows("SELECT number FROM sync_objects ORDER BY number")]


def go(machine: Machine, *numbers: int) -> None:
    for number in numbers:
        del machine.bucket.objects[f"in/{number:02}.smp"]


async def again(machine: Machine) -> SyncView:
    """Another listing, and what is forgotten after it."""
    await machine.again()
    return await machine.until(lambda view: not view.listing)


@pytest.mark.parametrize("piece", [2, 5_000])
async def test_the_newest_stay(machine: Machine, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """Of those that are gone; all that are there stay, too, and nothing is done twice when one comes back."""
    monkeypatch.setattr(forgetting, "_LOOKED_AT", piece)
    monkeypatch.setattr(forgetting, "_PIECE", 1)
    async with machine.running() as syncs:
        machine.store.forgetting.kept = 5
        await syncs.add(spec(), "ann(1)")
        await machine.settled(1)
        go(machine, *range(1, 10))
        for _ in range(LISTINGS):  # the first begins while what went was seen a moment ago
            await again(machine)
        assert len(rows(machine)) == 12
        await again(machine)
        assert rows(machine) == [1, 6, 7, 8, 9, 10, 11, 12]
        machine.bucket.objects |= {"in/02.smp": "1", "in/07.smp": "1"}
        assert (await again(machine)).seen == 9
    assert set(machine.results.values()) == {1}


async def test_one_that_some_listing_names_stays(machine: Machine) -> None:
    """Also when the last one did not, or only a hint did."""
    async with machine.running() as syncs:
        machine.store.forgetting.kept = 0
        await syncs.add(spec(), "ann(1)")
        await machine.settled(1)
        go(machine, 3, 4, 5)
        await again(machine)
        machine.bucket.objects["in/03.smp"] = "1"
        await again(machine)
        go(machine, 3)
        number = machine.store.get("s").number
        machine.store.note(number, [ObjectInfo("in/04.smp", 1, "1")], None, settle=False, live=True)
        await again(machine)
        await again(machine)
        assert rows(machine) == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]


async def test_a_source_that_is_away_is_no_empty_one(machine: Machine) -> None:
    """A folder without its mount lists well, and names nothing."""
    async with machine.running() as syncs:
        machine.store.forgetting.kept = 0
        await syncs.add(spec(), "ann(1)")
        await machine.settled(1)
        there, machine.bucket.objects = machine.bucket.objects, {}
        for _ in range(2 * LISTINGS):
            await again(machine)
        assert len(rows(machine)) == 12
        machine.bucket.objects = there
        await again(machine)
        assert len(rows(machine)) == 12
    assert set(machine.results.values()) == {1}


async def test_what_is_under_way_stays(machine: Machine) -> None:
    """Only what is over may go, and what is damaged, however little there is."""

    def refuse() -> None:
        raise ResourceError("disk_full", "full")

    machine.before_submit = refuse
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await machine.until(lambda view: view.waiting == 12 and machine.listings == 1)
        await syncs.control("s", "pause")
    async with machine.running() as syncs:
        with machine.db.transaction() as connection:
            connection.execute("UPDATE sync_objects SET state='damaged' WHERE number IN (2, 3)")
        number = machine.store.get("s").number
        named = [ObjectInfo("in/00.smp", 1, "1")]
        for _ in range(1 + LISTINGS):
            machine.store.note(number, named, "", settle=False, live=True)
            await anyio.to_thread.run_sync(machine.store.listed, number)
        assert not machine.store.forgetting.step(number)
        assert rows(machine) == [1, *range(4, 13)]


def test_a_sight_forgets_nothing() -> None:
    """All that was named is in it, however many; of the others hardly one is."""
    sight = Sight(1000)
    tokens = [secrets.token_bytes(16) for _ in range(1000)]
    for token in tokens:
        sight.add(token)
    assert all(token in sight for token in tokens)
    assert sum(secrets.token_bytes(16) in sight for _ in range(1000)) < 50
    assert "text" not in sight
    for token in (secrets.token_bytes(16) for _ in range(20_000)):
        sight.add(token)
        assert token in sight
