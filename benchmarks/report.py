"""Writes tables and charts of a run into ``docs/``: the page is written by hand, what stands between marks is not."""

import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.charts import bar_chart
from benchmarks.results import ROOT, Run
from benchmarks.tables import goals_table, load_table, machine_lines, peers_line

PAGE = ROOT / "docs" / "performance.md"
CHARTS = ROOT / "docs" / "performance"


def sections(run: Run, suite: str = "") -> dict[str, str]:
    """The text between each pair of marks: ``machine``, ``goals``, and one for each load.

    Args:
        suite: begins the first two names, for loads that run on a machine of their own.
    """
    found = {f"{suite}machine": machine_lines(run), f"{suite}goals": goals_table(run.goals)}
    for load in run.loads:
        found[load.name] = "\n\n".join(part for part in (load_table(load), peers_line(load), load.note) if part)
    return found


def text(run: Run) -> Iterator[str]:
    """All of a run, for a terminal."""
    parts = sections(run)
    yield parts["machine"]
    for load in run.loads:
        yield f"\n## {load.title}\n\n{parts[load.name]}"
    yield f"\n## goals\n\n{parts['goals']}"


def fill(page: str, parts: dict[str, str]) -> str:
    """A page with what stands between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->`` replaced.

    Raises:
        ValueError: a part has no marks on the page.
    """
    for name, part in parts.items():
        begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        filled = f"{begin}\n{part}\n{end}".replace("\\", r"\\")  # a backslash means something to re
        page, count = pattern.subn(filled, page)
        if count != 1:
            raise ValueError(f"the page has {count} places for {name}")
    return page


def publish(run: Run, page: Path = PAGE, charts: Path = CHARTS, *, suite: str = "", whole: bool = True) -> None:
    """Rewrite the page's tables, and the charts of those loads that have samples.

    Args:
        whole: the run has all loads. Else the page's machine and goals stay, which are those of such a run.

    Raises:
        ValueError: see :func:`fill`.
    """
    parts = sections(run, suite)
    if not whole:
        parts = {load.name: parts[load.name] for load in run.loads}
    page.write_text(fill(page.read_text(), parts))
    charts.mkdir(exist_ok=True)
    for load in run.loads:
        if any(each.samples for each in load.contested):
            (charts / f"{load.name}.svg").write_text(bar_chart(load))
