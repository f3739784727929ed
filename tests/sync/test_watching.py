"""Every object version becomes one job, whatever happens in between."""

import random
import threading
from collections import Counter

import anyio
import pytest
from sync.world import Bucket, Machine, nothing, spec

from smp_proto.control import ObjectInfo, SyncView
from smp_proto.errors import (
    DeniedError,
    IntegrityError,
    NotFoundError,
    ProcessorError,
    RemoteError,
    ResourceError,
    StateError,
)
from smpd.sync.rules import RETRY_MAX_S, TRIES, Rules


class Crash(Exception):
    """Ends the daemon where it is raised."""


def fill(bucket: Bucket, count: int, pin: str = "1") -> None:
    bucket.objects |= {f"in/{number:02}.smp": pin for number in range(count)}


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path, Bucket())


async def test_each_object_once(machine):
    """What is there becomes a job each; another listing makes none; what is new or changed does."""
    fill(machine.bucket, 8)
    machine.bucket.objects["elsewhere.smp"] = "1"
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        view = await machine.settled(1)
        assert (view.seen, view.done, view.lag_s) == (8, 8, 0.0)
        await machine.again()
        assert set(machine.results.values()) == {1}
        machine.bucket.objects |= {"in/03.smp": "2", "in/new.smp": "1"}
        del machine.bucket.objects["in/04.smp"]
        view = await machine.again()
        assert (view.seen, view.done) == (9, 9)
        assert view.hour_done >= 9
        assert machine.results["in/03.smp", "2"] == machine.results["in/new.smp", "1"] == 1
    assert len(machine.results) == 10
    assert set(machine.results.values()) == {1}


