"""Processors that go wrong, and requests for them that make no sense: one job is lost, and nothing is delivered."""

import msgspec
import pytest
from refusals import MARK, PATIENT, Bench

ENDS_ITS_PROCESS = {"hangs", "spins", "crashes", "busy"}


def run(bench: Bench, name: str, *more: str, code: str, about: str = "") -> str:
    """Run one over the good object, once to a remote and once to be exported; returns message and hint."""
    arguments = ["run", f"wrong.{name}", "s3:good.smp", *more]
    view = bench.refuse(*arguments, "--to", "disk:results/", code=code, about=about or f"wrong.{name}")
    assert bench.spool_of(view, ".out") == []
    if name not in ENDS_ITS_PROCESS:
        view = bench.refuse(*arguments, "--export", bench.folder / "out", code=code, about=about or f"wrong.{name}")
    assert view.error
    text = view.error.message + view.error.hint
    assert MARK not in text.encode("latin-1", "replace")
    assert PATIENT not in text
    return text


def test_one_that_raises(bench: Bench) -> None:
    """An exception costs the job; where it was raised is told, its text is not, since it may quote a patient."""
    assert "ValueError at smp_wrong.py:" in run(bench, "raises", code="processor_failed")
    run(bench, "late", code="processor_failed")


def test_one_that_refuses(bench: Bench) -> None:
    """Words of its own are passed on."""
    assert "there is no lung in this" in run(bench, "refuses", code="processor_failed")


@pytest.mark.parametrize("name", ["hangs", "spins"])
def test_one_that_does_not_end(bench: Bench, name: str) -> None:
    """Past compute.timeout_s its process is ended, also when it never lets go of the interpreter; others go on."""
    assert "compute.timeout_s" in run(bench, name, code="processor_timeout")
    bench.processes("wrong.none")


@pytest.mark.parametrize("name", ["name", "twice", "folds", "below", "separator", "type", "data", "attributes"])
def test_nonsense(bench: Bench, name: str) -> None:
    """A result that is none, or that could not be opened safely by a person, is refused whole."""
    run(bench, name, code="processor_output", about="processor")


def test_one_whose_result_is_refused_while_it_works_on(bench: Bench) -> None:
    """The next run neither finds its process busy nor has to be tried twice."""
    run(bench, "busy", code="processor_output", about="processor")
    view = bench.processes("wrong.none")
    assert view.attempt == 1


def test_one_that_crashes(bench: Bench) -> None:
    """A segmentation fault ends its process and the job, after the retries that a dead process gets."""
    view = bench.refuse(
        "run", "wrong.crashes", "s3:good.smp", "--to", "disk:results/", code="worker_died", about="wrong.crashes"
    )
    assert view.attempt == 2
    bench.processes("wrong.none")


def test_one_that_takes_all_memory(bench: Bench) -> None:
    """It meets its limit, and the box does not notice."""
    run(bench, "memory", code="device_memory")
    bench.processes("wrong.none")


def test_one_that_leaks(bench: Bench) -> None:
    """Its process is replaced before it is at its limit; every job is done, and it is told."""
    recycled = '{distribution="smp-wrong",reason="leak"} 1'
    for _ in range(8):
        bench.processes("wrong.leaks")
        text = bench.box.ctl("metrics", "print").stdout.decode()
        if recycled in text:
            break
    assert f"smp_compute_recycled_total{recycled}" in text
    (told,) = [each.text for each in bench.client.doctor() if "for what it kept" in each.text]
    assert "replaced 1 times" in told
    bench.processes("wrong.none")


def test_one_that_takes_no_such_entry(bench: Bench) -> None:
    """None of the entries is of a kind that it takes."""
    assert "text/plain" in run(bench, "text", code="processor_input")


@pytest.mark.parametrize(
    ("parameter", "words"),
    [("width=wide", "width"), ("width=[1]", "width"), ("width=1.5", "width"), ("widht=1", "widht"), ("with=", "with")],
)
def test_wrong_parameters(bench: Bench, parameter: str, words: str) -> None:
    """A parameter of another type, or one that there is not: the parameter is named, and what it takes."""
    run = ["run", "wrong.none", "s3:good.smp", "-p", parameter, "--to", "disk:results/"]
    bench.refuse(*run, code="bad_parameter", about=words)


def test_parameters_for_one_that_takes_none(bench: Bench) -> None:
    """The same for a processor without any."""
    bench.refuse("run", "digest", "s3:good.smp", "-p", "a=1", code="bad_parameter", about="'a'")


@pytest.mark.parametrize("name", ["digset", "wrong.nil", "../digest", "", "x" * 3000])
def test_no_such_processor(bench: Bench, name: str) -> None:
    """An unknown processor is refused before there is a job; the nearest one is named."""
    kept, jobs = bench.kept(), len(bench.client.jobs())
    done = bench.box.ctl("run", name, "s3:good.smp", "--export", bench.folder / "out", "--json", check=False)
    error = msgspec.json.decode(done.stdout)["error"]
    assert (error["code"], done.returncode) == ("no_such_processor", 5)
    assert "smpctl processors" in error["hint"]
    assert len(error["message"]) < 300
    assert "did you mean digest" in error["message"] or name != "digset"
    assert (bench.kept(), len(bench.client.jobs())) == (kept, jobs)
