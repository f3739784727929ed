"""A whole object out of memory that others can write: opened only when all of it is what was sealed."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sealed.forge import entry, forge, identity, trusting
from sealed.helpers import reader, seal

from smp_proto.errors import IntegrityError, StateError
from smp_proto.sealed.layout import SEGMENT_BYTES
from smpd.links.ring import Ring
from smpd.opening.ranges import from_memory, from_ring, open_whole
from smpd.transfer.openers import Openers

ALICE, BOB = identity("alice"), identity("bob")
SIZES = [0, 1, SEGMENT_BYTES - 56, SEGMENT_BYTES - 55, 2 * SEGMENT_BYTES + 3]


@pytest.mark.parametrize("at", [0, 7])
def test_a_slot_reads_the_same_with_the_interpreter_lock_and_without_it(at):
    """Little is copied with it, much without; both begin at the place in the slot, and neither goes beyond it."""
    ring = Ring.create("test", 3, 1 << 20)
    content = os.urandom(1 << 20)
    with ring.slot(1) as slot:
        slot[:] = content
    read = from_ring(ring, 1, at)
    for offset, length in ((0, 24), (5, 1), (3, 128 << 10), (3, (128 << 10) + 1), (99, 1 << 19)):
        into = bytearray(length)
        read(memoryview(into), offset)
        assert into == content[at + offset : at + offset + length]
        with pytest.raises(ValueError, match="beyond"):
            read(memoryview(into), len(content) - at - length + 1)
    del read
    ring.close()


def test_small_objects_are_opened_by_one_thread():
    """They need the interpreter lock most of the time; large ones, as many as there are cores."""
    openers = Openers()
    assert openers.of(256 << 10) is openers.small
    assert openers.of((256 << 10) + 1) is openers.large
    assert (openers.small.total_tokens, openers.large.total_tokens) == (1, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("size", SIZES)
def test_what_was_sealed_comes_out_and_the_file_is_the_object(size, tmp_path):
    """The plaintext is in place, the spool file is the object byte for byte, the file key is wiped."""
    content = os.urandom(size)
    data = seal([("scan.bin", content)], ALICE, [BOB])
    plain = memoryview(bytearray(b"\xaa" * (size + 9)))
    fd = os.open(tmp_path / "object", os.O_RDWR | os.O_CREAT)
    opened = open_whole(from_memory(data), len(data), [BOB], trusting(ALICE), plain, fd)
    os.close(fd)
    assert bytes(plain) == content + b"\xaa" * 9
    assert (tmp_path / "object").read_bytes() == data
    assert [entry.name for entry in opened.entries] == ["scan.bin"]
    with pytest.raises(StateError):
        _ = opened.file_key.material
    checked = open_whole(from_memory(data), len(data), [BOB], trusting(ALICE), None, None)
    assert checked.signed == opened.signed


SEALED = seal([("scan.bin", os.urandom(SEGMENT_BYTES + 999))], ALICE, [BOB])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(SEALED) - 1), st.integers(0, 7))
def test_a_flipped_bit_leaves_nothing(at, bit):
    """Wherever one bit differs the object is refused, and where plaintext went is zero."""
    data = bytearray(SEALED)
    data[at] ^= 1 << bit
    plain = memoryview(bytearray(SEGMENT_BYTES + 999))
    with pytest.raises(IntegrityError):
        open_whole(from_memory(data), len(data), [BOB], trusting(ALICE), plain, None)
    assert not any(plain)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(SEALED) - 1))
def test_a_cut_object_is_refused(length):
    """Cut anywhere, it is refused before a byte of it is opened."""
    plain = memoryview(bytearray(b"\xaa" * (SEGMENT_BYTES + 999)))
    with pytest.raises(IntegrityError):
        open_whole(from_memory(SEALED[:length]), length, [BOB], trusting(ALICE), plain, None)
    assert set(plain) == {0xAA}


@pytest.mark.parametrize("size", [5, SEGMENT_BYTES])
def test_segments_that_open_and_are_not_the_signed_ones(size):
    """Someone with the file key can make segments that open; the signed digest tells, and nothing is left."""
    data = forge(b"\x55" * size, sender=ALICE, recipients=[BOB.public], signed={"content_digest": bytes(32)})
    plain = memoryview(bytearray(size))
    with pytest.raises(IntegrityError, match="not what the sender signed"):
        open_whole(from_memory(data), len(data), [BOB], trusting(ALICE), plain, None)
    assert not any(plain)


def test_a_senders_own_mistake_shows_when_files_are_made() -> None:
    """A SHA-256 that is not its entry's is no change by others: the object is taken, and no file is made of the entry."""
    data = forge(b"scan", [entry("a", b"scan", sha256=bytes(32))], sender=ALICE, recipients=[BOB.public])
    plain = bytearray(4)
    open_whole(from_memory(data), len(data), [BOB], trusting(ALICE), memoryview(plain), None)
    assert plain == b"scan"
    with reader(data, [BOB], [ALICE]) as whole, pytest.raises(IntegrityError, match="SHA-256"):
        whole.verify()
