"""Patterns of paths: what they match, by the standard library and by regular expressions, and in a time that nobody chooses."""

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_proto.errors import UsageError
from smpd.sync.patterns import _PARTS, _expression, _States, pattern


@given(st.text("ab.*?", min_size=1, max_size=8), st.text("ab.", max_size=8))
def test_a_pattern_without_slashes_is_as_fnmatch_says(glob, path):
    """Where no step is crossed the standard library agrees."""
    if "**" not in glob:
        assert pattern(glob)(path) == fnmatch.fnmatchcase(path, glob)


@given(st.text("ab/*?", min_size=1, max_size=10), st.text("ab/", max_size=10))
def test_both_ways_to_match_agree(glob, path):
    """The regular expression is what a pattern means; with many stars it is only too slow."""
    parts = [part for part in _PARTS.split(glob) if part]
    meant = re.fullmatch("".join(map(_expression, parts)), path, re.DOTALL) is not None
    assert _States(parts).match(path) == meant == pattern(glob)(path)


@pytest.mark.parametrize(
    ("glob", "path"),
    [
        ("*a" * 12 + "b", "a" * 200),
        ("*1*2*.*.*.*.*.*.dcm", "1.2." * 250),
        ("**/*a*a*a*a*a*a*", "b" * 1000),
        ("**/" * 341 + "x", "a/" * 512),
    ],
)
def test_no_pattern_takes_long(glob, path):
    """A regular expression tries more ways than can be waited for."""
    assert not pattern(glob)(path)


@given(st.text(min_size=1, max_size=20))
def test_any_text_is_a_pattern(glob):
    """Without wildcards it matches itself alone."""
    found = pattern(glob)
    if not set(glob) & {"*", "?"}:
        assert found(glob)
        assert not found(glob + "x")


@pytest.mark.parametrize("glob", ["", "x" * 1025])
def test_what_is_no_pattern(glob):
    """Refused with an example."""
    with pytest.raises(UsageError, match="pattern"):
        pattern(glob)
