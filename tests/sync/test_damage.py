"""A damaged row of what a sync knows is set aside, shown, and written anew by the next listing; the others go on."""

from pathlib import Path

import pytest
from sync.world import Bucket, Machine, spec

from smp_proto.errors import ProcessorError, RemoteError, ResourceError


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path, Bucket())
    machine.bucket.objects = {f"in/{number}.smp": "1" for number in range(6)}
    return machine


def damage(machine: Machine, column: str = "body", value: str = "x'00'", row: int = 1) -> None:
    """Change a cell behind the store's back."""
    with machine.db.transaction() as connection:
        connection.execute(f"UPDATE sync_objects SET {column}={value} WHERE number=?", (row,))


def refuse() -> None:
    raise ResourceError("disk_full", "full")


CELLS = [
    ("body", "x'00'"),
    ("body", "CAST(x'ff41' AS TEXT)"),
    ("token", "'text'"),
    ("version", "'v'"),
    ("job", "x'01'"),
]


@pytest.mark.parametrize(("column", "value"), CELLS)
async def test_one_that_waits_for_its_turn(machine: Machine, column: str, value: str) -> None:
    """The others have theirs; it is named without its path, and has its own after the next listing."""
    machine.before_submit = refuse
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await machine.until(lambda view: view.waiting == 6 and machine.listings == 1)
        await syncs.control("s", "pause")
    machine.before_submit, machine.bucket.broken = (lambda: None), RemoteError("remote_unreachable", "down")
    async with machine.running() as syncs:
        damage(machine, column, value)
        await syncs.control("s", "resume")
        view = await machine.until(lambda view: view.done == 5 and not view.waiting)
        assert (view.failed, view.seen) == (1, 6)
        (trouble,) = (await syncs.shown("s")).troubles
        assert (trouble.path, trouble.state, trouble.error.code) == ("", "damaged", "corrupt")
        machine.bucket.broken = None
        await machine.again()
    assert machine.results == dict.fromkeys(machine.bucket.objects.items(), 1)


@pytest.mark.parametrize("ends", [True, False])
async def test_one_that_has_a_job(machine: Machine, ends: bool) -> None:
    """After a restart all jobs are found again but its own, which is neither lost nor made twice."""
    machine.hold = True
    async with machine.running() as syncs:
        await syncs.add(spec(max_in_flight=6), "ann(1)")
        await machine.until(lambda view: view.in_flight == 6 and machine.listings == 1)
        damage(machine)
    if ends:  # while nobody looks
        async with machine.running() as syncs:
            await syncs.control("s", "pause")
    machine.hold = False
    async with machine.running() as syncs:
        await syncs.control("s", "resume")
        await machine.until(lambda view: view.done >= 5)
        assert (await machine.again()).done == 6
    assert machine.results == dict.fromkeys(machine.bucket.objects.items(), 1)


async def test_one_whose_job_fails(machine: Machine) -> None:
    """It takes no place for ever."""
    machine.hold = True
    machine.outcome = lambda path: ProcessorError("processor_failed", "no") if path == "in/0.smp" else None
    async with machine.running() as syncs:
        await syncs.add(spec(max_in_flight=1), "ann(1)")
        await machine.until(lambda view: view.in_flight == 1 and machine.listings == 1)
        damage(machine)
        machine.hold = False
        await machine.until(lambda view: view.done == 5)
        machine.outcome = lambda path: None
        assert (await machine.again()).done == 6
    assert machine.results == dict.fromkeys(machine.bucket.objects.items(), 1)


async def test_a_state_that_is_none(machine: Machine) -> None:
    """An object in it is not forgotten."""
    machine.before_submit = refuse
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await machine.until(lambda view: view.waiting == 6 and machine.listings == 1)
        await syncs.control("s", "pause")
    machine.before_submit = lambda: None
    async with machine.running() as syncs:
        damage(machine, "state", "'nfw'")
        await syncs.control("s", "resume")
        assert (await machine.settled(2)).done == 6


async def test_a_job_whose_record_is_damaged(machine: Machine) -> None:
    """It keeps no other out; its object is told of, and has another job later."""
    machine.hold = True
    async with machine.running() as syncs:
        await syncs.add(spec(max_in_flight=2), "ann(1)")
        await machine.until(lambda view: view.in_flight == 2)
        with machine.db.transaction() as connection:
            connection.execute("UPDATE jobs SET spec=x'00' WHERE number=1")
    machine.hold = False
    async with machine.running() as syncs:
        await machine.until(lambda view: view.done == 5)
        (trouble,) = (await syncs.shown("s")).troubles
        assert (trouble.path, trouble.state, trouble.error.code) == ("in/0.smp", "failed", "corrupt")
        await syncs.control("s", "retry")
        await machine.until(lambda view: view.done == 6)
    assert machine.results == dict.fromkeys(machine.bucket.objects.items(), 1)


async def test_how_far_a_listing_was(machine: Machine) -> None:
    """That alone is no reason to forget a sync, and to have everything done once more: it lists from the start."""
    machine.bucket.stop_after = 1
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await machine.bucket.held.wait()
        await machine.until(lambda view: view.done == 3)
        with machine.db.transaction() as connection:
            connection.execute("UPDATE syncs SET place=x'00'")
    machine.bucket.stop_after = None
    async with machine.running() as syncs:
        await machine.until(lambda view: view.done == 6)
    assert machine.results == dict.fromkeys(machine.bucket.objects.items(), 1)


@pytest.mark.parametrize("column", ["created", "listings", "polled"])
async def test_a_number_of_a_sync_that_is_none(machine: Machine, column: str) -> None:
    """One flipped bit makes an empty text of the number 1; it keeps no daemon from starting."""
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await machine.settled(1)
        with machine.db.transaction() as connection:
            connection.execute(f"UPDATE syncs SET {column}=''")
    machine.bucket.objects["in/new.smp"] = "1"
    async with machine.running() as syncs:
        view = await machine.until(lambda view: view.done == 7)
        assert isinstance(view.created + view.last_poll, float)
