"""R8: the wall clock jumps while jobs wait and across a crash; what is started, and when, does not change.

The machine's clock is left alone: a time namespace moves only the monotonic clocks. The jump is put where the journal
asks for the wall clock, in this process. What people and certificates are judged by follows the wall clock by design.
"""

import anyio

from torture.harness import Experiment, Trial, Trials, replaced
from torture.scheduling import Bench, Clocks

HOUR_S, YEAR_S = 3600.0, 365.25 * 86400.0
JUMPS = (HOUR_S, -HOUR_S, 10 * YEAR_S, -10 * YEAR_S)


def run(trials: Trials) -> None:
    """Each jump once under a running scheduler, and once between a crash and the next start."""
    for trial in trials:
        with trial:
            jump, crash = JUMPS[trial.number % 4], trial.number >= 4
            for name in ("still", "jumps"):
                (trial.folder / name).mkdir(parents=True)
            expected = anyio.run(_play, trial, "still", 0.0, crash)
            assert anyio.run(_play, trial, "jumps", jump, crash) == expected


async def _play(trial: Trial, name: str, jump: float, crash: bool) -> list[tuple[str, float]]:
    """Jobs that fail and wait, and others that come meanwhile; says what was started and when, by the forward clock."""
    clocks = Clocks()
    bench = Bench(trial.folder / name, clocks, trial.number)
    names = {}
    for number, priority in enumerate(("low", "normal", "high", "normal")):
        names[bench.add(f"first-{number}", priority, fails=2)] = f"first-{number}"
    seen: list[tuple[str, float]] = []

    async def settle() -> None:
        count = len(bench.started)
        await bench.settle()
        seen.extend((names[job], clocks.forward) for job in bench.started[count:])

    await settle()
    clocks.wall += jump
    if crash:
        bench.crash()
    for number, priority in enumerate(("critical", "low", "normal")):
        names[bench.add(f"second-{number}", priority)] = f"second-{number}"
    for _ in range(14):  # backoffs of 2 and 4 s at most
        await settle()
        clocks.forward += 0.5
        clocks.wall += 0.5
    assert {bench.state(job) for job in names} == {"done"}
    bench.db.close()
    return seen


EXPERIMENT = Experiment(
    id="R8",
    title="the wall clock jumps by 1 h and 10 years, both ways, while jobs wait and across a crash (in-process)",
    passes="what is started, in which order and after which wait, is as without the jump",
    trials=8,
    short=1,
    run=run,
    plants={"asks-the-wall-clock": lambda: replaced(Clocks, "asked", lambda self: self.wall)},
    planted_trials=1,
)
