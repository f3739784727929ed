"""R9: one bit of a sealed object flipped, in every region there is; by all that opens objects."""

import msgspec

from smp_proto.sealed.keys import PublicIdentity
from smp_proto.sealed.layout import HEADER_BYTES, TRAILER_BYTES, Layout
from smp_proto.sealed.payload import PayloadOpener
from torture.harness import Experiment, Trials, replaced
from torture.tampering import (
    Readers,
    S,
    Sample,
    flipped,
    new_keys,
    not_zeroed,
    opened_anyway,
    sealed,
    wire_of,
)

EVERY = 50  # one of so many also goes to a real daemon
PLAIN_BYTES = 2 * S + 1000
NAMES = ("first", "middle", "last")


def regions(data: bytes) -> dict[str, tuple[int, int]]:
    """Where each part of an object of three segments lies."""
    layout = Layout(PLAIN_BYTES)
    found = {"header: type": (0, 1), "header: salt": (1, 33), "header: prefix": (33, HEADER_BYTES)}
    for k, name in enumerate(NAMES):
        start, end = layout.segment_span(k)
        found[f"{name} segment: first byte"] = (start, start + 1)
        found[f"{name} segment: middle"] = (start + 1, end - 17)
        found[f"{name} segment: last byte"] = (end - 17, end - 16)
        found[f"{name} segment: tag"] = (end - 16, end)
    found |= _envelope(data, layout.payload_bytes)
    end = len(data) - TRAILER_BYTES
    for at, size, name in ((0, 8, "C"), (8, 8, "E"), (16, 2, "version"), (18, 2, "flags"), (20, 4, "magic")):
        found[f"trailer: {name}"] = (end + at, end + at + size)
    return found


def _envelope(data: bytes, start: int) -> dict[str, tuple[int, int]]:
    wire = wire_of(data)
    found = {"envelope: map": (start, start + 1)}
    places = {}
    for name, value in msgspec.structs.asdict(wire).items():
        places[name] = at = data.index(bytes(value), start)
        found[f"envelope: before {name}"] = (at - 2, at)
        if name not in ("recipients", "index", "signed"):
            found[f"envelope: {name}"] = (at, at + len(value))
    at = places["recipients"]
    row = len(wire.recipients) // 2
    for number in range(2):
        found[f"recipient {number}: key id"] = (at + number * row, at + number * row + 16)
        found[f"recipient {number}: wrapped key"] = (at + number * row + 16, at + (number + 1) * row)
    at = places["index"]
    found["index: nonce"] = (at, at + 12)
    found["index: names"] = (at + 12, at + len(wire.index) - 16)
    found["index: tag"] = (at + len(wire.index) - 16, at + len(wire.index))
    at = places["signed"]
    signed = msgspec.msgpack.decode(wire.signed)
    for name, value in signed.items():
        key = at + wire.signed.index(name.encode())
        found[f"signed: name of {name}"] = (key, key + len(name))
        size = len(value) if isinstance(value, str | bytes) else 1
        found[f"signed: {name}"] = (key + len(name), key + len(name) + size)
    return found


def segment_of(at: int) -> int | None:
    """The segment that byte ``at`` of the object is in; the header is the first one's, which then does not open."""
    layout = Layout(PLAIN_BYTES)
    return at // S if HEADER_BYTES <= at < layout.payload_bytes else None


def run(trials: Trials) -> None:
    """Region after region, a random bit of each."""
    rng = trials.rng("object")
    plain = rng.randbytes(PLAIN_BYTES)
    data = sealed(plain, new_keys(rng))
    spans = list(regions(data).values())
    seen: dict[str, int] = {}
    sample = Sample(trials.folder / "sample")
    with Readers(plain) as readers:
        readers.accept(data)
        for trial in trials:
            with trial:
                at = trial.rng.randrange(*spans[trial.number % len(spans)])
                changed = flipped(data, at, trial.rng)
                code = readers.refuse(changed, segment_of(at))
                seen[code] = seen.get(code, 0) + 1
                if trial.number % EVERY == EVERY - 1:
                    sample.add(trial, changed, code)
    trials.figures["regions"] = len(spans)
    trials.figures["refused as"] = ", ".join(f"{code} {count}" for code, count in sorted(seen.items()))
    trials.figures["also by a daemon"] = sample.judge()


EXPERIMENT = Experiment(
    id="R9",
    title="a flipped bit in each region of a sealed object",
    passes="all refused, 0 bytes of a bad segment released, slot zeroed",
    trials=1000,
    short=EVERY,
    run=run,
    plants={
        "a tag is not looked at": lambda: replaced(PayloadOpener, "open_segment", opened_anyway),
        "the slot is not zeroed": lambda: replaced(PayloadOpener, "open_segment", not_zeroed),
        "a signature is not looked at": lambda: replaced(PublicIdentity, "verify", lambda *_: True),
    },
    planted_trials=EVERY - 1,
)
