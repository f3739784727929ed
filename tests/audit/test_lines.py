"""The lines of several records that were made as one: each is the one line that the record by itself has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_proto.audit.record import MAX_LINE_BYTES, SEQ_MAX, AuditRecord, encode_line, encode_lines, parse_line
from smp_proto.errors import UsageError

_SUBJECTS = st.lists(st.one_of(st.just(""), st.text("0123456789abcdef", min_size=64, max_size=64)), max_size=6)
_FIELDS = st.dictionaries(
    st.from_regex(r"\A[a-z][a-z0-9_]{0,31}\Z"), st.one_of(st.text(max_size=20), st.integers(-9, 9), st.booleans())
)


def record(seq: int = 5, fields: dict[str, str | int | bool] | None = None) -> AuditRecord:
    time = "2026-11-27T01:02:03.000004Z"
    return AuditRecord(seq, time, "object.open", "ann(1)", "j" * 16, "", "", fields or {}, "")


@given(_SUBJECTS, st.integers(0, 2**40), _FIELDS)
def test_they_are_those_of_each_by_itself(subjects, seq, fields):
    """Number and subject go on, all else is the same; each line reads back."""
    first = record(seq, dict(list(fields.items())[:16]))
    lines = encode_lines(first, subjects)
    found = [parse_line(line) for line in lines]
    assert [encode_line(each) for each in found] == lines
    assert [(each.seq, each.subject) for each in found] == list(enumerate(subjects, seq))
    assert all((each.event, each.actor, each.fields) == (first.event, first.actor, first.fields) for each in found)


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("subject", ["a" * 63, "A" * 64, "a" * 64 + "\n", "patient"])
def test_a_subject_that_is_no_pseudonym_is_refused_wherever_it_is(at, subject):
    """Whatever its place among the others."""
    subjects = ["", "", ""]
    subjects[at] = subject
    with pytest.raises(UsageError):
        encode_lines(record(), subjects)


def test_a_number_or_a_length_out_of_bounds_is_refused_in_the_middle():
    """Of the second line, where the first fitted."""
    with pytest.raises(UsageError):
        encode_lines(record(SEQ_MAX), ["", ""])
    assert len(encode_lines(record(SEQ_MAX), [""])) == 1
    with pytest.raises(UsageError):
        encode_lines(record(fields={"Wrong": 1}), ["", ""])
    assert len(encode_line(record())) < MAX_LINE_BYTES
