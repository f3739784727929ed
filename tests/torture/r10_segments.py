"""R10: objects cut at each boundary and one byte beside it; segments and envelopes moved about within one and between two."""

import random
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from smp_proto.sealed.envelope import Wire
from smp_proto.sealed.layout import HEADER_BYTES, TRAILER_BYTES, Layout, Trailer
from smpd.opening.ranges import Opener
from torture.harness import Experiment, Trials, replaced
from torture.planted import planting
from torture.tampering import Readers, S, Sample, new_keys, parts, sealed

SEGMENTS = 5
PLAIN_BYTES = (SEGMENTS - 1) * (S - 16) + 1000
C = Layout(PLAIN_BYTES).payload_bytes
BORDERS = ("header", *(f"segment {k}" for k in range(1, SEGMENTS)), "payload", "envelope", "object")
# Cut short there, or lengthened; then cut there with the envelope and trailer put back.
CUTS = [(border, delta, False) for border in BORDERS for delta in (-1, 0, 1) if (border, delta) != ("object", 0)]
CUTS += [(border, delta, True) for border in BORDERS[:-2] for delta in (-1, 0, 1) if (border, delta) != ("payload", 0)]
EDITS = 500
EVERY = 10  # one of so many edits also goes to a real daemon


class Objects(NamedTuple):
    """One object; another by the same sender; one whose segments open in its place, since its keys are the same."""

    good: bytes
    other: bytes
    twin: bytes


def cut(data: bytes, border: str, delta: int, mended: bool) -> bytes:
    """An object that ends early, or a byte late."""
    envelope = len(data) - TRAILER_BYTES
    places = {"header": HEADER_BYTES, "payload": C, "envelope": envelope, "object": len(data)}
    places |= {f"segment {k}": k * S for k in range(1, SEGMENTS)}
    at = places[border] + delta
    return (data + b"\0")[:at] + (data[C:] if mended else b"")


# ── edits: each makes something else of the object ─────────────────────────────────────────────────────────


def _of(segments: list[bytes], data: bytes, *, mend: bool) -> bytes:
    """Segments with the end of an object; its trailer fits what comes before it when mended."""
    _, envelope, trailer = parts(data)
    made = b"".join(segments)
    return made + envelope + (Trailer(len(made), len(envelope)).pack() if mend else trailer)


def _segments(
    edit: Callable[[list[bytes], Objects, random.Random], object],
) -> Callable[[Objects, random.Random], bytes]:
    def make(objects: Objects, rng: random.Random) -> bytes:
        segments = parts(objects.good)[0]
        edit(segments, objects, rng)
        return _of(segments, objects.good, mend=rng.random() < 0.5)

    return make


def _swap(segments: list[bytes], _: Objects, rng: random.Random) -> None:
    i, j = rng.sample(range(len(segments)), 2)
    segments[i], segments[j] = segments[j], segments[i]


def _double(segments: list[bytes], _: Objects, rng: random.Random) -> None:
    segments.insert(rng.randrange(len(segments) + 1), rng.choice(segments))


def _over(segments: list[bytes], _: Objects, rng: random.Random) -> None:
    i, j = rng.sample(range(len(segments)), 2)
    segments[i] = segments[j]


def _drop(segments: list[bytes], _: Objects, rng: random.Random) -> None:
    del segments[rng.randrange(len(segments))]


def _splice(segments: list[bytes], objects: Objects, rng: random.Random) -> None:
    k = rng.randrange(len(segments))
    segments[k] = parts(objects.other)[0][k]


def _splice_twin(segments: list[bytes], objects: Objects, rng: random.Random) -> None:
    """Its tag is right for this place and this key."""
    k = rng.randrange(len(segments))
    segments[k] = parts(objects.twin)[0][k]


def _all_of_twin(segments: list[bytes], objects: Objects, rng: random.Random) -> None:
    segments[:] = parts(objects.twin)[0]


def _all_of_other(segments: list[bytes], objects: Objects, rng: random.Random) -> None:
    segments[:] = parts(objects.other)[0]


def _turn(segments: list[bytes], _: Objects, rng: random.Random) -> None:
    by = rng.randrange(1, len(segments))
    segments[:] = segments[by:] + segments[:by]


def _zero(segments: list[bytes], _: Objects, rng: random.Random) -> None:
    k = rng.randrange(len(segments))
    segments[k] = bytes(len(segments[k]))


def _noise(segments: list[bytes], _: Objects, rng: random.Random) -> None:
    k = rng.randrange(len(segments))
    segments[k] = rng.randbytes(len(segments[k]))


def _move_bytes(segments: list[bytes], _: Objects, rng: random.Random) -> None:
    """A border is elsewhere: what goes out here comes in there."""
    joined = bytearray(b"".join(segments))
    piece, at = rng.randrange(1, 5000), rng.randrange(len(joined) - 5000)
    taken = bytes(joined[at : at + piece])
    del joined[at : at + piece]
    to = rng.randrange(len(joined))
    joined[to:to] = taken
    if joined == b"".join(segments):
        joined[0] ^= 1
    segments[:] = [bytes(joined)]


