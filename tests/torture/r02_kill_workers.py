"""R2: SIGKILL of a fetch or a compute process at a step of what it does; the daemon stays up, and the work is done once."""

from torture.harness import Experiment, Trial, Trials
from torture.killing import Site, site
from torture.planted import planting

EACH = 100
POINTS = {"smpd.fetch": 40, "smpd.compute": 10}
AIMS = {
    "smpd.fetch": (
        "after Uploader._put",
        "before Pool.ask",
        "before Bucket.call",
        "after os.link",
        "after os.rename",
        "",
    ),
    "smpd.compute": ("before Running._take", "after Running._post", "after Running._work", "before Server.handle", ""),
}


def run(trials: Trials) -> None:
    """The first half kills fetch processes, the second compute processes; of a few trials every other."""
    killed = {"smpd.fetch": 0, "smpd.compute": 0}
    with site(trials.folder) as made:
        for trial in trials:
            role = (
                "smpd.compute" if (trial.number >= EACH or (len(trials) < EACH and trial.number % 2)) else "smpd.fetch"
            )
            with trial:
                _try(made, trial, role)
                killed[role] += 1
    trials.figures.update({f"{role.removeprefix('smpd.')} processes killed": count for role, count in killed.items()})


def _try(made: Site, trial: Trial, role: str) -> None:
    rng, process = trial.rng, made.box.process
    assert process
    large = trial.number % 5 == 4
    kinds = ["run"] if role == "smpd.compute" else ["put", "put", rng.choice(["get", "prefix"])]
    tasks = made.tasks(kinds, large=large)
    aims = AIMS[role]
    only = aims[trial.number // 2 % len(aims)]
    made.switch.arm(1 if only else rng.randrange(1, POINTS[role]), role, only)
    with made.ending():
        made.try_tasks(tasks)
        place = made.switch.killed_at(role)
        made.switch.arm(0, role)
        if not place:
            assert made.kill_workers(role), f"there is no process of {role}"
        try:
            made.check(tasks)
        except AssertionError as error:
            raise AssertionError(f"killed {place or 'at the end'}, {kinds}, large={large}: {error}") from error
    assert made.box.process is process
    assert process.poll() is None, "the daemon is gone"


EXPERIMENT = Experiment(
    id="R2",
    title="SIGKILL of a fetch or a compute process at a step of its work, 100 each",
    passes="the daemon stays up; the job goes on or is retried, and its result arrives once",
    trials=2 * EACH,
    short=1,
    run=run,
    plants={"uploads-again": lambda: planting("torture.faults.delivering:upload_without_looking")},
    planted_trials=1,
)
