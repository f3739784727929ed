"""The goals: one table, and the arithmetic that says which are met. All are taken within one run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.loads.small import LARGE, PREFIX
from benchmarks.results import Contested, GoalResult, LoadResult
from benchmarks.stats import paired, spread


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes:
        load: its name.
        mine: the contestant it is a goal for.
        figure: what of it counts, see :meth:`benchmarks.results.Sample.figure`.
        bound: the least or, with ``at_most``, the greatest value that meets it.
        over: the value is a ratio to the least of these contestants, each times a factor; empty for the figure itself.
    """

    load: str
    mine: str
    figure: str
    bound: float
    over: tuple[tuple[str, float], ...] = ()
    at_most: bool = False

    @property
    def text(self) -> str:
        """The goal in words."""
        names = [name if factor == 1 else f"{factor:g} x {name}" for name, factor in self.over]
        against = f" / {' or '.join(names)}" if names else ""
        return f"{self.mine}: {self.figure}{against}"

    def met_by(self, value: float) -> bool:
        """Whether a value meets it."""
        return value <= self.bound if self.at_most else value >= self.bound


def _over(name: str) -> tuple[tuple[str, float], ...]:
    return ((name, 1.0),)


GOALS = (
    Goal("http", "SMP", "gb_s", 0.75, _over("curl")),
    Goal("http", "SMP", "gb_s", 4.0, _over("s5cmd, then tink")),
    Goal("http", "SMP", "gb_s", 4.0, _over("s5cmd, then age")),
    Goal("http", "SMP", "gb_s", 4.0, _over("rclone crypt")),
    Goal("http", "SMP", "gb_s", 3.0, _over("tensorizer")),
    Goal("https", "SMP", "gb_s", 0.75, _over("curl")),
    Goal("sftp", "SMP, one connection", "gb_s", 1.0, _over("sftp")),
    Goal("sftp", "SMP, several connections", "gb_s", 1.0, _over("SMP, one connection")),
    Goal("objects-16m", PREFIX, "gb_s", 0.6, _over(LARGE)),
    Goal("objects-1m", PREFIX, "gb_s", 0.6, _over(LARGE)),
    Goal("objects-64k", PREFIX, "objects_s", 1.0, _over("s5cmd")),
    Goal("entries", "SMP, bundle", "gb_s", 0.9, _over(LARGE)),
    Goal("put", "SMP", "gb_s", 0.75, _over("s5cmd")),
    Goal("spool", "on, tmpfs", "gb_s", 0.8, _over("off")),
    Goal("spool", "on, disk", "gb_s", 1.0, (("off", 0.8), ("disk alone", 1.0))),
    Goal("jobs", "64 jobs", "gb_s", 0.9, _over("one job")),
    Goal("jobs", "64 jobs", "critical_ms", 100.0, at_most=True),
    Goal("ready", "SMP, ready", "p50_ms", 2.5, _over("one bare GET"), at_most=True),
    Goal("control", "box-key", "p50_ms", 0.3, at_most=True),
    Goal("idle", "smpd", "rss_mib", 60.0, at_most=True),
    Goal("idle", "smpd", "wakeups_s", 1.0, at_most=True),
    Goal("memory", "16 GiB", "peak_mib", 1.05, _over("1 GiB"), at_most=True),
)


def judge(loads: Sequence[LoadResult], goals: Sequence[Goal] = GOALS) -> list[GoalResult]:
    """What came of each goal whose load was run.

    A goal is missed when its own contestant has no sample, and not judged when only the other has none.
    """
    found = {load.name: load for load in loads}
    return [_judged(goal, found[goal.load]) for goal in goals if goal.load in found]


def _judged(goal: Goal, load: LoadResult) -> GoalResult:
    bound = f"{'≤' if goal.at_most else '≥'} {goal.bound:g}"
    mine = load.find(goal.mine)
    if mine is None or not mine.samples:
        trouble = mine.trouble if mine else "did not run"
        return GoalResult(goal.load, goal.text, bound, None, trouble, met=False)
    for name, _ in goal.over:
        other = load.find(name)
        if other is None or not other.samples:
            trouble = f"{name}: {other.trouble if other else 'did not run'}"
            return GoalResult(goal.load, goal.text, bound, None, trouble, met=None)
    values = spread(list(_values(goal, mine, load)))
    assert values is not None
    return GoalResult(goal.load, goal.text, bound, values.median, values.format(), goal.met_by(values.median))


def _values(goal: Goal, mine: Contested, load: LoadResult) -> Iterator[float]:
    """One value for each round."""
    figures = mine.figures(goal.figure)
    if not goal.over:
        yield from figures
        return
    others = []
    for name, factor in goal.over:
        other = load.find(name)
        assert other is not None
        others.append([factor * figure for figure in other.figures(goal.figure)])
    yield from paired(figures, [min(each) for each in zip(*others, strict=False)])
