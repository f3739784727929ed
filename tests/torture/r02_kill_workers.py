"""R2: SIGKILL of a worker process at a step of what it does; the daemon stays up, and the work is done once."""

from scene import faults, workers

from torture.harness import Experiment, Trial, Trials
from torture.killing import Site, Task, site
from torture.planted import planting

EACH = 100
POINTS = {"smpd.fetch": 40, "smpd.compute": 10, "smpd.opening": 300}
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
    "smpd.opening": ("before Server._open", "after Server._open", "after Server._open_one", ""),
}


def run(trials: Trials) -> None:
    """Each role by turns."""
    roles = list(POINTS)
    killed = dict.fromkeys(roles, 0)
    with site(trials.folder) as made:
        for trial in trials:
            role = roles[trial.number % len(roles)]
            with trial:
                _try(made, trial, role)
                killed[role] += 1
    trials.figures.update({f"{role.removeprefix('smpd.')} processes killed": count for role, count in killed.items()})


def _try(made: Site, trial: Trial, role: str) -> None:
    rng, process = trial.rng, made.box.process
    assert process
    large = trial.number % 5 == 4
    kinds = {
        "smpd.fetch": ["put", "put", rng.choice(["get", "prefix"])],
        "smpd.compute": ["run"],
        "smpd.opening": ["crowd", "run"],
    }[role]
    if role == "smpd.opening":
        _have_opening_processes(made)
    tasks = made.tasks(kinds, large=large)
    aims = AIMS[role]
    only = aims[trial.number // len(POINTS) % len(aims)]
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
    assert not faults(made.box), faults(made.box)[-1]  # as of something that nobody let go of


def _have_opening_processes(made: Site) -> None:
    """They start when there is more than one thread can do."""
    while not workers(made.box, "opening"):
        made.check(_tried(made, made.tasks(["crowd"], large=False)))


def _tried(made: Site, tasks: list[Task]) -> list[Task]:
    made.try_tasks(tasks)
    return tasks


EXPERIMENT = Experiment(
    id="R2",
    title="SIGKILL of a fetch, a compute or an opening process at a step of its work, 100 each",
    passes="the daemon stays up and logs no error; the job goes on or is retried, and its result arrives once",
    trials=EACH * len(POINTS),
    short=len(POINTS),
    run=run,
    plants={"uploads-again": lambda: planting("torture.faults.delivering:upload_without_looking")},
    planted_trials=1,
)