def _wire(edit: Callable[[dict[str, bytes], dict[str, bytes], random.Random], object]) -> Callable[..., bytes]:
    """An envelope with parts of another object's, well formed."""

    def make(objects: Objects, rng: random.Random) -> bytes:
        mine, theirs = (msgspec.msgpack.decode(parts(each)[1]) for each in (objects.good, objects.other))
        edit(mine, theirs, rng)
        envelope = msgspec.msgpack.encode(msgspec.convert(mine, Wire))
        return objects.good[:C] + envelope + Trailer(C, len(envelope)).pack()

    return make


def _field(mine: dict[str, bytes], theirs: dict[str, bytes], rng: random.Random) -> None:
    name = rng.choice(list(mine))
    mine[name] = theirs[name]


def _row(mine: dict[str, bytes], theirs: dict[str, bytes], rng: random.Random) -> None:
    """A recipient of the other object's, added, or in place of the one that was there."""
    row = len(mine["recipients"]) // 2
    kept = mine["recipients"][row:] if rng.random() < 0.5 else b""
    mine["recipients"] = theirs["recipients"][:row] + kept


def _fewer(mine: dict[str, bytes], _: dict[str, bytes], rng: random.Random) -> None:
    row = len(mine["recipients"]) // 2
    mine["recipients"] = rng.choice([mine["recipients"][:row], mine["recipients"][row:] + mine["recipients"][:row]])


def _other_end(objects: Objects, rng: random.Random) -> bytes:
    return objects.good[:C] + objects.other[C:]


def _twin_end(objects: Objects, rng: random.Random) -> bytes:
    return objects.good[:C] + objects.twin[C:]


def _two_in_one(objects: Objects, rng: random.Random) -> bytes:
    return objects.good + objects.other


def _two_ends(objects: Objects, rng: random.Random) -> bytes:
    return objects.good + rng.choice(objects)[C:]


EDITORS = {
    "a segment of its twin": _segments(_splice_twin),
    "the payload of its twin": _segments(_all_of_twin),
    "the end of its twin": _twin_end,
    "swapped": _segments(_swap),
    "doubled": _segments(_double),
    "one over another": _segments(_over),
    "dropped": _segments(_drop),
    "spliced from another": _segments(_splice),
    "the payload of another": _segments(_all_of_other),
    "turned": _segments(_turn),
    "zeros": _segments(_zero),
    "noise": _segments(_noise),
    "bytes moved": _segments(_move_bytes),
    "a field of another's envelope": _wire(_field),
    "a recipient of another": _wire(_row),
    "recipients fewer or turned": _wire(_fewer),
    "the end of another": _other_end,
    "two objects": _two_in_one,
    "two ends": _two_ends,
}


def objects_of(rng: random.Random) -> tuple[bytes, Objects]:
    """The plaintext, and the three objects."""
    keys, plain = new_keys(rng), rng.randbytes(PLAIN_BYTES)
    good, twin = sealed(plain, keys), sealed(rng.randbytes(PLAIN_BYTES), keys)
    return plain, Objects(good, sealed(rng.randbytes(PLAIN_BYTES), new_keys(rng)), twin)


def run(trials: Trials) -> None:
    """All cuts, then edits of every kind in turn, at random places."""
    plain, objects = objects_of(trials.rng("objects"))
    sample = Sample(trials.folder / "sample")
    seen: dict[str, int] = {}
    with Readers(plain) as readers:
        for each in objects:
            readers.accept(each)
        for trial in trials:
            with trial:
                if trial.number < len(CUTS):
                    changed = cut(objects.good, *CUTS[trial.number])
                else:
                    editor = list(EDITORS.values())[(trial.number - len(CUTS)) % len(EDITORS)]
                    changed = editor(objects, trial.rng)
                assert changed != objects.good
                code = readers.refuse(changed)
                seen[code] = seen.get(code, 0) + 1
                if trial.number > len(CUTS) and trial.number % EVERY == EVERY - 1:
                    sample.add(trial, changed, code)
    trials.figures["refused as"] = ", ".join(f"{code} {count}" for code, count in sorted(seen.items()))
    trials.figures["also by a daemon"] = sample.judge()


EXPERIMENT = Experiment(
    id="R10",
    title=f"truncation at each segment boundary ±1 ({len(CUTS)}); segments swapped, doubled, dropped, spliced ({EDITS})",
    passes="all refused, quarantined with the reason",
    trials=len(CUTS) + EDITS,
    short=len(CUTS) + 2 * len(EDITORS),
    run=run,
    plants={
        "the digest of ranges is not looked at": lambda: replaced(Opener, "check_content", lambda *_: None),
        "it is refused and forgotten": lambda: planting("torture.faults.quarantine:forgetful"),
    },
    planted_trials=(len(CUTS) // EVERY + 1) * EVERY,
)
