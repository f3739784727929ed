"""R1: SIGKILL of smpd at random points of get, run, put and sync, with several of them under way at once."""

from torture.harness import Experiment, Trial, Trials
from torture.killing import Site, site
from torture.planted import planting

# Points that a batch passes at most, with some to spare: a batch that ends before is killed just after its end.
POINTS = {False: 130, True: 330}
# Where a crash would hurt most; two of three trials aim at one of them.
AIMS = (
    "after Questions.write",
    "after Watcher._submit",
    "after Vault.adopt",
    "before Questions.write",
    "after Runner.__call__",
    "after AuditLog._commit",
    "after Meter.reached",
    "before Leavings.discard",
    "after os.rename",
    "after RemotePool._bring",
    "after Database._leave",
    "before Watcher._submit",
    "before Watcher._take_in",
)
PLANTS = "torture.faults.delivering"


def run(trials: Trials) -> None:
    """One box, killed again and again; what it was doing then must be done once after the next start."""
    at_end = 0
    places: set[str] = set()
    with site(trials.folder) as made:
        for trial in trials:
            with trial:
                place = _try(made, trial)
                places.add(place)
                at_end += not place
            if made.box.process is None or made.box.process.poll() is not None:
                made.box.start()
        with made.client() as caller:
            assert caller.status().audit_ok
    trials.figures["killed just after the end"] = at_end
    trials.figures["different points killed at"] = len(places - {""})


def _try(made: Site, trial: Trial) -> str:
    """One trial; says at which point it was killed, nothing when all had ended."""
    rng, turn = trial.rng, trial.number % 3
    large = rng.random() < 0.2
    aim = AIMS[(trial.number // 3 * 2 + turn) % len(AIMS)] if turn < 2 else ""
    anything = ["put", "get", "prefix", "sync"]
    others = ["sync", rng.choice(anything)] if aim else rng.sample(anything, 2)
    kinds = ["put", *others, *(["run"] if rng.random() < 0.4 else [])]
    tasks = made.tasks(kinds, large=large)
    if aim:
        made.switch.arm(1 + rng.randrange(1 + trial.number // 20), only=aim)
    else:
        made.switch.arm(rng.randrange(1, POINTS[large]))
    with made.ending():
        made.try_tasks(tasks)
    if rng.random() < 0.5:
        made.kill_all()
    else:
        made.box.kill()  # and the workers see it, and clear up
    place = made.switch.killed_at()
    made.recovered(tasks, f"killed {place or 'at the end'}, {kinds}, large={large}")
    return place


EXPERIMENT = Experiment(
    id="R1",
    title="SIGKILL of smpd at a step of get, run, put and sync, several at once",
    passes="no acknowledged job lost, each result delivered once, output digest equal",
    trials=200,
    short=1,
    run=run,
    plants={
        "uploads-again": lambda: planting(f"{PLANTS}:upload_without_looking"),
        "forgets-what-ran": lambda: planting(f"{PLANTS}:forget_what_ran"),
        "begins-anew": lambda: planting(f"{PLANTS}:begin_anew"),
    },
    planted_trials=2,
)
