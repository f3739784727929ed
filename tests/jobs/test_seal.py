"""Sealing of small blobs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_proto.errors import IntegrityError
from smpd.jobs.seal import StateSeal

SEAL = StateSeal(bytearray(range(32)))


@given(st.binary(max_size=300), st.text(st.characters(codec="utf-8")))
def test_open_gives_what_was_sealed(plain: bytes, context: str) -> None:
    """Sealing and opening under the same context is the identity, and adds 28 bytes."""
    blob = SEAL.seal(plain, context)
    assert plain == SEAL.open(blob, context)
    assert len(plain) + 28 == len(blob)


@given(st.binary(max_size=50), st.data())
def test_any_flipped_bit_is_refused(plain: bytes, data: st.DataObject) -> None:
    """One changed bit, a cut, or another context does not open."""
    blob = bytearray(SEAL.seal(plain, "row 1"))
    bit = data.draw(st.integers(0, len(blob) * 8 - 1))
    blob[bit // 8] ^= 1 << bit % 8
    for bad, context in ((bytes(blob), "row 1"), (SEAL.seal(plain, "row 1"), "row 2"), (bytes(blob[:27]), "row 1")):
        with pytest.raises(IntegrityError) as caught:
            SEAL.open(bad, context)
        assert caught.value.code == "corrupt"


def test_other_key_opens_nothing() -> None:
    """A blob of one state directory does not open in another; nor does its digest match."""
    other = StateSeal(bytearray(32))
    with pytest.raises(IntegrityError):
        other.open(SEAL.seal(b"x", "c"), "c")
    assert SEAL.digest("a") != other.digest("a")


def test_digest_keeps_parts_apart() -> None:
    """Parts are not simply joined."""
    assert SEAL.digest("ab", "c") != SEAL.digest("a", "bc")
    assert SEAL.digest("ab", "c") == SEAL.digest("ab", "c")


def test_wipe_and_repr() -> None:
    """The repr shows nothing, and after wiping nothing opens."""
    key = bytearray(range(32))
    seal = StateSeal(key)
    blob = seal.seal(b"x", "c")
    assert repr(seal) == "<StateSeal>"
    seal.wipe()
    with pytest.raises(IntegrityError):
        seal.open(blob, "c")
    with pytest.raises(ValueError, match="32 bytes"):
        StateSeal(bytearray(16))
