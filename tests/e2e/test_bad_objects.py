"""Objects that are not what their sender sealed: refused with the right words, and nothing of them delivered."""

import random

import msgspec
import pytest
from refusals import PLAIN, Bench

from smp_proto.control import RunSpec
from smp_proto.sealed.envelope import Envelope
from smp_proto.sealed.layout import HEADER_BYTES, SEGMENT_BYTES, TRAILER_BYTES, Layout

S = SEGMENT_BYTES
C = Layout(len(PLAIN)).payload_bytes
SEED = 20261120
BROKEN = {"corrupt", "truncated", "not_sealed", "unsupported"}


def test_a_text_file(bench: Bench) -> None:
    """Plaintext in a remote for sealed objects is refused and stays out of the box."""
    place = bench.store("notes.txt", b"plain notes", "s3")
    view = bench.refuse("get", place, "--export", bench.folder / "out", code="not_sealed", about=place)
    assert bench.spool_of(view) == []
    view = bench.refuse("run", "digest", place, "--to", "s3:results/", code="not_sealed", about=place)
    assert view.error
    assert "smpctl seal" in view.error.hint


@pytest.mark.parametrize("remote", ["s3", "disk"])
def test_not_sealed(bench: Bench, remote: str) -> None:
    """Nothing at all, ten bytes, text, noise, noise that ends like an object: none is taken for one."""
    draw = random.Random(SEED)
    tail = draw.randbytes(16) + b"\0\1\0\0SMP1"
    objects = {
        "empty": b"",
        "ten": b"0123456789",
        "magic": b"SMP1",
        "text": b"a text\n" * 9,
        "noise": draw.randbytes(S + 5),
        "like one": draw.randbytes(5000) + tail,
        "zeros": bytes(5000) + bytes(16) + tail[16:],
        "huge": bytes(5000) + b"\xff" * 16 + tail[16:],
        "version": draw.randbytes(5000) + draw.randbytes(20) + b"SMP1",
    }
    found = bench.refuse_all(objects, BROKEN, remote=remote)
    assert found["empty"] == found["ten"] == found["text"] == found["noise"] == "not_sealed"
    assert found["huge"] == "truncated"


def test_truncated(bench: Bench) -> None:
    """Cut at every segment's border and one byte beside it, in the envelope and the trailer; lengthened; the end put back."""
    good = bench.good
    borders = [HEADER_BYTES, S, 2 * S, C, (C + len(good)) // 2, len(good) - TRAILER_BYTES, len(good)]
    cuts = sorted({border + delta for border in borders for delta in (-1, 0, 1)} - {len(good), len(good) + 1})
    objects = {f"cut {cut}": good[:cut] for cut in cuts}
    objects |= {f"mended {cut}": good[:cut] + good[C:] for cut in (HEADER_BYTES, S - 1, S, S + 1, C - 1)}
    objects |= {"longer": good + b"\0", "twice": good + good, "end only": good[C:]}
    found = bench.refuse_all(objects, {"truncated", "not_sealed"})
    assert {name for name in found if found[name] == "not_sealed"} == {"longer", *(f"cut {cut}" for cut in cuts)}


def test_flipped_bits(bench: Bench) -> None:
    """One bit flipped in any part of the object."""
    good, draw = bench.good, random.Random(SEED)
    regions = {"header": (0, 40), "first": (40, S - 16), "tag of the first": (S - 16, S), "middle": (S, 2 * S - 16)}
    regions |= {"tag of the middle": (2 * S - 16, 2 * S), "last": (2 * S, C - 16), "tag of the last": (C - 16, C)}
    objects = {}
    for name, (start, end) in regions.items():
        objects[name] = flipped(good, draw.randrange(start, end), draw)
    found = bench.refuse_all(objects, {"corrupt"})
    assert len(found) == len(regions)


def test_flipped_bits_in_the_envelope_and_the_trailer(bench: Bench) -> None:
    """One bit flipped in each field of the envelope, and in each of the trailer."""
    good, draw = bench.good, random.Random(SEED)
    envelope = good[C:-TRAILER_BYTES]
    fields = msgspec.structs.asdict(Envelope.parse(envelope).wire)
    objects = {}
    for name, value in fields.items():
        start = C + envelope.index(bytes(value))
        objects[name] = flipped(good, draw.randrange(start, start + len(value)), draw)
        objects[f"before {name}"] = flipped(good, start - 1, draw)
    end = len(good) - TRAILER_BYTES
    for at, name in ((0, "C high"), (7, "C"), (8, "E high"), (15, "E"), (17, "version"), (19, "flags"), (20, "magic")):
        objects[name] = flipped(good, end + at, draw)
    found = bench.refuse_all(objects, BROKEN | {"untrusted_sender", "wrong_recipient"})
    assert found["signature"] == found["recipients_mac"] == found["index"] == "corrupt"
    assert found["version"] == found["flags"] == "unsupported"
    assert found["C"] == found["E"] == "truncated"


def flipped(data: bytes, at: int, draw: random.Random) -> bytes:
    """The data with one bit of byte ``at`` flipped."""
    changed = bytearray(data)
    changed[at] ^= 1 << draw.randrange(8)
    return bytes(changed)


def test_segments_moved(bench: Bench) -> None:
    """Segments swapped, doubled, dropped, and of another object for the same box."""
    good, other = bench.good, bench.seal()
    end = good[C:]

    def parts(data: bytes) -> list[bytes]:
        return [data[:S], data[S : 2 * S], data[2 * S : C]]

    (a, b, c), (x, y, z) = parts(good), parts(other)
    objects = {
        "swapped": b + a + c,
        "doubled": a + a + c,
        "doubled longer": a + b + b + c,
        "dropped": a + c,
        "spliced": a + y + c,
        "spliced last": a + b + z,
        "spliced first": x + b + c,
        "other payload": x + y + z,
    }
    found = bench.refuse_all({name: data + end for name, data in objects.items()}, {"corrupt", "truncated"})
    assert {name for name in found if found[name] == "truncated"} == {"doubled longer", "dropped"}
    found = bench.refuse_all({"other end": good[:C] + other[C:]}, {"corrupt"})


@pytest.mark.parametrize("at", [S + 7, C - 5])
def test_a_run_that_has_begun(bench: Bench, at: int) -> None:
    """The device has had the first segments when a later one turns out bad: no result comes of it."""
    place = bench.store(f"late {at}.smp", flipped(bench.good, at, random.Random(SEED)))
    for more in (["--to", "disk:results/"], ["--export", bench.folder / "out"]):
        view = bench.refuse("run", "wrong.none", place, *more, code="corrupt", about=place)
        assert bench.spool_of(view, ".out") == []
    bench.processes("wrong.none")


def test_a_result_that_would_replace_what_it_is_made_of(bench: Bench) -> None:
    """A result below its own sources takes no name of theirs, so that it replaces none; one of its own is free."""
    place = bench.store("own/a.smp", bench.good)
    view = bench.refuse("run", "digest", "disk:own/", "--to", place, code="exists", about=place)
    assert (bench.stored / "own/a.smp").read_bytes() == bench.good
    assert bench.spool_of(view) == []
    view = bench.client.wait(bench.client.submit(RunSpec("disk:own/", "digest", target="disk:own/digests.smp")).id)
    assert view.state == "done", view.error
