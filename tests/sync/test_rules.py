"""What a sync wants and where results go: pure functions."""

import contextlib
import posixpath
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sync.world import spec

from smp_proto.errors import UsageError
from smpd.sync.rules import RETRY_BASE_S, RETRY_MAX_S, Rules, retry_delay


@pytest.mark.parametrize(
    ("include", "exclude", "wanted", "left"),
    [
        ([], [], ["in/a", "in/a/b.smp"], []),
        (["*.smp"], [], ["in/a.smp"], ["in/b/a.smp", "in/a.txt"]),
        (["**/*.smp"], [], ["in/a.smp", "in/b/c/a.smp"], ["in/a.txt"]),
        (["ct/**"], [], ["in/ct/a", "in/ct/b/c"], ["in/mr/a", "in/ct"]),
        ([], ["tmp/**", "?.smp"], ["in/aa.smp"], ["in/tmp/x", "in/a.smp"]),
        (["**/*.smp"], ["**/draft-*"], ["in/x/a.smp"], ["in/x/draft-a.smp", "in/draft-a.smp"]),
        (["a[1].smp"], [], ["in/a[1].smp"], ["in/a1.smp"]),
    ],
)
def test_patterns(include, exclude, wanted, left):
    """Of paths below the prefix; a star stays within a step."""
    rules = Rules(spec(include=include, exclude=exclude))
    assert [path for path in wanted + left if rules.wants(path)] == wanted


@pytest.mark.parametrize(
    ("changes", "target"),
    [
        ({"target": "out:r/"}, "out:r/b/c.smp"),
        ({"target": "out:"}, "out:b/c.smp"),
        ({"target": ""}, ""),
        ({"target": "out:r/", "source": "lake:in/b/c.smp"}, "out:r/c.smp"),
        ({"target": "out:r/", "source": "lake:in/b"}, "out:r/b/c.smp"),
        ({"target": "out:r/", "source": "lake:"}, "out:r/in/b/c.smp"),
    ],
)
def test_results_lie_as_their_objects_do(changes, target):
    """Below the target, under the path below the prefix; the job is for one version."""
    rules = Rules(spec(processor="digest", **changes))
    job = rules.job("in/b/c.smp", "pin", sealed=True)
    assert job.target == target
    assert (job.source, job.pin, job.processor) == ("lake:in/b/c.smp", "pin", "digest")


@pytest.mark.parametrize("sealed", [True, False])
def test_no_two_objects_have_one_result(sealed):
    """What is no sealed object has a suffix added, always: no result replaces that of another object."""
    rules = Rules(spec(processor="digest", target="out:r/"))
    targets = [
        rules.job(path, "pin", sealed=sealed).target for path in ("in/a", "in/a.smp", "in/a.tif", "in/a.tif.smp")
    ]
    added = "" if sealed else ".smp"
    assert targets == [f"out:r/{name}{added}" for name in ("a", "a.smp", "a.tif", "a.tif.smp")]


@given(st.sampled_from(["in/", "in/da", "in", ""]), st.lists(st.text("ad/", max_size=6), unique=True, max_size=20))
def test_whatever_objects_are_called(prefix, names):
    """Where the target is a folder ``r//a`` is ``r/a``: an object that would have such a name is refused."""
    rules = Rules(spec(source=f"lake:{prefix}", processor="digest", target="out:r/"))
    targets = []
    for name in names:
        with contextlib.suppress(UsageError):
            targets.append(rules.job(f"{prefix}{name}", "pin", sealed=True).target)
    assert len({posixpath.normpath(target) for target in targets}) == len(targets)


def test_an_empty_step_names_no_result():
    """It says what to do; without a target there is nothing to name."""
    with pytest.raises(UsageError, match="empty step"):
        Rules(spec(processor="digest", target="out:r/")).job("in//a", "pin", sealed=True)
    assert Rules(spec()).job("in//a", "pin", sealed=True).source == "lake:in//a"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"target": "out:r/"}, "processor"),
        ({"processor": "digest", "target": "out:r"}, "no prefix"),
        ({"processor": "digest", "target": "lake:in/results/"}, "own results"),
        ({"processor": "digest", "target": "lake:r/", "source": "lake:"}, "own results"),
        ({"source": "lake:../x"}, "step"),
        ({"events": "q"}, "URL of a queue"),
        ({"events": "https://a b"}, "URL of a queue"),
        ({"after": "move"}, "takes a prefix"),
        ({"moved_to": "old/"}, "takes a prefix"),
        ({"after": "move", "moved_to": "old"}, "no prefix"),
        ({"after": "move", "moved_to": "../old/"}, "step"),
        ({"after": "move", "moved_to": "in/old/"}, "find again"),
        ({"after": "move", "moved_to": "old/", "source": "lake:"}, "find again"),
        ({"after": "move", "moved_to": "r/", "processor": "digest", "target": "lake:r/"}, "among the results"),
        ({"after": "move", "moved_to": "r/old/", "processor": "digest", "target": "lake:r/"}, "among the results"),
        ({"every_s": 0.5}, "every second to every day"),
        ({"every_s": float("nan")}, "every second to every day"),
        ({"max_in_flight": 0}, "1 to 256"),
    ],
)
def test_what_cannot_work_is_refused(changes, why):
    """Before anything is kept."""
    with pytest.raises(UsageError, match=why):
        Rules(spec(**changes))


@given(st.text("ab./", min_size=1, max_size=12), st.text(max_size=8), st.text(max_size=8))
def test_where_a_moved_object_goes(inside, pin, other):
    """Below the prefix; the second name is another one, in the same folder, of this version alone."""
    rules = Rules(spec(after="move", moved_to="old/"))
    plain, own = rules.moved_to(f"in/{inside}", pin)
    assert plain.startswith("old/")
    assert own.rpartition("/")[0] == plain.rpartition("/")[0]
    assert own != plain
    assert (rules.moved_to(f"in/{inside}", other)[1] == own) == (pin == other)


@given(st.integers(1, 10_000), st.integers())
def test_a_failure_waits_longer_each_time(tries, seed):
    """Between half and the whole of a ceiling that doubles up to an hour."""
    delay = retry_delay(tries, random.Random(seed))
    ceiling = min(RETRY_MAX_S, RETRY_BASE_S * 2 ** min(tries - 1, 16))
    assert ceiling / 2 <= delay <= ceiling
