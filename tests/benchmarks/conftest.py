"""Results as a run would leave them."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the benchmarks are no installed package

from benchmarks.results import Contested, LoadResult, Sample  # noqa: E402


@pytest.fixture
def load() -> LoadResult:
    """Three rounds in which the machine slowed down: the ratios are steadier than the rates."""
    ours = [Sample(1.0, bytes=800_000_000, cpu_s=0.5, sent=801_000_000), Sample(2.0, bytes=800_000_000, cpu_s=0.5)]
    ours.append(Sample(4.0, bytes=800_000_000, cpu_s=0.5, peak_rss={"smpd": 3 << 20}))
    curl = [Sample(seconds, bytes=1_000_000_000) for seconds in (1.0, 2.0, 4.0)]
    return LoadResult(
        "http",
        "one < object",
        "gb_s",
        "curl",
        "A note.",
        [
            Contested("SMP", "verified", ours),
            Contested("curl", "discarded", curl),
            Contested("tensorizer", "", trouble="absent: tensorizer is not installed"),
        ],
    )
