"""The dashboard and the alert rules: they name what smpd has, and are what promtool takes."""

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from smpd.metrics.catalog import FAMILIES

DOCS = Path(__file__).parents[2] / "docs"
RULES = DOCS / "prometheus" / "alerts.yml"
BOARD = (DOCS / "grafana" / "smp.json").read_text()
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")


def expressions() -> list[str]:
    """Every query of the dashboard."""
    return [target["expr"] for panel in json.loads(BOARD)["panels"] for target in panel.get("targets", [])]


def promtool(*arguments: object) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", [BOARD, RULES.read_text()], ids=["dashboard", "alerts"])
def test_they_name_what_there_is(text: str) -> None:
    """Each metric is of the catalog, a histogram by one of its series, and each label that is asked for is one of its."""
    series = {
        name + suffix: family
        for name, family in FAMILIES.items()
        for suffix in (("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",))
    }
    named = set(re.findall(r"\bsmp_[a-z_]+", text))
    assert named - set(series) == set()
    assert len(named) > 10
    for name, chosen in re.findall(r"\b(smp_[a-z_]+)\{([^}]*)\}", text):
        labels = set(re.findall(r"([a-z]+)\s*(?:=|!=|=~|!~)\s*\\?\"", chosen))
        assert labels <= {*series[name].labels, "instance"}, name


def test_the_dashboard_is_fresh() -> None:
    """It is what its script writes: python docs/render_dashboard.py."""
    assert runpy.run_path(str(DOCS / "render_dashboard.py"))["render"]() == BOARD


def test_panels_lie_beside_each_other() -> None:
    """No two of the dashboard overlap, and each has a number of its own."""
    panels = json.loads(BOARD)["panels"]
    taken = [
        (x, y)
        for each in (panel["gridPos"] for panel in panels)
        for x in range(each["x"], each["x"] + each["w"])
        for y in range(each["y"], each["y"] + each["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


@needs_promtool
def test_promtool_takes_the_rules() -> None:
    """It finds nothing to say."""
    promtool("check", "rules", "--lint-fatal", RULES)


@needs_promtool
def test_alerts_fire_for_what_they_are_about(tmp_path: Path) -> None:
    """They do, and not before; an alert that waits for a sync lets one be that is paused."""
    cases = (Path(__file__).parent / "alerts.yml").read_text()
    (tmp_path / "cases.yml").write_text(cases.replace("RULES", str(RULES)))
    promtool("test", "rules", tmp_path / "cases.yml")


@needs_promtool
def test_queries_of_the_dashboard_are_queries(tmp_path: Path) -> None:
    """Each parses; Grafana's variable stands for any instance."""
    rules = [{"record": f"q{n}", "expr": expr.replace("$instance", ".*")} for n, expr in enumerate(expressions())]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yml")


def test_the_picture_is_of_this_dashboard() -> None:
    """It has each row and each panel by name; make capture draws it anew."""
    picture = ElementTree.parse(DOCS / "grafana" / "panels.svg")
    shown = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {panel["title"] for panel in json.loads(BOARD)["panels"]} <= set(shown)
    assert "not by Grafana" in str(shown[-1])