@pytest.mark.parametrize("seed", range(6))
async def test_exactly_once_whatever_happens(machine, seed):
    """Objects come, change and go, listings break, the daemon dies: each version that stayed has one result."""
    rng = random.Random(seed)
    async with machine.running() as syncs:
        await syncs.add(spec(max_in_flight=rng.randint(1, 5)), "ann(1)")
    for step in range(12):
        for _ in range(rng.randint(0, 6)):
            machine.bucket.objects[f"in/{rng.randint(0, 15):02}.smp"] = str(step)
        for path in [path for path in machine.bucket.objects if rng.random() < 0.1]:
            del machine.bucket.objects[path]
        machine.bucket.broken = RemoteError("remote_unreachable", "down") if rng.random() < 0.2 else None
        left = [rng.randint(0, 4)]

        def die(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Crash

        machine.before_submit = die if rng.random() < 0.5 else lambda: None
        try:
            async with machine.running() as syncs:
                await syncs.control("s", "now")
                await machine.until(lambda view: bool(view.error) or not view.waiting + view.in_flight)
        except* Crash:
            pass
    machine.before_submit, machine.bucket.broken = (lambda: None), None
    async with machine.running():
        await machine.again()  # may be the rest of one that a crash cut off
        await machine.again()
    stayed = set(machine.bucket.objects.items())
    assert stayed <= set(machine.results)
    assert set(machine.results.values()) == {1}


async def test_a_listing_goes_on_where_it_was_left(machine):
    """After a crash within a listing the batches that were taken are not listed again."""
    fill(machine.bucket, 12)
    machine.bucket.stop_after = 2
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await machine.bucket.held.wait()
    machine.bucket.stop_after = None
    async with machine.running():
        view = await machine.settled(1)
    assert machine.bucket.listed_from == ["", "in/05.smp"]
    assert view.done == 12
    assert set(machine.results.values()) == {1}


async def test_a_remote_that_is_away_for_weeks_is_no_fault_of_an_object(machine):
    """Jobs that waited for it in vain were no tries: all go on once it is back, and nobody has to see to it."""
    fill(machine.bucket, 2)
    down = RemoteError("remote_unreachable", "remote far is down", details={"held": "far"})
    ended = []

    def away(path: str) -> RemoteError:
        ended.append(path)
        return down

    machine.outcome = away
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        for rounds in range(1, 3 * TRIES):
            view = await machine.until(lambda view: view.failed == 2 and not view.in_flight + view.waiting)
            assert len(ended) == 2 * rounds
            assert {each.tries for each in (await syncs.shown("s")).troubles} == {0}
            machine.now += RETRY_MAX_S
            syncs._watchers["s"].look()
            await machine.until(lambda _, rounds=rounds: len(ended) == 2 * (rounds + 1))
        machine.outcome = lambda path: None
        await machine.until(lambda view: view.failed == 2 and not view.in_flight)
        machine.now += RETRY_MAX_S
        syncs._watchers["s"].look()
        view = await machine.until(lambda view: view.done == 2)
        assert view.quarantined == 0
        assert len(machine.journal.list()) == 2


async def test_one_that_fails_backs_off_alone(machine):
    """It is tried again later and later by the same job, is quarantined in the end, and the others go on."""
    fill(machine.bucket, 4)
    machine.outcome = lambda path: ProcessorError("processor_failed", "no") if path == "in/02.smp" else None
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        for tries in range(1, TRIES):
            view = await machine.until(lambda view: view.failed == 1 and not view.in_flight + view.waiting)
            assert view.done == 3
            assert [(each.path, each.tries) for each in (await syncs.shown("s")).troubles] == [("in/02.smp", tries)]
            machine.now += RETRY_MAX_S
            syncs._watchers["s"].look()
            await machine.until(lambda view, tries=tries: not view.failed or _tries(view) > tries)
        view = await machine.until(lambda view: view.quarantined == 1)
        (trouble,) = (await syncs.shown("s")).troubles
        assert (trouble.state, trouble.tries, trouble.error.code) == ("quarantined", TRIES, "processor_failed")
        assert len(machine.journal.list()) == 4
        machine.outcome = lambda path: None
        await syncs.control("s", "retry")
        assert (await machine.until(lambda view: view.done == 4)).quarantined == 0
        assert len(machine.journal.list()) == 4


def _tries(view: SyncView) -> int:
    return view.failed


async def test_bad_data_is_left_to_a_person(machine):
    """It is quarantined at once with its reason; a newer version of it is new."""
    fill(machine.bucket, 3)
    machine.outcome = lambda path: IntegrityError("bad_tag", "forged") if path == "in/00.smp" else None
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        view = await machine.settled(1)
        assert (view.done, view.quarantined) == (2, 1)
        machine.outcome = lambda path: None
        machine.bucket.objects["in/00.smp"] = "2"
        view = await machine.again()
        assert (view.done, view.quarantined) == (3, 0)


async def test_what_a_person_resumes_counts(machine):
    """A quarantined job that is resumed by hand and ends well is the sync's result, and is not made twice."""
    fill(machine.bucket, 1)
    machine.outcome = lambda path: IntegrityError("untrusted_sender", "who")
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await machine.until(lambda view: view.quarantined == 1)
        machine.outcome = lambda path: None
        (job,) = machine.journal.list()
        machine.journal.move(job.id, "resume")
        await machine.until(lambda view: view.done == 1)
        await syncs.control("s", "retry")
        await machine.again()
    assert machine.results.total() == 1


async def test_replaced_while_it_was_queued(machine):
    """The job for the version that is gone does nothing; the version that is there gets its own."""
    fill(machine.bucket, 2)
    machine.hold = True
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await machine.until(lambda view: view.in_flight == 2)
        machine.bucket.objects["in/01.smp"] = "2"
        count = machine.store.get("s").listings
        await syncs.control("s", "now")
        await machine.until(lambda _: machine.listings > count)
        machine.hold = False
        view = await machine.again()
    assert view.done == 2
    assert machine.results == {("in/00.smp", "1"): 1, ("in/01.smp", "2"): 1}


async def test_named_and_never_there(machine):
    """A listing that goes on naming what nobody can get does not make work for ever; the object waits for a person."""
    fill(machine.bucket, 1)
    asked = []

    def missing(path):
        asked.append(path)
        return NotFoundError("no_such_object", "it is not there")

    machine.outcome = missing
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await machine.settled(1)
        for _ in range(2 * TRIES):
            await machine.again()
        view = (await syncs.shown("s")).sync
        assert (len(asked), view.quarantined) == (TRIES, 1)
        machine.outcome = lambda path: None
        machine.bucket.objects["in/00.smp"] = "2"
        assert (await machine.again()).done == 1


async def test_somebody_elses_object_at_the_target(machine):
    """It is not replaced because time passes: a person says so."""
    fill(machine.bucket, 1)
    machine.outcome = lambda path: StateError("target_changed", "something is there")
    async with machine.running() as syncs:
        await syncs.add(spec(processor="digest", target="out:r/"), "ann(1)")
        await machine.settled(1)
        machine.outcome = lambda path: None
        machine.now += RETRY_MAX_S
        assert (await machine.again()).quarantined == 1
        await syncs.control("s", "retry")
        await machine.until(lambda view: view.done == 1)


async def test_no_more_in_flight_than_asked(machine):
    """Jobs there are at once are bounded."""
    fill(machine.bucket, 20)
    async with machine.running() as syncs:
        await syncs.add(spec(max_in_flight=3), "ann(1)")
        await machine.settled(1)
    assert machine.most <= 3


async def test_backfill_and_live_take_turns(machine):
    """An object that appears during a long back-fill does not wait for its end."""
    fill(machine.bucket, 30)
    order: list[str] = []
    machine.outcome = order.append
    machine.hold = True
    async with machine.running() as syncs:
        await syncs.add(spec(max_in_flight=1), "ann(1)")
        await machine.until(lambda view: view.waiting == 29 and machine.listings == 1)
        machine.bucket.objects["in/zz.smp"] = "1"
        await syncs.control("s", "now")
        await machine.until(lambda view: view.waiting == 30)
        machine.hold = False
        await machine.settled(2)
    assert order.index("in/zz.smp") <= 3
    assert len(order) == 31


async def test_plaintext_has_to_be_still(tmp_path):
    """In a standard remote an object counts once two listings agree on it."""
    machine = Machine(tmp_path, Bucket("standard"))
    fill(machine.bucket, 2)
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await machine.until(lambda view: machine.listings == 1)
        assert not machine.results
        machine.bucket.objects["in/01.smp"] = "2"  # still being written
        count = 2
        await syncs.control("s", "now")
        await machine.until(lambda view: machine.listings == count and view.done == 1)
        await machine.again()
    assert machine.results == {("in/00.smp", "1"): 1, ("in/01.smp", "2"): 1}


@pytest.mark.parametrize("ends", ["well", "ill"])
async def test_plaintext_that_is_replaced_has_to_be_still(tmp_path, ends):
    """Also what replaces an object whose job is under way counts once two listings agree on it, and not before."""
    machine = Machine(tmp_path, Bucket("standard"))
    fill(machine.bucket, 1)
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await machine.until(lambda view: machine.listings == 1)
        machine.hold = True
        await syncs.control("s", "now")
        await machine.until(lambda view: machine.listings == 2 and view.in_flight == 1)
        machine.bucket.objects["in/00.smp"] = "2"  # still being written
        await syncs.control("s", "now")
        await machine.until(lambda view: machine.listings == 3)
        machine.outcome = lambda path: ProcessorError("processor_failed", "no") if ends == "ill" else None
        machine.hold = False
        await machine.until(lambda view: not view.in_flight)
        assert machine.db.rows("SELECT state FROM sync_objects") == [("settling",)]
        machine.outcome = lambda path: None
        machine.bucket.objects["in/00.smp"] = "3"
        await syncs.control("s", "now")
        await machine.until(lambda view: machine.listings == 4)
        assert (await machine.again()).done == 1
        machine.hold = True
        machine.bucket.objects["in/00.smp"] = "4"
        for listings in (6, 7):
            await syncs.control("s", "now")
            await machine.until(lambda view, listings=listings: machine.listings == listings)
        await machine.until(lambda view: view.in_flight == 1)
        machine.bucket.objects["in/00.smp"] = "5"
        for listings in (8, 9):
            await syncs.control("s", "now")
            await machine.until(lambda view, listings=listings: machine.listings == listings)
        machine.hold = False
        await machine.until(lambda view: view.done == 1)  # two listings agreed on it meanwhile
    assert [pin for _, pin in machine.results] == ["3", "5"]


async def test_a_name_that_is_seen_once_waits_for_nothing(tmp_path):
    """What is listed once in a standard remote and then gone, as a file that is renamed once it is whole, is forgotten."""
    machine = Machine(tmp_path, Bucket("standard"))
    fill(machine.bucket, 2)
    machine.bucket.objects["in/upload.tmp"] = "1"
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await machine.until(lambda view: machine.listings == 1)
        del machine.bucket.objects["in/upload.tmp"]
        machine.bucket.objects["in/upload.smp"] = "1"
        await syncs.control("s", "now")
        await machine.until(lambda view: machine.listings == 2 and view.done == 2)
        machine.bucket.objects["in/upload.tmp"] = "2"  # another one, by the same name
        await syncs.control("s", "now")
        view = await machine.until(lambda view: machine.listings == 3 and view.done == 3)
        assert (view.seen, view.waiting) == (4, 1)
        del machine.bucket.objects["in/upload.tmp"]
        view = await machine.again()
        assert (view.seen, view.waiting, view.lag_s) == (3, 0, 0.0)
    assert set(machine.results.values()) == {1}


async def test_pause_and_resume_outlive_a_restart(machine):
    """A paused sync neither lists nor makes jobs."""
    fill(machine.bucket, 2)
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await machine.settled(1)
        assert (await syncs.control("s", "pause")).state == "paused"
    machine.bucket.objects["in/new.smp"] = "1"
    async with machine.running() as syncs:
        view = (await syncs.shown("s")).sync
        assert (view.state, view.next_poll) == ("paused", 0.0)
        await syncs.control("s", "resume")
        assert (await machine.settled(2)).done == 3


async def test_paused_while_jobs_are_made(machine):
    """Once that is acknowledged no other is made, though there is room."""
    fill(machine.bucket, 6)
    machine.hold = True
    submit, acknowledged, turned = machine.submit, anyio.Event(), threading.Event()
    async with machine.running() as syncs:
        next_due = syncs._store.next_due

        def looked(number):  # for when to look again: all that was to be started is
            if acknowledged.is_set():
                turned.set()
            return next_due(number)

        async def pausing(*args, **kwargs):
            job = await submit(*args, **kwargs)
            await syncs.control("s", "pause")
            acknowledged.set()
            return job

        syncs._store.next_due, machine.submit = looked, pausing
        await syncs.add(spec(max_in_flight=6), "ann(1)")
        assert await anyio.to_thread.run_sync(turned.wait, 30)
        assert len(machine.journal.list()) == 1


async def test_paused_within_a_listing(machine):
    """It stops after the batch at hand, and goes on from there as soon as the sync does."""
    fill(machine.bucket, 7)
    listing, first, go_on = machine.bucket.list, anyio.Event(), anyio.Event()

    async def slow(prefix: str, *, recursive: bool = True, after: str = ""):
        async for batch in listing(prefix, recursive=recursive, after=after):
            yield batch
            first.set()
            await go_on.wait()

    machine.bucket.list = slow
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await first.wait()
        await syncs.control("s", "pause")
        go_on.set()
        await machine.until(lambda view: not view.listing)
        await syncs.control("s", "resume")
        assert (await machine.settled(1)).done == 7
    assert machine.bucket.listed_from == ["", "in/02.smp"]


async def test_a_remote_that_is_down_is_asked_again(machine):
    """The error shows, and goes with the next listing that ends well."""
    machine.bucket.broken = RemoteError("remote_unreachable", "down")
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        while not (await syncs.shown("s")).sync.error:
            await anyio.lowlevel.checkpoint()
        machine.bucket.broken = None
        fill(machine.bucket, 1)
        view = await machine.again()
    assert (view.done, view.error) == (1, None)


async def test_the_source_is_deleted_once_its_result_is_there(machine):
    """With a record before it; one that was replaced meanwhile stays, and has its own turn."""
    fill(machine.bucket, 3)
    stat, replaced = machine.bucket.stat, []

    async def replacing(path: str) -> ObjectInfo:
        if path == "in/01.smp" and not replaced:
            replaced.append(path)
            machine.bucket.objects[path] = "2"
        return await stat(path)

    machine.bucket.stat = replacing
    async with machine.running() as syncs:
        await syncs.add(spec(after="delete"), "ann(1)")
        await machine.settled(1)
        assert machine.bucket.objects == {"in/01.smp": "2"}
        assert (await machine.again()).done == 3
    assert machine.bucket.objects == {}
    assert machine.results["in/01.smp", "1"] == machine.results["in/01.smp", "2"] == 1
    assert sorted(machine.audited) == [("object.delete", f"lake:in/0{number}.smp") for number in range(3)]


async def test_the_disk_is_full_for_a_while(machine):
    """Nothing counts as a failure of an object; it goes on when the journal takes jobs again."""
    fill(machine.bucket, 2)
    full = [True]

    def refuse() -> None:
        if full[0]:
            raise ResourceError("disk_full", "full")

    machine.before_submit = refuse
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await machine.until(lambda view: view.waiting == 2 and machine.listings == 1)
        full[0] = False
        syncs._watchers["s"].look()
        view = await machine.settled(1)
    assert (view.done, view.failed) == (2, 0)


async def test_removing_forgets_and_frees_the_name(machine):
    """The jobs stay; a sync of that name begins anew."""
    fill(machine.bucket, 5)
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        with pytest.raises(StateError, match="there is a sync named s"):
            await syncs.add(spec(), "ann(1)")
        await machine.settled(1)
        await syncs.control("s", "remove")
        assert await syncs.views() == []
        assert machine.db.rows("SELECT count(*) FROM sync_objects") == [(0,)]
        await syncs.add(spec(), "ann(1)")
        await machine.settled(1)
    assert set(machine.results.values()) == {2}


async def test_names_are_not_in_the_database(machine):
    """Neither path nor error nor the sync's source is there in the clear."""
    machine.bucket.objects["in/jones-knee.smp"] = "pin-of-jones"
    machine.outcome = lambda path: IntegrityError("bad_tag", "jones is forged")
    async with machine.running() as syncs:
        await syncs.add(spec(source="lake:in/", include=["jones*"]), "ann(1)")
        await machine.until(lambda view: view.quarantined == 1)
        machine.db.close()
        with open(machine.path, "rb") as file:
            assert b"jones" not in file.read()
        machine.db.__init__(machine.path)


def archive(bucket: Bucket) -> dict[str, str]:
    return {path: pin for path, pin in bucket.objects.items() if path.startswith("old/")}


async def test_the_source_is_moved_once_its_result_is_there(machine):
    """With a record before it; where something is there already, under a name of its own."""
    fill(machine.bucket, 3)
    machine.bucket.objects |= {"in/b/c.smp": "1", "old/01.smp": "somebody else's"}
    async with machine.running() as syncs:
        await syncs.add(spec(after="move", moved_to="old/"), "ann(1)")
        await machine.settled(1)
        own = Rules(spec(after="move", moved_to="old/")).moved_to("in/01.smp", "1")[1]
        assert machine.bucket.objects == {
            "old/00.smp": "1",
            "old/01.smp": "somebody else's",
            own: "1",
            "old/02.smp": "1",
            "old/b/c.smp": "1",
        }
        machine.bucket.objects["in/00.smp"] = "2"
        assert (await machine.again()).done == 4
        assert set(archive(machine.bucket).values()) == {"1", "2", "somebody else's"}
    assert set(machine.results.values()) == {1}
    assert Counter(event for event, _ in machine.audited) == {"object.move": 5}


@pytest.mark.parametrize("step", ["copy", "delete"])
@pytest.mark.parametrize("then", ["", "replaced", "taken"])
async def test_a_crash_while_it_is_moved(machine, step, then):
    """Afterwards each version is there once: in the archive, or still waiting for its turn."""
    fill(machine.bucket, 2)

    async def die(at: str) -> None:
        if at == step:
            raise Crash

    machine.bucket.before_move = die
    with pytest.RaisesGroup(Crash, flatten_subgroups=True):
        async with machine.running() as syncs:
            await syncs.add(spec(after="move", moved_to="old/", max_in_flight=1), "ann(1)")
            await anyio.sleep_forever()
    machine.bucket.before_move = nothing
    expected = {"old/00.smp": "1", "old/01.smp": "1"}
    if then == "replaced":
        machine.bucket.objects["in/00.smp"] = "2"
        own = Rules(spec(after="move", moved_to="old/")).moved_to("in/00.smp", "2")[1]
        # What had been copied stays a copy; what had not was overwritten by whoever replaced it.
        expected |= {own: "2"} if step == "delete" else {"old/00.smp": "2"}
    elif then == "taken" and step == "copy":
        machine.bucket.objects["old/00.smp"] = "somebody else's"
        own = Rules(spec(after="move", moved_to="old/")).moved_to("in/00.smp", "1")[1]
        expected |= {"old/00.smp": "somebody else's", own: "1"}
    async with machine.running():
        await machine.settled(1)
        await machine.again()
    assert machine.bucket.objects == expected
    assert set(machine.results.values()) == {1}


async def test_one_that_cannot_be_moved_keeps_no_other_out(machine):
    """It is tried again and again while that may pass, and what else ended is taken in."""
    fill(machine.bucket, 6)
    refused = [0]

    async def refuse(at: str) -> None:
        refused[0] += 1
        if refused[0] < 3:
            raise RemoteError("remote_unreachable", "not now")

    machine.bucket.before_move = refuse
    async with machine.running() as syncs:
        await syncs.add(spec(after="move", moved_to="old/", max_in_flight=3), "ann(1)")
        await machine.until(lambda view: view.done >= 4 and view.in_flight <= 2)
        while (await syncs.shown("s")).sync.done < 6:
            syncs._watchers["s"].look()
            await anyio.sleep(0.001)
    assert len(archive(machine.bucket)) == 6


async def test_one_that_cannot_be_removed_now_can_be_later(machine, monkeypatch):
    """It stays where it can be seen, does nothing any more, and is removed by the next try."""
    machine.bucket.objects["in/0.smp"] = "1"
    async with machine.running() as syncs:
        await syncs.add(spec(), "ann(1)")
        await machine.settled(1)

        def full(_number: int) -> None:
            raise ResourceError("disk_full", "no space is left for the database")

        with monkeypatch.context() as patch:
            patch.setattr(machine.store, "remove", full)
            with pytest.raises(ResourceError):
                await syncs.control("s", "remove")
        assert [(view.spec.name, view.state) for view in await syncs.views()] == [("s", "paused")]
        machine.bucket.objects["in/1.smp"] = "1"
        await syncs.control("s", "resume")  # it works again
        await machine.until(lambda view: view.done == 2)
        await syncs.control("s", "remove")
        assert await syncs.views() == []
        await syncs.add(spec(), "ann(1)")


async def test_an_owner_who_may_not_any_more_is_not_acted_for(machine):
    """Nothing is listed, deleted or moved in their name; it says why, and goes on once they may again."""
    machine.bucket.objects["in/0.smp"] = "1"
    async with machine.running() as syncs:
        await syncs.add(spec(after="delete"), "ann(1)")
        await machine.until(lambda view: not machine.bucket.objects and not view.in_flight)
        machine.denied = DeniedError("forbidden", "ann(1) may not write to remote 'out'")
        machine.bucket.objects["in/1.smp"] = "1"
        listed = len(machine.bucket.listed_from)
        await syncs.control("s", "now")
        await machine.until(lambda view: view.error is not None and view.error.code == "forbidden")
        assert len(machine.bucket.listed_from) == listed
        assert machine.bucket.objects
        machine.denied = None
        await syncs.control("s", "now")
        await machine.until(lambda view: not machine.bucket.objects)
