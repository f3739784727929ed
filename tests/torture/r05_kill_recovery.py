"""R5: SIGKILL of smpd while it takes up what an earlier SIGKILL left, once or several times."""

from torture.harness import Experiment, Trial, Trials
from torture.killing import Site, site
from torture.planted import planting

WORK_POINTS = 130
START_POINTS = 90  # from the first of a start until what was left is done


def run(trials: Trials) -> None:
    """One box, killed at work and then at one to three starts."""
    kills = 0
    places: set[str] = set()
    with site(trials.folder) as made:
        for trial in trials:
            with trial:
                found = _try(made, trial)
                kills += len(found)
                places |= set(found)
            if made.box.process is None or made.box.process.poll() is not None:
                made.switch.arm(0)
                made.box.start()
    trials.figures["kills during recovery"] = kills
    trials.figures["different points killed at"] = len(places)


def _try(made: Site, trial: Trial) -> list[str]:
    rng = trial.rng
    kinds = ["put", rng.choice(["get", "prefix"]), *(["run"] if rng.random() < 0.3 else [])]
    tasks, places = made.tasks(kinds, large=rng.random() < 0.2), []
    if trial.number % 2:
        made.switch.arm(rng.randrange(1, WORK_POINTS))
    else:
        made.switch.arm(1, only="after Questions.write")
    with made.ending():
        made.try_tasks(tasks)
    made.kill_all()
    for number in range(rng.randrange(1, 4)):
        made.switch.arm(1 + rng.randrange(30 if number else START_POINTS))
        made.start_or_die(tasks)
        made.kill_all() if rng.random() < 0.5 else made.box.kill()
        places.append(made.switch.killed_at() or "the end")
    made.recovered(tasks, f"killed at work and {places}, {kinds}")
    return places


EXPERIMENT = Experiment(
    id="R5",
    title="SIGKILL of smpd during recovery, one to three times after one at work",
    passes="as R1: no acknowledged job lost, each result delivered once, output digest equal",
    trials=50,
    short=1,
    run=run,
    plants={"uploads-again": lambda: planting("torture.faults.delivering:upload_without_looking")},
    planted_trials=1,
)
