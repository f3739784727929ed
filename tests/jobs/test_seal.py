"""Sealing of small blobs."""

import subprocess
import sys

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


CHILD = """
import hashlib
import os

from smp_proto.errors import IntegrityError
from smp_proto.memory import take
from smpd.jobs.seal import StateSeal


def secret():
    return take(hashlib.shake_128(b"secret").digest(20_000))


def copies():
    needle, found = bytes(each ^ 0x55 for each in masked), 0
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", buffering=0) as memory:
        for start, end in (line.split()[0].split("-") for line in maps if " rw" in line and "[v" not in line):
            data = os.pread(memory.fileno(), int(end, 16) - int(start, 16), int(start, 16))
            at = data.find(needle)
            while at >= 0:
                found += not id(needle) <= int(start, 16) + at < id(needle) + 100
                at = data.find(needle, at + 1)
            del data
    return found


plain = secret()
masked = bytes(each ^ 0x55 for each in plain[9000:9024])
seal = StateSeal(bytearray(32))
blob = bytearray(seal.seal(plain, "remote x"))
plain[:] = bytes(len(plain))
blob[-1] ^= 1
try:
    seal.open(bytes(blob), "remote x")
except IntegrityError:
    print(copies())
kept = secret()
print(copies())
"""


def test_a_bad_tag_leaves_no_plaintext_behind() -> None:
    """What does not open, such as the record of a remote's secret, is nowhere in memory afterwards; a copy would be seen."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]


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
