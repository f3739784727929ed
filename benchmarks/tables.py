"""Results as Markdown tables, which a terminal shows as well."""

from collections.abc import Sequence
from statistics import median

from benchmarks.results import Contested, GoalResult, LoadResult, Run
from benchmarks.stats import paired, spread

UNITS = {
    "gb_s": "GB/s",
    "objects_s": "objects/s",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "rss_mib": "RSS, MiB",
    "wakeups_s": "wake-ups/s",
    "peak_mib": "peak of all, MiB",
    "queued": "queued then",
    "critical_ms": "critical job running after, ms",
}
MIB = 1 << 20
_DIGITS = {"objects_s": 0, "rss_mib": 1, "peak_mib": 0, "p50_ms": 3}


def load_table(load: LoadResult) -> str:
    """Everyone who took part in one load, and who could not."""
    ceiling = load.find(load.ceiling)
    head = ["", UNITS[load.unit]]
    samples = [sample for each in load.contested for sample in each.samples]
    head += ["GB per CPU-s"] if any(sample.bytes and sample.cpu_s for sample in samples) else []
    head += [f"ratio to {load.ceiling}"] if load.ceiling else []
    extra = list(dict.fromkeys(name for sample in samples for name in sample.figures))
    extra = [name for name in extra if name != load.unit]
    head += [UNITS.get(name, name) for name in extra]
    head += ["sent / payload", "requests per object", "peak memory, MiB", "ends as"]
    rows = []
    for each in load.contested:
        if not each.samples:
            rows.append([each.name, each.trouble] + [""] * (len(head) - 3) + [each.ends_as])
            continue
        row = [each.name, _spread(each, load.unit, _DIGITS.get(load.unit, 2))]
        row += [_spread(each, "gb_cpu_s")] if "GB per CPU-s" in head else []
        row += [_ratio(each, ceiling, load.unit)] if load.ceiling else []
        row += [_spread(each, name) if name in each.samples[0].figures else "" for name in extra]
        rows.append([*row, _sent(each), _requests(each), _peaks(each), each.ends_as])
    return _markdown(head, rows)


def peers_line(load: LoadResult) -> str:
    """How many times the first contestant's figure is each other's."""
    first, *others = load.contested
    ratios = [
        f"{_ratio(first, other, load.unit)} x {other.name}" for other in others if other.samples and first.samples
    ]
    return f"{first.name} is " + ", ".join(ratios) + "." if ratios else ""


def goals_table(goals: Sequence[GoalResult]) -> str:
    """The goals, met and missed."""
    words = {True: "met", False: "**MISSED**", None: "not measured"}
    return _markdown(
        ["load", "goal", "bound", "measured", ""],
        [[goal.load, goal.text, goal.bound, goal.spread, words[goal.met]] for goal in goals],
    )


def machine_lines(run: Run) -> str:
    """Where and when, in two sentences."""
    m = run.machine
    programs = ", ".join(m.programs.values())
    packages = ", ".join(f"{name} {version}" for name, version in m.packages.items())
    return (
        f"{run.date[:10]}, commit {run.commit}, {run.rounds} rounds{', QUICK sizes' if run.quick else ''}: "
        f"{m.cores} cores of {m.cpu}, {m.memory_bytes / 2**30:.0f} GiB, Linux {m.kernel}, Python {m.python}. "
        f"{programs}; {packages}."
    )


def _spread(each: Contested, figure: str, digits: int = 2) -> str:
    found = spread(each.figures(figure))
    return found.format(digits) if found else ""


def _ratio(each: Contested, other: Contested | None, figure: str) -> str:
    found = spread(paired(each.figures(figure), other.figures(figure))) if other else None
    return found.format() if found else ""


def _sent(each: Contested) -> str:
    ratios = [sample.sent / sample.bytes for sample in each.samples if sample.bytes and sample.sent]
    return f"{median(ratios):.4f}" if ratios else ""


def _requests(each: Contested) -> str:
    counts = [sample.requests / sample.objects for sample in each.samples if sample.objects and sample.requests]
    if not counts:
        return ""
    count = median(counts)
    return f"{count:.0f}" if count >= 100 else f"{count:.3g}"


def _peaks(each: Contested) -> str:
    peaks = max((sample.peak_rss for sample in each.samples), key=lambda found: sum(found.values()))
    return ", ".join(f"{role} {peak / MIB:.0f}" for role, peak in peaks.items())


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
