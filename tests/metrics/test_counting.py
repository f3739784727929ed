"""Counting, and the text it becomes, read back by Prometheus' own parser."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from smp_proto.control import MetricFamily, MetricSample
from smpctl.exposition import render
from smpd.metrics.catalog import FAMILIES
from smpd.metrics.counting import Gauge, Metrics, gathered

ROOT = Path(__file__).parents[2]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.floats(allow_nan=False) | st.integers(-(10**18), 10**18).map(float)


def read(text):
    return {family.name: family for family in text_string_to_metric_families(text)}


@given(TEXT.filter(lambda text: text.strip() == text), st.dictionaries(st.sampled_from("abc"), TEXT), NUMBERS)
def test_what_is_rendered_is_read_back(said, labels, value):
    """Help, labels with anything in them, and every number there is."""
    assert value == value
    text = render([MetricFamily("smp_x", "gauge", said, [MetricSample("smp_x", labels, value)])])
    family = read(text)["smp_x"]
    assert (family.documentation, family.type) == (said, "gauge")
    (sample,) = family.samples
    assert (sample.labels, sample.value) == (labels, value)


def test_what_is_no_number():
    """NaN has a name."""
    (sample,) = read(render([MetricFamily("x", "gauge", "", [MetricSample("x", {}, math.nan)])]))["x"].samples
    assert math.isnan(sample.value)


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_a_histogram_holds_each_observation_once(seconds):
    """Each bucket has what is not above its bound; the last one has all; sum and count agree."""
    metrics = Metrics()
    for each in seconds:
        metrics.observe("smp_job_seconds", each, "get")
    families = [family for family in metrics.families({}) if family.name == "smp_job_seconds"]
    if not seconds:
        assert render(families) == ""
        return
    samples = read(render(families))["smp_job_seconds"].samples
    for sample in samples:
        if sample.name == "smp_job_seconds_bucket":
            assert sample.value == sum(each <= float(sample.labels["le"]) for each in seconds)
    by_name = {sample.name: sample.value for sample in samples}
    assert by_name["smp_job_seconds_count"] == len(seconds)
    assert by_name["smp_job_seconds_sum"] == pytest.approx(sum(seconds))


def test_counters_add_up_by_label():
    """Each set of labels is a number of its own; what is looked up comes beside what was counted."""
    metrics = Metrics()
    for code in ("corrupt", "corrupt", "truncated"):
        metrics.count("smp_objects_refused_total", code)
    metrics.set("smp_control_connections", 5)
    metrics.set("smp_control_connections", 3)
    rings = gathered(iter([Gauge("smp_ring_bytes", 2), Gauge("smp_ring_bytes", 3)]))
    found = read(render(metrics.families(rings)))
    assert {each.labels["code"]: each.value for each in found["smp_objects_refused"].samples} == {
        "corrupt": 2,
        "truncated": 1,
    }
    assert found["smp_control_connections"].samples[0].value == 3
    assert found["smp_ring_bytes"].samples[0].value == 5


def test_a_remote_that_is_gone_is_forgotten():
    """Nothing with its name is left, histograms included; others stay."""
    metrics = Metrics()
    for name in ("lake", "ward"):
        metrics.count("smp_remote_requests_total", name, "ok")
        metrics.observe("smp_remote_request_seconds", 1.0, name)
    metrics.forget("remote", "lake")
    text = render(metrics.families({}))
    assert "lake" not in text
    assert text.count('remote="ward"') == 1 + len(FAMILIES["smp_remote_request_seconds"].buckets) + 3


def test_unknown_metrics_cannot_be_counted():
    """A name that the catalog has not, and a label too many, are faults of ours that show."""
    with pytest.raises(KeyError):
        Metrics().count("smp_typo_total")
    metrics = Metrics()
    metrics.count("smp_objects_refused_total", "corrupt", "more")
    with pytest.raises(ValueError, match="zip"):
        list(metrics.families({}))


def test_the_catalog_is_what_the_code_counts():
    """Every metric is set somewhere in the daemon, and nothing else is; each is named and said as is the custom."""
    sources = [path for path in (ROOT / "smpd").rglob("*.py") if path.parent.name != "metrics"]
    used = {name for path in sources for name in re.findall(r'"(smp_[a-z_]+)"', path.read_text())}
    assert used - {"smp_proto"} == set(FAMILIES)
    for name, family in FAMILIES.items():
        assert re.fullmatch(r"smp_[a-z]+(_[a-z]+)*", name)
        assert name.endswith("_total") == (family.kind == "counter")
        assert bool(family.buckets) == (family.kind == "histogram")
        assert list(family.buckets) == sorted(set(family.buckets))
        assert family.help.endswith(".")
    assert len({family.help for family in FAMILIES.values()}) == len(FAMILIES)
