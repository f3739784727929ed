"""The harness itself: what it counts, what it keeps, and that a run can be had again."""

import contextlib
import socket
from urllib.parse import urlsplit

import pytest
from counting_s3 import counting_s3

from smp_proto.control import S3Config
from torture import report
from torture.experiments import EXPERIMENTS, select
from torture.harness import Experiment, Trials, perform, replaced


def experiment(run, **more) -> Experiment:
    return Experiment("R1", "a title", "it holds", 10, 3, run, **more)


def test_all_trials_are_counted(tmp_path):
    """What holds is tried as often as was asked, and is good."""

    def run(trials: Trials) -> None:
        for trial in trials:
            with trial:
                assert trial.folder.is_dir()
        trials.figures["seen"] = len(trials)

    row = perform(experiment(run), 7, 1, tmp_path)
    assert (row.tried, row.wanted, row.failed, row.good) == (7, 7, 0, True)
    assert row.figures == {"seen": 7}


def test_a_failed_trial_does_not_end_the_others(tmp_path):
    """It is kept with its number, what was raised and where."""

    def run(trials: Trials) -> None:
        for trial in trials:
            with trial:
                assert trial.number != 2, "two"

    row = perform(experiment(run), 5, 1, tmp_path)
    assert (row.tried, row.failed, row.good) == (5, 1, False)
    assert row.failures[0].trial == 2
    assert "two" in row.failures[0].what
    assert "test_harness.py" in row.failures[0].where


@pytest.mark.parametrize("stop", [True, False])
def test_a_run_that_ends_early_has_failed(tmp_path, stop):
    """Whether it says why or not."""

    def run(trials: Trials) -> None:
        for trial in trials:
            with trial:
                pass
            if stop:
                raise OSError("the set-up")
            break

    row = perform(experiment(run), 5, 1, tmp_path)
    assert not row.good
    assert row.failures[0].trial == -1


def test_nothing_tried_is_not_good(tmp_path):
    """An experiment that does nothing has not held."""
    assert not perform(experiment(lambda trials: None), 0, 1, tmp_path).good


def test_one_that_cannot_be_run_says_why(tmp_path):
    """And is not good either."""
    row = perform(experiment(lambda trials: None, missing=lambda: "no moon"), 5, 1, tmp_path)
    assert (row.skipped, row.good) == ("no moon", False)
    assert "not run: no moon" in report.line(row)


def test_a_trial_can_be_had_again(tmp_path):
    """Its randomness depends on the seed and its number alone."""
    seen: list[list[int]] = []

    def run(trials: Trials) -> None:
        seen.append([])
        for trial in trials:
            with trial:
                seen[-1].append(trial.rng.randrange(1 << 60))

    perform(experiment(run), 4, 9, tmp_path / "a")
    perform(experiment(run), 4, 9, tmp_path / "b", only=2)
    perform(experiment(run), 4, 10, tmp_path / "c")
    assert seen[1] == [seen[0][2]]
    assert not set(seen[2]) & set(seen[0])


def test_a_fault_is_taken_out_again():
    """Also after an exception."""
    with contextlib.suppress(KeyError), replaced(report, "ROOT", "elsewhere"):
        assert report.ROOT == "elsewhere"
        raise KeyError
    assert report.ROOT != "elsewhere"


def test_a_run_is_kept_and_shown(tmp_path, monkeypatch):
    """The page gets the last row of each experiment, and takes no run of a few trials."""

    def run(trials: Trials) -> None:
        for trial in trials:
            with trial:
                assert trial.number

    found = report.new_run(full=True)
    found.rows.append(perform(experiment(run), 10, 77, tmp_path / "x"))
    again = report.load(report.save(found, tmp_path / "out"))
    assert again == found
    assert "| R1 | a title | it holds | 10 | 1 | 77 |" in report.table([again])
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- torture -->\nearlier\n<!-- /torture -->\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    report.publish([again])
    assert "earlier" not in page.read_text()
    assert page.read_text().endswith("after\n")
    again.full = False
    with pytest.raises(ValueError, match="full count"):
        report.publish([again])


def test_each_experiment_is_written_once():
    """They are found by number, in order, and each can be chosen."""
    assert [each.id for each in select("")] == [each.id for each in EXPERIMENTS]
    assert len({each.id for each in EXPERIMENTS}) == len(EXPERIMENTS)
    with pytest.raises(ValueError, match="R99"):
        select("r99")


def test_the_store_keeps_nothing_of_a_body_that_was_cut_off() -> None:
    """A client that is killed in the middle of a PUT leaves no object, as at a real store."""
    with counting_s3() as (store, served):
        assert isinstance(served.config, S3Config)
        where = urlsplit(served.config.endpoint)
        assert where.hostname
        assert where.port
        with socket.create_connection((where.hostname, where.port), 20) as sock:
            sock.sendall(b"PUT /scans/x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nshort")
            sock.shutdown(socket.SHUT_WR)
            assert not sock.recv(1)  # closed without an answer
        assert not store.objects
