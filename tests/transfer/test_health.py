"""When a compute process is replaced for what it keeps: the arithmetic, with memory as it comes and goes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smpd.transfer.health import WARM_RUNS, Health, HealthSettings, Trend

MIB = 1 << 20
READY = 500 * MIB
SETTINGS = HealthSettings(leak_bytes=64 * MIB, leak_runs=8)


def verdicts(settings: HealthSettings, host: list[int], device: list[int] | None = None) -> list[str]:
    health = Health(READY, settings)
    return [health.after_run(READY + each, other) for each, other in zip(host, device or [0] * len(host), strict=True)]


@given(st.lists(st.integers(0, 63 * MIB), max_size=60))
def test_what_comes_and_goes_is_no_leak(noise):
    """However it moves below the least that is called a leak, the process stays."""
    assert set(verdicts(SETTINGS, noise)) <= {""}


@given(st.integers(9 * MIB, 100 * MIB), st.lists(st.integers(0, MIB), min_size=20, max_size=20))
def test_steady_growth_is_one(step, noise):
    """It is seen as soon as all runs that are looked at have grown, and not before."""
    found = verdicts(SETTINGS, [run * step + extra for run, extra in enumerate(noise)])
    first = WARM_RUNS + SETTINGS.leak_runs
    assert found[: first + 1] == [""] * first + ["leak"]


def test_a_cache_that_fills_up_is_none():
    """Much is taken by the first runs, or at once in between; then it stays as it is."""
    assert set(verdicts(SETTINGS, [0, 300 * MIB, *[400 * MIB] * 30])) == {""}
    assert set(verdicts(SETTINGS, [*[MIB] * 10, *[200 * MIB] * 30])) == {""}


def test_a_leak_in_steps():
    """An allocator takes more at three runs of four."""
    host = [(run - run // 4) * 12 * MIB for run in range(30)]
    assert "leak" in verdicts(SETTINGS, host)
    assert set(verdicts(SETTINGS, [run // 2 * 24 * MIB for run in range(30)])) == {""}


def test_of_the_device():
    """Tensors that stay on the device are a leak, too."""
    device = [run * 10 * MIB for run in range(20)]
    assert verdicts(SETTINGS, [0] * 20, device)[10] == "device leak"


@pytest.mark.parametrize(("kept", "found"), [(100 * MIB, "kept"), (0, ""), (200 * MIB, "")])
def test_too_much_at_once(kept, found):
    """More than it may keep after one run; with 0 it may keep all."""
    assert verdicts(HealthSettings(kept_bytes=kept, leak_bytes=0), [150 * MIB]) == [found]


def test_never():
    """With 0 nothing is called a leak."""
    assert set(verdicts(HealthSettings(leak_bytes=0), [run * 100 * MIB for run in range(40)])) == {""}


@given(st.integers(-1000, 1000), st.integers(0, 10**12), st.integers(2, 50))
def test_the_slope_of_a_line(step, start, count):
    """Of what grows evenly it is the step; of one value, and of none, it is zero."""
    trend = Trend(count)
    assert trend.slope == 0
    for index in range(count):
        trend.add(start + index * step)
    assert trend.slope == pytest.approx(step, abs=1e-3)
