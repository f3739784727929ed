"""What a source tells of: a hint that saves the wait for the next listing, and nothing that anybody relies on."""

import anyio
import pytest
from sync.world import Bucket, Machine, spec

from smp_proto.control import ObjectInfo
from smp_proto.errors import RemoteError
from smpd.links.fetching import Seen

QUEUE = "https://sqs.eu-central-1.amazonaws.com/1/q"


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path, Bucket())


async def test_what_is_named_is_worked_on(machine):
    """Without a listing; what is not there, not wanted or not below the prefix is left out; twice is once."""
    async with machine.running() as syncs:
        await syncs.add(spec(events=QUEUE, exclude=["*.tmp"]), "ann(1)")
        await machine.settled(1)
        machine.bucket.objects |= {"in/a.smp": "1", "in/x.tmp": "1", "elsewhere": "1"}
        machine.bucket.tell(Seen(["in/a.smp", "in/gone.smp", "in/x.tmp", "elsewhere"]), Seen(["in/a.smp"], ignored=2))
        view = await machine.until(lambda view: view.hints == 2 and view.done == 1)
        assert (view.seen, view.ignored, view.told) == (1, 2, True)
        await machine.until(lambda _: not machine.bucket.hints)
    assert machine.listings == 1
    assert machine.results == {("in/a.smp", "1"): 1}


async def test_a_hint_without_names_has_it_listed(machine):
    """Messages that were ignored do not."""
    async with machine.running() as syncs:
        await syncs.add(spec(events=QUEUE), "ann(1)")
        await machine.settled(1)
        machine.bucket.objects["in/a.smp"] = "1"
        machine.bucket.tell(Seen([], ignored=5))
        await machine.until(lambda view: view.ignored == 5)
        assert machine.listings == 1
        machine.bucket.tell(Seen())
        await machine.until(lambda view: view.done == 1)
        assert machine.listings == 2


async def test_a_hint_is_taken_once_what_it_names_is_kept(machine):
    """While the bucket cannot be asked, or the daemon dies first, the message stays; the listing finds lost ones."""
    failing = [True]
    stat = machine.bucket.stat

    async def broken(path: str) -> ObjectInfo:
        if failing[0]:
            raise RemoteError("remote_unreachable", "down")
        return await stat(path)

    machine.bucket.stat = broken
    async with machine.running() as syncs:
        await syncs.add(spec(events=QUEUE), "ann(1)")
        await machine.settled(1)
        machine.bucket.objects |= {"in/a.smp": "1", "in/lost.smp": "1"}
        machine.bucket.tell(Seen(["in/a.smp"]))
        # The listing's error may show before the listener's.
        await machine.until(lambda view: view.error is not None and not view.told)
        assert len(machine.bucket.hints) == 1
        assert not machine.results
    failing[0] = False
    async with machine.running():
        await machine.until(lambda view: view.done == 2)  # a new daemon lists, and hears the hint again
        await machine.until(lambda _: not machine.bucket.hints)
    assert set(machine.results.values()) == {1}


async def test_a_paused_sync_hears_nothing(machine):
    """What is told meanwhile waits in the queue."""
    async with machine.running() as syncs:
        await syncs.add(spec(events=QUEUE), "ann(1)")
        await machine.until(lambda view: view.told)
        await syncs.control("s", "pause")
        await machine.until(lambda view: not view.told)
        machine.bucket.objects["in/a.smp"] = "1"
        machine.bucket.tell(Seen(["in/a.smp"]))
        await syncs.control("s", "resume")
        await machine.until(lambda view: view.done == 1)
        await machine.until(lambda _: not machine.bucket.hints)
        await anyio.lowlevel.checkpoint()
