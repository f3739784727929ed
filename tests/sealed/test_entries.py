"""Names, the index and media types."""

import posixpath
import struct
import tracemalloc
import unicodedata

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_proto.errors import UsageError
from smp_proto.sealed.entries import (
    PLACE,
    VALUES_MAX,
    Entry,
    NameSet,
    Scalar,
    check_entries,
    guess_media_type,
    misplaced,
    pack_entries,
    packed_entries,
    unpack_entries,
    valid_entry_name,
)

ZERO = bytes(32)
NAMES = st.text(st.sampled_from("aAbBßéE\u0301./\\ \0\n\u2028"), max_size=12) | st.text(max_size=12)

# Made of valid parts, since of arbitrary text most would be left out.
VALID = st.lists(
    st.text(st.sampled_from("aAbBßéE\u0301."), min_size=1, max_size=4).filter(lambda part: part not in (".", "..")),
    min_size=1,
    max_size=3,
).map("/".join)


@pytest.mark.parametrize(
    "name", ["a", "a/b.dcm", "..a", "a..", ".hidden", "ünï/ñ", "a b", "x" * 255, "/".join(["x" * 200] * 5)]
)
def test_good_names(name: str) -> None:
    """Relative paths, also with dots, spaces and Unicode, up to the limits."""
    assert valid_entry_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "./a", "a\\b", "a\0", "a\nb", "\x7f", "\x85",
     "a\u2029", "\ud800", "x" * 256, "é" * 128, "x/" * 512 + "y"],
)  # fmt: skip
def test_bad_names(name: str) -> None:
    """What would leave the folder, hide, or not be a file's name somewhere."""
    assert not valid_entry_name(name)


@given(
    st.text(st.sampled_from("aZ09_-./\n\u0663é"), max_size=12)
    | st.builds("/".join, st.lists(st.integers(254, 256).map("x".__mul__), min_size=1, max_size=5))
)
def test_usual_names_are_no_exception(name: str) -> None:
    """What is accepted at a glance is what the rules, one by one, accept."""
    parts = name.encode().split(b"/")
    plain = not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name) and len(name.encode()) <= 1024
    assert valid_entry_name(name) == (plain and all(p not in (b"", b".", b"..") and len(p) <= 255 for p in parts))


@given(NAMES)
def test_a_valid_name_stays_below(name: str) -> None:
    """Joined to a folder and normalised, a valid name is the same path below that folder."""
    if valid_entry_name(name):
        assert posixpath.normpath(f"/root/{name}") == f"/root/{name}"
        assert not any(unicodedata.category(c) == "Cc" for c in name)
        assert len(name.encode()) <= 1024


NESTED = st.lists(st.sampled_from(["a", "b", "a.b", "B"]), min_size=1, max_size=5).map("/".join)


@given(st.lists(VALID, max_size=6) | st.lists(NESTED, max_size=20))
def test_name_sets_against_brute_force(names: list[str]) -> None:
    """Names are taken exactly while no two fold to the same or to each other's folder."""

    def fold(name: str) -> str:
        return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

    known, taken = NameSet(), []
    for name in names:
        clash = any(
            fold(name) == other or fold(name).startswith(other + "/") or other.startswith(fold(name) + "/")
            for other in taken
        )
        try:
            known.add(name)
        except ValueError:
            assert clash
            return
        assert not clash
        taken.append(fold(name))


@pytest.mark.parametrize("what", ["index", "set"])
def test_names_of_many_folders_take_no_more_memory(what: str) -> None:
    """A name of 1024 bytes may bring 511 folders, each as long: they are not kept."""
    names = ["/".join([f"{number:05}", *"abcdefg" * 72]) for number in range(300)]
    entries = [Entry(name, 0, 0, ZERO) for name in names]
    tracemalloc.start()
    try:
        if what == "index":
            check_entries(entries, 0)
        else:
            known = NameSet()
            for name in names:
                known.add(name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * sum(map(len, names))


@given(
    st.lists(st.text(st.sampled_from("aAbB.-/\né"), min_size=1, max_size=3), min_size=1, max_size=5)
    | st.lists(NESTED, min_size=1, max_size=6)
)
def test_an_index_takes_the_names_that_a_name_set_takes(names: list[str]) -> None:
    """Many names are looked at together where they are plain: with the same result."""
    known = NameSet()
    try:
        for name in names:
            known.add(name)
        good = True
    except ValueError:
        good = False
    try:
        check_entries([Entry(name, 0, 0, ZERO) for name in names], 0)
    except ValueError:
        assert not good
    else:
        assert good


@given(st.lists(st.sampled_from(["a", "b", "a\nb", "A", "a/b"]), min_size=1, max_size=4))
def test_a_name_of_two_lines_is_no_two_names(names: list[str]) -> None:
    """Whatever stands beside it."""
    entries = [Entry(name, 0, 0, ZERO) for name in names]
    if any("\n" in name for name in names):
        with pytest.raises(ValueError, match="name"):
            check_entries(entries, 0)


def test_entries_fill_the_plaintext() -> None:
    """Gaps, overlaps, a wrong sum, no entry and clashing names are refused; empty entries are not."""
    good = [Entry("a", 0, 0, ZERO), Entry("b", 0, 5, ZERO, "x/y"), Entry("c", 5, 0, ZERO)]
    check_entries(good, 5)
    for bad, size in [
        ([], 0),
        (good, 6),
        (good, 4),
        ([Entry("a", 1, 5, ZERO)], 5),
        ([Entry("a", 0, 3, ZERO), Entry("b", 2, 2, ZERO)], 5),
        ([Entry("a", 0, 3, ZERO), Entry("b", 4, 2, ZERO)], 5),
        ([Entry("a", 0, 5, ZERO), Entry("a/b", 5, 0, ZERO)], 5),
    ]:
        with pytest.raises(ValueError, match="entr"):
            check_entries(bad, size)


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("a.bin", bytes(128) + b"DICM", "application/dicom"),
        ("a.png", b"\xff\xd8\xff\xe0", "image/jpeg"),
        ("a", b"\x89PNG\r\n\x1a\n", "image/png"),
        ("a", b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        ("a", b"\x93NUMPY\1\0", "application/x-npy"),
        ("IM.DCM", b"", "application/dicom"),
        ("noending", b"hello", "application/octet-stream"),
        ("", b"", "application/octet-stream"),
    ],
)
def test_media_types(name: str, head: bytes, expected: str) -> None:
    """The first bytes decide, then the ending."""
    assert expected == guess_media_type(name, head)


