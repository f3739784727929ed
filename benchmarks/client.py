"""``make bench-client``: what a question costs a person who types it.

``smpctl status`` against ``python -c "import msgspec"``, the least that a client of this protocol can be: both as whole
processes, in turn, so that whatever else the machine does falls on both. Prints medians, the ratio of each pair, and
its spread. The daemon is a real smpd of its own, with its state in a temporary folder.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

GOAL = 2.5
FLOOR = [sys.executable, "-c", "import msgspec"]
COMMANDS = {
    "smpctl status": [sys.executable, "-m", "smpctl", "status"],
    "smpctl jobs": [sys.executable, "-m", "smpctl", "jobs"],
    "smpctl --version": [sys.executable, "-m", "smpctl", "--version"],
}


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Wall time of one whole process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    """Run and print; fails when the median ratio of status is over the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    runs = parser.parse_args().runs
    if importlib.util.find_spec("smpd.app") is None:
        print("this needs a daemon: install the extra 'daemon'")
        return 1
    sys.path.insert(0, str(ROOT / "tests"))
    from box import box

    with tempfile.TemporaryDirectory() as folder, box(Path(folder)) as machine:
        environment = machine.env
        for command in (FLOOR, *COMMANDS.values()):  # once for the caches
            seconds(command, environment)
        floor: list[float] = []
        taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for _ in range(runs):
            floor.append(seconds(FLOOR, environment))
            for name, command in COMMANDS.items():
                taken[name].append(seconds(command, environment))
    print(f"{runs} runs in turn, {os.cpu_count()} cores, Python {sys.version.split()[0]}\n")
    print(f"{'process':<20}{'median':>10}{'ratio':>9}   spread of the ratio (5 % to 95 %)")
    print(f"{'import msgspec':<20}{statistics.median(floor) * 1e3:>7.1f} ms")
    met = True
    for name, times in taken.items():
        ratios = sorted(mine / least for mine, least in zip(times, floor, strict=True))
        ratio = statistics.median(ratios)
        low, high = ratios[len(ratios) // 20], ratios[-1 - len(ratios) // 20]
        print(f"{name:<20}{statistics.median(times) * 1e3:>7.1f} ms{ratio:>9.2f}   {low:.2f} to {high:.2f}")
        met = met and (name != "smpctl status" or ratio <= GOAL)
    print(f"\ngoal: smpctl status at most {GOAL} times: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
