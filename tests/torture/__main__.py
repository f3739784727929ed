"""``make torture``: run the experiments, print a line for each, write a report; ``--report`` writes it into docs/."""

import argparse
import secrets
import signal
import sys
import tempfile
from pathlib import Path

from torture import report
from torture.experiments import EXPERIMENTS, select
from torture.harness import Row, perform


def main() -> int:
    """1 when anything failed, 0 otherwise."""
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--only", default="", help="experiments, with commas between: R3,R9")
    parser.add_argument("--seed", type=int, help="as printed by a run that failed")
    parser.add_argument("--trials", type=int, help="so many of each, instead of the full count")
    parser.add_argument("--trial", type=int, help="this one trial only, as printed by a run that failed")
    parser.add_argument("--out", type=Path, default=report.ROOT / "build" / "torture")
    parser.add_argument("--report", type=Path, nargs="+", metavar="JSON", help="write these runs into docs/")
    options = parser.parse_args()
    if options.report:
        report.publish([report.load(path) for path in options.report])
        return 0
    try:
        chosen = select(options.only)
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seed = options.seed if options.seed is not None else secrets.randbits(32)
    found = report.new_run(full=options.trials is None and options.trial is None)
    path = options.out
    try:
        for experiment in chosen:
            with tempfile.TemporaryDirectory(prefix="smp-torture-", ignore_cleanup_errors=True) as folder:
                row = perform(experiment, options.trials or experiment.trials, seed, Path(folder), options.trial)
            found.rows.append(row)
            _show(row)
            path = report.save(found, options.out)
    finally:
        print(f"{len(found.rows)} of {len(EXPERIMENTS)} experiments; {path}")
    return 1 if any(row.failures for row in found.rows) else 0


def _show(row: Row) -> None:
    print(report.line(row), flush=True)
    for failure in row.failures[:5]:
        print(f"     trial {failure.trial}: {failure.what}\n       at {failure.where}", flush=True)
    if row.failures:
        print(f"     again: make torture ONLY={row.id} SEED={row.seed} TRIAL={row.failures[0].trial}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
