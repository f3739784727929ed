"""Each experiment in its short form, and each of its planted faults, which it has to find."""

import pytest

from torture.experiments import EXPERIMENTS
from torture.harness import Experiment, perform

SEED = 1


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.id)
def test_holds(experiment: Experiment, tmp_path) -> None:
    """No trial fails."""
    row = perform(experiment, experiment.short, SEED, tmp_path)
    if row.skipped:
        pytest.skip(row.skipped)
    assert not row.failures
    assert row.good


@pytest.mark.parametrize(
    ("experiment", "name"), [pytest.param(e, name, id=f"{e.id}-{name}") for e in EXPERIMENTS for name in e.plants]
)
def test_finds_what_is_planted(experiment: Experiment, name: str, tmp_path) -> None:
    """With the fault in place some trial fails, and it is a trial and not the set-up."""
    with experiment.plants[name]():
        row = perform(experiment, experiment.planted_trials, SEED, tmp_path)
    if row.skipped:
        pytest.skip(row.skipped)
    assert [each for each in row.failures if each.trial >= 0], row.failures
    assert not [each for each in row.failures if each.trial < 0], row.failures
