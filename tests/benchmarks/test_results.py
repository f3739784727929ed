"""The arithmetic, the goals, and the forms that results take."""

import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest

from benchmarks import __main__ as bench_main
from benchmarks import report, results
from benchmarks.charts import bar_chart
from benchmarks.goals import GOALS, Goal, judge
from benchmarks.loads import LOADS
from benchmarks.runner import select
from benchmarks.stats import paired, percentile, spread
from benchmarks.tables import load_table, peers_line

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def test_spread():
    assert spread([]) is None
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0, 3)
    assert spread([1.0, 2.0]).format(1) == "1.5 (1.0 to 2.0)"
    assert spread([1.0]).format() == "1.00"


def test_ratios_are_taken_within_a_round():
    assert paired([1.0, 4.0, 9.0], [2.0, 0.0, 3.0, 7.0]) == [0.5, 3.0]


@pytest.mark.parametrize(("percent", "found"), [(50, 50), (99, 99), (100, 100), (0.5, 1)])
def test_percentile_is_a_figure_that_was_seen(percent, found):
    assert percentile(list(range(100, 0, -1)), percent) == found


@pytest.mark.parametrize(("figures", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_there_is_no_such_percentile(figures, percent):
    with pytest.raises(ValueError, match="percentile"):
        percentile(figures, percent)


def test_a_goal_is_judged_by_the_median_of_ratios(load):
    [met, missed] = judge([load], [Goal("http", "SMP", "gb_s", b, (("curl", 1.0),)) for b in (0.8, 0.81)])
    assert (met.value, met.met, missed.met) == (pytest.approx(0.8), True, False)
    assert missed.spread == "0.80 (0.80 to 0.80)"


def test_a_goal_over_several_takes_the_least(load):
    [goal] = judge([load], [Goal("http", "SMP", "gb_s", 2.0, (("curl", 0.4), ("curl", 1.0)))])
    assert (goal.value, goal.met) == (pytest.approx(2.0), True)


def test_at_most(load):
    [met, missed] = judge([load], [Goal("http", "SMP", "seconds", b, at_most=True) for b in (2.0, 1.9)])
    assert (met.met, missed.met, missed.bound) == (True, False, "≤ 1.9")


def test_who_is_missing_decides(load):
    """Without a peer a goal is not judged; without ourselves it is missed, and says why."""
    absent, failed = "tensorizer", load.find("SMP")
    goal = Goal("http", "SMP", "gb_s", 3.0, ((absent, 1.0),))
    [found] = judge([load], [goal])
    assert (found.met, found.value, found.spread) == (None, None, "tensorizer: absent: tensorizer is not installed")
    failed.samples, failed.trouble = [], "failed: corrupt"
    [found] = judge([load], [goal])
    assert (found.met, found.spread) == (False, "failed: corrupt")
    assert judge([], [goal]) == []


def test_goals_name_loads():
    assert {goal.load for goal in GOALS} <= {each.name for each in LOADS}
    assert len({each.name for each in LOADS}) == len(LOADS)


def test_select():
    assert [each.name for each in select(LOADS, "idle, http")] == ["idle", "http"]
    assert select(LOADS, "") == list(LOADS)
    with pytest.raises(ValueError, match="no load is called nonsense; there are http"):
        select(LOADS, "http,nonsense")


def test_table(load):
    rows = load_table(load).splitlines()
    assert len({row.count("|") for row in rows}) == 1, "every row has every column"
    assert "0.40 (0.20 to 0.80)" in rows[2]
    assert "1.0012" in rows[2]
    assert rows[4].startswith("| tensorizer | absent: tensorizer is not installed |")
    assert peers_line(load) == "SMP is 0.80 (0.80 to 0.80) x curl."


def test_chart_is_well_formed_and_labelled(load):
    root = ET.fromstring(bar_chart(load))
    text = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"one < object", "SMP", "curl", "GB/s, median and range"} <= set(text)
    assert "tensorizer" not in text
    width = float(root.get("width"))
    bars = [each for each in root.iter("{http://www.w3.org/2000/svg}rect") if each.get("x")]
    assert len(bars) == 2
    assert all(0 < float(bar.get("x")) + float(bar.get("width")) <= width for bar in bars)


def test_json_round_trip(load, tmp_path):
    run = results.new_run(quick=True, rounds=3)
    run.loads, run.goals = [load], judge([load])
    path = results.save(run, tmp_path)
    assert results.load(path) == run == results.load(tmp_path / "latest.json")
    assert run.machine.cores > 0
    assert run.machine.packages["cryptography"]
    for wrong in (b'{"format": 1}', msgspec.json.encode(msgspec.structs.replace(run, format=0))):
        path.write_bytes(wrong)
        with pytest.raises(msgspec.ValidationError):
            results.load(path)


def test_runs_of_one_kind_are_merged(load):
    first, second = (results.new_run(quick=True, rounds=3) for _ in range(2))
    first.loads, second.loads = [load], [msgspec.structs.replace(load, name="https")]
    assert [each.name for each in results.merge([first, second]).loads] == ["http", "https"]
    second.loads = [msgspec.structs.replace(load, title="later")]
    assert [each.title for each in results.merge([first, second]).loads] == ["later"]
    second.commit = "another"
    with pytest.raises(ValueError, match="not of one kind"):
        results.merge([first, second])


def test_report_fills_the_page(load, tmp_path):
    run = results.new_run(quick=False, rounds=3)
    run.loads, run.goals = [load], judge([load])
    page = tmp_path / "page.md"
    page.write_text(
        "".join(f"By hand.\n<!-- bench:{n} -->old<!-- /bench:{n} -->\n" for n in ("machine", "goals", "http"))
    )
    report.publish(run, page, tmp_path / "charts")
    report.publish(run, page, tmp_path / "charts")
    assert page.read_text().count("| SMP | 0.40") == 1
    assert page.read_text().count("By hand.") == 3
    assert "old" not in page.read_text()
    assert (tmp_path / "charts" / "http.svg").exists()
    with pytest.raises(ValueError, match="0 places for nowhere"):
        report.fill("", {"nowhere": ""})


def test_a_run_of_some_loads_leaves_machine_and_goals(load, tmp_path):
    """They are those of the last run that had all."""
    run = results.new_run(quick=False, rounds=3)
    run.loads, run.goals = [load], judge([load])
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- bench:{n} -->old<!-- /bench:{n} -->\n" for n in ("machine", "goals", "http")))
    report.publish(run, page, tmp_path / "charts", whole=False)
    assert page.read_text().count("old") == 2
    assert "| SMP | 0.40" in page.read_text()


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]"])
def test_a_report_of_what_is_no_run_is_one_line(content, tmp_path, capsys):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        bench_main.run(LOADS, GOALS, ["--report", str(path)])
    assert caught.value.code == 2
    assert f"cannot report {path}: " in capsys.readouterr().err


def test_the_page_has_a_place_for_every_load():
    parts = dict.fromkeys(("machine", "goals", *(each.name for each in LOADS)), "")
    assert report.fill(PAGE.read_text(), parts)
