"""What cannot be deleted or moved after its job is tried again like any other, shown, and left to a person at last."""

from pathlib import Path

import pytest
from sync.world import Bucket, Machine, nothing, spec

from smp_proto.errors import RemoteError
from smpd.sync.rules import RETRY_MAX_S, TRIES

PATH = "in/x.smp"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path, Bucket())
    machine.bucket.objects[PATH] = "A"
    return machine


async def refuse(step: str) -> None:
    raise RemoteError("remote_forbidden", "no right to it", retryable=False)


@pytest.mark.parametrize("job_is_kept", [True, False])
async def test_tried_again(machine: Machine, job_is_kept: bool) -> None:
    """It says why, also after a restart; then it is moved, its job does not run again, and nothing is said any more."""
    machine.bucket.before_move = refuse
    async with machine.running() as syncs:
        await syncs.add(spec(after="move", moved_to="old/"), "ann(1)")
        await machine.until(lambda view: view.failed == 1)
    async with machine.running() as syncs:
        shown = await syncs.shown("s")
        (trouble,) = shown.troubles
        assert (trouble.path, trouble.state, trouble.error.code) == (PATH, "failed", "remote_forbidden")
        assert "its job is done" in trouble.error.message
        assert shown.sync.error is None
        if not job_is_kept:  # there were so many others since
            with machine.db.transaction() as connection:
                connection.execute("DELETE FROM jobs")
        machine.bucket.before_move = nothing
        machine.now += RETRY_MAX_S
        syncs._watchers["s"].look()
        view = await machine.until(lambda view: view.done == 1)
        assert (view.failed, view.error, (await syncs.shown("s")).troubles) == (0, None, [])
    assert machine.bucket.objects == {"old/x.smp": "A"}
    assert machine.results == {(PATH, "A"): 1}


async def test_left_to_a_person(machine: Machine) -> None:
    """After some rounds; who has them tried again has it moved, by the job that there was."""
    machine.bucket.before_move = refuse
    async with machine.running() as syncs:
        await syncs.add(spec(after="move", moved_to="old/"), "ann(1)")
        for tries in range(1, TRIES):
            await machine.until(lambda view: view.failed == 1)
            assert [each.tries for each in (await syncs.shown("s")).troubles] == [tries]
            machine.now += RETRY_MAX_S
            syncs._watchers["s"].look()
            await machine.until(lambda view, tries=tries: machine.store.tries(1) > tries)  # type: ignore[misc]
        assert (await machine.until(lambda view: view.quarantined == 1)).error is None
        machine.bucket.before_move = nothing
        await syncs.control("s", "retry")
        await machine.until(lambda view: view.done == 1)
    assert machine.bucket.objects == {"old/x.smp": "A"}
    assert machine.results == {(PATH, "A"): 1}


async def test_replaced_meanwhile(machine: Machine) -> None:
    """The newer version has its turn, and the older one is of no concern any more."""
    machine.bucket.before_move = refuse
    async with machine.running() as syncs:
        await syncs.add(spec(after="move", moved_to="old/"), "ann(1)")
        await machine.until(lambda view: view.failed == 1)
        machine.bucket.before_move = nothing
        machine.bucket.objects[PATH] = "B"
        assert (await machine.again()).done == 1
    assert machine.bucket.objects == {"old/x.smp": "B"}
    assert set(machine.results.values()) == {1}
