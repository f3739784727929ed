"""``make bench``: run the loads, write JSON, print tables, judge the goals; ``--report`` writes a run into docs/."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks import report, results
from benchmarks.bench import Load, bench
from benchmarks.goals import GOALS, Goal, judge
from benchmarks.loads import LOADS
from benchmarks.runner import run_load, select


def main() -> int:
    """All loads that need no GPU."""
    return run(LOADS, GOALS, sys.argv[1:])


def run(loads: Sequence[Load], goals: Sequence[Goal], arguments: Sequence[str], suite: str = "") -> int:
    """Run; 1 when a goal is missed, whatever else came out is written all the same.

    Args:
        suite: names the marks of these loads on the page, see :func:`benchmarks.report.sections`.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="names of loads, with commas between")
    parser.add_argument("--quick", action="store_true", help="small sizes, which prove that everything runs")
    parser.add_argument("--out", type=Path, default=results.ROOT / "build" / "bench")
    parser.add_argument("--report", type=Path, nargs="+", metavar="JSON", help="write these runs into docs/")
    options = parser.parse_args(arguments)
    if options.report:
        try:
            found = results.merge([results.load(path) for path in options.report])
            found.goals = judge(found.loads, goals)
            report.publish(
                found, suite=suite, whole={load.name for load in loads} <= {load.name for load in found.loads}
            )
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            parser.error(f"cannot report {' '.join(map(str, options.report))}: {error}")
        return 0
    try:
        loads = select(loads, options.only)
    except ValueError as error:
        parser.error(str(error))
    # Servers and daemons are ours to end, also when we are asked to.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found = results.new_run(quick=options.quick, rounds=options.rounds)
    try:
        with bench(quick=options.quick) as place:
            for load in loads:
                _say(f"{load.name}: {load.title}")
                found.loads.append(run_load(load, place, options.rounds, _say))
    finally:  # what has been measured is kept, whatever comes
        found.goals = judge(found.loads, goals)
        path = results.save(found, options.out)
    print(*report.text(found), sep="\n")
    print(f"\n{path}")
    # With small sizes fixed costs are all there is: goals are shown, and mean nothing.
    return 1 if any(goal.met is False for goal in found.goals) and not options.quick else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