@pytest.mark.parametrize("kind", ["a\nb", "\x7f", "é", "text/plain\n", "a" * 256])
def test_a_media_type_that_none_is(kind: str) -> None:
    """Printable ASCII only, 255 characters at most, of every entry."""
    entries = [Entry(str(number), 0, 0, bytes(32), media_type) for number, media_type in enumerate(["", "a/b ~", kind])]
    assert unpack_entries(msgspec.msgpack.encode(entries[:2])) == tuple(entries[:2])
    with pytest.raises(ValueError, match="media type|encoding"):
        unpack_entries(msgspec.msgpack.encode(entries))


LIST = {"a": ["bb"] * 19_999}  # 20,000 values


@pytest.mark.parametrize("more", [0, 1])
def test_as_many_values_as_an_index_may_have(more: int) -> None:
    """The list is one and each item is; one more in all is refused, by who writes it and who reads it."""
    entries = [Entry(f"{n}", 0, 0, ZERO, "", LIST) for n in range(VALUES_MAX // 20_000)]
    entries += [Entry(f"x{n}", 0, 0, ZERO, "", {"b": 1}) for n in range(more)]
    packed = msgspec.msgpack.encode(entries)
    if more:
        with pytest.raises(ValueError, match="1000000 values"):
            unpack_entries(packed)
        with pytest.raises(UsageError, match="cannot be stored"):
            pack_entries(entries)
    else:
        assert list(unpack_entries(packed)) == entries


@pytest.mark.parametrize("twice", [b"", b"\xaaattributes" + msgspec.msgpack.encode({"a": ["bb"] * 3_000_000})])
def test_an_index_of_values_takes_little_memory(twice: bytes) -> None:
    """Three bytes of it would be seventy in memory: it is refused before that, also where a key is there twice."""
    one = msgspec.msgpack.encode(Entry("x", 0, 0, ZERO, "", LIST)).replace(b"\xaaattributes", twice + b"\xaaattributes")
    one = bytes([one[0] + bool(twice)]) + one[1:]
    count = 3_000_000 // 20_000
    packed = b"\xdc" + count.to_bytes(2, "big") + one * count if not twice else b"\x91" + one
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="canonical" if twice else "1000000 values"):
            unpack_entries(packed)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(packed) + 70 * VALUES_MAX


def test_packed_entries_are_encoded_as_the_others() -> None:
    """Their attributes are there once they are decoded."""
    entries = [Entry("a", 0, 0, ZERO, "", {"k": [1, "x"]}), Entry("b", 0, 0, ZERO)]
    assert msgspec.msgpack.encode(packed_entries(entries)) == msgspec.msgpack.encode(entries)


@pytest.mark.parametrize(
    "bits", ["7ff8000000000000", "fff8000000000000", "7ff0000000000001", "fff0000000000000", "8000000000000000"]
)
def test_a_float_keeps_its_bytes(bits: str) -> None:
    """Every float is allowed, also those that arithmetic makes of nothing, and none is changed on its way."""
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    packed = pack_entries([Entry("a", 0, 0, bytes(32), "", {"x": value})])
    assert bytes.fromhex("cb" + bits) in packed
    found = unpack_entries(packed)[0].attributes["x"]
    assert struct.pack(">d", found).hex() == bits


@pytest.mark.parametrize("place", ["", 1, True, ["b"], "c", "/b"])
def test_a_place_that_is_none(place: Scalar | list[Scalar]) -> None:
    """What is empty, no text, or the end of no path, is the place of nothing."""
    entry = Entry("a", 0, 0, bytes(32), "", {PLACE: place})
    assert all(misplaced([entry], path) for path in ("a/b", "a/b/", "1"))
    assert not misplaced([msgspec.structs.replace(entry, attributes={PLACE: "b"})], "a/b")
