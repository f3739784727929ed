"""R13: jobs are submitted, paused, resumed, cancelled and killed, and the box's key changed, in random order.

All of it against the real scheduler, journal and keys. A crash may come in the middle of a change of the key, too.
"""

from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel

from smp_proto.errors import StateError
from smpd.jobs.journal import Journal
from smpd.jobs.states import ENDED
from smpd.vault.keys import RETIRED
from smpd.vault.rotation import Rotation
from torture.harness import Experiment, Trial, Trials, replaced
from torture.scheduling import Bench, Clocks

PRIORITIES = ("low", "normal", "high", "critical")
MOVES = ("pause", "resume", "cancel")
ROTATE = 0.12  # how often, by how many keys there are: each start opens them all
LIVE = 12  # at most so many jobs that have not ended


def run(trials: Trials) -> None:
    """A trial is one step; what was said of a job before has to hold after it, also across a crash."""
    folder = trials.folder / "bench"
    folder.mkdir(parents=True)
    bench = Bench(folder, Clocks(), trials.seed)
    steps, known = iter(trials), dict[str, str]()
    crashes = -1
    while anyio.run(_until_crash, bench, steps, known):
        bench.crash()
        crashes += 1
    bench.db.close()
    keys = len(bench.keys.identities)
    trials.figures.update({"jobs": len(known), "crashes": crashes + 1, "keys of the box at the end": keys})


async def _until_crash(bench: Bench, steps: Iterator[Trial], known: dict[str, str]) -> bool:
    """Steps with a scheduler that runs, until one is a crash; False when there are no more."""
    async with anyio.create_task_group() as group:
        group.start_soon(bench.scheduler.run)
        first = True
        for trial in steps:
            crash = False
            with trial:
                crash = await _step(bench, trial, known)
                _check(bench, known, opened=first)
            first = False
            if crash:
                break
        else:
            group.cancel_scope.cancel()
            return False
        group.cancel_scope.cancel()
    return True


async def _step(bench: Bench, trial: Trial, known: dict[str, str]) -> bool:
    rng = trial.rng
    live = [job for job, state in known.items() if state not in ENDED]
    choice = rng.random()
    if choice < 0.02:
        return True
    if choice < 0.02 + ROTATE / len(bench.keys.identities):
        return bench.rotate(rng)
    if not live or (choice < 0.3 and len(live) < LIVE):
        job = bench.add(f"{trial.number}", rng.choice(PRIORITIES), fails=rng.choice((0, 0, 1, 3)))
        known.setdefault(job, "queued")
    elif choice < 0.5:
        bench.clocks.forward += rng.choice((0.5, 5.0, 60.0))
        bench.clocks.wall += rng.choice((1.0, -3600.0, 3600.0))
        bench.scheduler.poke()
        await anyio.lowlevel.checkpoint()
    else:
        job, move = rng.choice(live), rng.choice(MOVES)
        try:
            with anyio.fail_after(20):
                moved = await getattr(bench.scheduler, move)(job)
        except StateError:
            return False
        assert moved.state in {"pause": ("paused",), "cancel": ("cancelled",)}.get(move, ("queued", "running", "done"))
    return False


def _check(bench: Bench, known: dict[str, str], *, opened: bool = False) -> None:
    """What the rows say; ``opened`` also unseals each of them, which takes longer the more there are."""
    found = dict(bench.db.rows("SELECT id, state FROM jobs"))
    if opened:
        assert {job.id: job.state for job in bench.journal.list()} == found
        bench.check_keys()
    assert found.keys() == known.keys(), f"lost: {known.keys() - found.keys()}, new: {found.keys() - known.keys()}"
    for job, state in known.items():
        assert state not in ENDED or found[job] == state, f"{job} was {state} and is {found[job]}"
        assert found[job] not in ("failed", "quarantined"), f"{job} is {found[job]}"
    assert sum(state == "running" for state in found.values()) <= 2  # one, and one that is critical
    known.update(found)


def _lost_recovery(journal: Journal) -> tuple[str, ...]:
    """A recovery that loses what was running."""
    with journal._db.transaction() as connection:
        connection.execute("DELETE FROM jobs WHERE rowid IN (SELECT rowid FROM jobs LIMIT 1)")
    return ()


_finish = Rotation.finish


def _forgotten(rotation: Rotation) -> list[str]:
    """A change of the key that tidies up."""
    for path in Path(rotation._folder).rglob(RETIRED.format("*")):
        path.unlink()
    return _finish(rotation)


EXPERIMENT = Experiment(
    id="R13",
    title="jobs are submitted, paused, resumed, cancelled, waited for and killed, and keys rotated, in random order",
    passes="none is lost or made twice, an end is for good, each move ends as it says, all keys open",
    trials=10_000,
    short=150,
    run=run,
    plants={
        "loses-at-recovery": lambda: replaced(Journal, "recover", _lost_recovery),
        "forgets-the-old-key": lambda: replaced(Rotation, "finish", _forgotten),
    },
    planted_trials=120,
)
