"""Every target over its seeds and some mutations of them, and that the table fits the corpus."""

import random

import pytest

from fuzz.mutate import inputs
from fuzz.targets import CORPUS, TARGETS, Found, Target


@pytest.mark.parametrize("target", TARGETS, ids=lambda each: each.name)
def test_only_what_is_allowed(target: Target) -> None:
    """Seeds, and mutations of them, give no error that the parser does not document."""
    run = target.checked()
    for data in inputs(random.Random(target.name), target.seeds(), 200):
        run(data)


def test_every_seed_has_a_target():
    """And every target has seeds, none of them large."""
    assert {path.name for path in CORPUS.iterdir()} == {target.name for target in TARGETS}
    for path in CORPUS.rglob("*/*"):
        assert 0 < path.stat().st_size <= 6000, path


def test_what_is_not_allowed_is_found():
    """Another error, and the right one with another code."""

    def broken():
        from smp_proto.errors import UsageError

        def parse(data: bytes) -> None:
            if data == b"k":
                raise KeyError("k")
            raise UsageError("bad_name", "n")

        return parse

    with pytest.raises(Found, match="KeyError"):
        Target("x", broken, {"ValueError": "", "UsageError": "bad_name"}).checked()(b"k")
    Target("x", broken, {"UsageError": "bad_name"}).checked()(b"n")
    with pytest.raises(Found, match="bad_name"):
        Target("x", broken, {"UsageError": "bad_request"}).checked()(b"n")
