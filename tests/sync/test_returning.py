"""A version that comes back: after another had its result, or after it was deleted or moved itself."""

from pathlib import Path

import anyio
import pytest
from sync.world import Bucket, Machine, spec

from smp_proto.control import ObjectInfo
from smpd.sync.syncs import Syncs

PATH = "in/x.smp"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, Bucket())


async def seen(machine: Machine, syncs: Syncs, *pins: str) -> None:
    """Watch, while the object is one version after the other, each of which has its job."""
    await syncs.add(spec(), "ann(1)")
    await machine.settled(1)
    for pin in pins:
        machine.bucket.objects[PATH] = pin
        await machine.again()


async def test_after_another_had_its_result(machine: Machine) -> None:
    """It has a job once more, since the result that lies there is the other's; what stays has no other job."""
    order = list[str]()
    machine.outcome = lambda path: order.append(machine.bucket.objects[path])
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await machine.settled(1)
        for pin in ("A", "B", "A", "A", "B"):
            machine.bucket.objects[PATH] = pin
            view = await machine.again()
            assert view.done == 1
    assert order == ["A", "B", "A", "B"]


async def test_across_a_crash(machine: Machine) -> None:
    """Its job is found again, and is not made twice."""
    async with machine.running() as syncs:
        await seen(machine, syncs, "A", "B")
        machine.hold = True
        machine.bucket.objects[PATH] = "A"
        await syncs.control("s", "now")
        await machine.until(lambda view: view.in_flight == 1)
    machine.hold = False
    async with machine.running():
        await machine.settled(4)
    assert machine.results == {(PATH, "A"): 2, (PATH, "B"): 1}


async def test_named_by_mistake(machine: Machine) -> None:
    """An old listing still names what was replaced: that has no result, and what replaced it has none twice."""
    async with machine.running() as syncs:
        await seen(machine, syncs, "A", "B")
        look = machine.bucket.list
        old = [ObjectInfo(PATH, 1, "A")]

        async def late(prefix: str, *, recursive: bool = True, after: str = ""):  # type: ignore[no-untyped-def]
            yield old

        machine.bucket.list = late  # type: ignore[method-assign]
        assert (await machine.again()).gone == 1
        machine.bucket.list = look  # type: ignore[method-assign]
        assert (await machine.again()).done == 1
        assert (await machine.again()).done == 1
    assert machine.results == {(PATH, "A"): 1, (PATH, "B"): 1}


@pytest.mark.parametrize("after", [{"after": "delete"}, {"after": "move", "moved_to": "old/"}])
@pytest.mark.parametrize("mode", ["zero-knowledge", "standard"])
async def test_after_it_was_taken_away(tmp_path: Path, after: dict[str, str], mode: str) -> None:
    """What is uploaded again unchanged has another job, and then leaves the inbox as well."""
    machine = Machine(tmp_path, Bucket(mode))
    async with machine.running() as syncs:
        await syncs.add(spec(**after), "ann(1)")
        for times in range(1, 4):
            machine.bucket.objects[PATH] = "A"
            for _ in range(3):  # one that names it but may have begun before it left, and two that agree on it
                listings = machine.store.get("s").listings
                await syncs.control("s", "now")
                await machine.until(lambda view, more=listings + 1: machine.listings >= more and not view.in_flight)  # type: ignore[misc]
            view = await machine.settled(0)
            assert (machine.results[PATH, "A"], view.done) == (times, 1)
            assert PATH not in machine.bucket.objects
    assert len(machine.audited) == 3


async def test_named_by_a_listing_that_began_before_it_was_deleted(machine: Machine) -> None:
    """That is no return of it: it has no job that fails."""
    async with machine.running() as syncs:
        await syncs.add(spec(after="delete"), "ann(1)")
        await machine.settled(1)
        machine.bucket.objects[PATH] = "A"
        look, old = machine.bucket.list, [ObjectInfo(PATH, 1, "A")]

        async def slow(prefix: str, *, recursive: bool = True, after: str = ""):  # type: ignore[no-untyped-def]
            yield old
            while not machine.store.counts(1)[0].get("away"):
                await anyio.sleep(0.001)
            yield old

        machine.bucket.list = slow  # type: ignore[method-assign]
        await machine.again()
        machine.bucket.list = look  # type: ignore[method-assign]
        assert (await machine.again()).done == 1
        assert len(machine.journal.list()) == 1
