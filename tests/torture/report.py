"""What a run leaves: a JSON file with every row, and the table in docs/reliability.md."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from torture.harness import Row

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- torture -->", "<!-- /torture -->"


@dataclass
class Run:
    """Some experiments, run one after the other on one machine; ``full`` when at full count."""

    date: str
    commit: str
    machine: str
    full: bool
    rows: list[Row] = field(default_factory=list)


def new_run(*, full: bool) -> Run:
    """One that begins now."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return Run(time.strftime("%Y-%m-%d"), commit or "unknown", _machine(), full)


def _machine() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"{os.cpu_count()} cores of {model[1] if model else platform.machine()}, {memory:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def save(run: Run, folder: Path) -> Path:
    """Write a run, also as the latest; returns where."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "-".join([run.date, run.commit, *([] if len(run.rows) > 3 else [row.id for row in run.rows])])
    path = folder / f"{name}.json"
    for each in (path, folder / "latest.json"):
        each.write_bytes(msgspec.json.format(msgspec.json.encode(run)))
    return path


def load(path: Path) -> Run:
    """Read what :func:`save` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Run)


def line(row: Row) -> str:
    """A row for the terminal."""
    if row.skipped:
        return f"{row.id:<4} not run: {row.skipped}"
    return f"{row.id:<4} tried {row.tried:>7,}  failed {row.failed:>4}  seed {row.seed:<10}  {row.seconds:7.1f} s  {row.title}"


def table(runs: Sequence[Run]) -> str:
    """The rows of several runs, the last of each experiment, as Markdown."""
    last = {row.id: (run, row) for run in runs for row in run.rows}
    lines = [
        "| | experiment | passes when | tried | failed | seed | seconds | measured on the way |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for _, row in sorted(last.values(), key=lambda each: int(each[1].id[1:])):
        if row.skipped:
            lines.append(f"| {row.id} | {row.title} | {row.passes} | not run: {row.skipped} | | | | |")
            continue
        figures = "; ".join(f"{name}: {value}" for name, value in row.figures.items())
        tried = f"{row.tried:,}" + ("" if row.tried == row.wanted else f" of {row.wanted:,}")
        lines.append(
            f"| {row.id} | {row.title} | {row.passes} | {tried} | {row.failed} | {row.seed} | {row.seconds:,.0f} "
            f"| {figures} |"
        )
    used = list({id(run): run for run, _ in last.values()}.values())
    said = [f"{run.date}, commit {run.commit}: {', '.join(r.id for r in run.rows)}. {run.machine}." for run in used]
    return "\n".join([*lines, "", *said])


def publish(runs: Sequence[Run]) -> None:
    """Write the table into the page, between its marks.

    Raises:
        ValueError: a run was not at full count.
    """
    if not all(run.full for run in runs):
        raise ValueError("only runs at full count belong on the page")
    text = PAGE.read_text()
    start, end = text.index(_BEGIN) + len(_BEGIN), text.index(_END)
    PAGE.write_text(f"{text[:start]}\n{table(runs)}\n{text[end:]}")
