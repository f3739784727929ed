"""Opening, rewrapping and looking at envelopes. The refusals are in the vectors."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sealed.forge import encode, forge, identity, trusting
from sealed.helpers import extract, reader, seal

from smp_proto.errors import IntegrityError, NotFoundError, SmpError, UsageError
from smp_proto.sealed import envelope as room
from smp_proto.sealed.entries import Entry
from smp_proto.sealed.envelope import Envelope, open_envelope, rewrap_envelope, seal_envelope
from smp_proto.sealed.filekey import FileKey
from smp_proto.sealed.keys import Identity
from smp_proto.sealed.layout import TRAILER_BYTES, Layout, Trailer

ALICE, BOB, CAROL = identity("alice"), identity("bob"), identity("carol")
OBJECT = forge(b"plaintext", sender=ALICE, recipients=[BOB.public])


def split(data: bytes) -> tuple[bytes, bytes, Trailer]:
    """Payload, envelope, trailer."""
    trailer = Trailer.parse(data[-TRAILER_BYTES:], len(data))
    return data[: trailer.payload_bytes], data[trailer.payload_bytes : -TRAILER_BYTES], trailer


def test_inspect_needs_no_key() -> None:
    """The structure shows sizes, time, sender and recipients to anyone."""
    _, data, trailer = split(seal([("a", b"abc")], ALICE, [BOB, CAROL]))
    envelope = Envelope.parse(data)
    assert {BOB.public.key_id, CAROL.public.key_id} == set(envelope.recipients)
    assert (ALICE.public.key_id, 3) == (envelope.signed.sender, envelope.signed.plain_bytes)
    assert trailer.payload_bytes == envelope.signed.payload_bytes


def test_a_malformed_header_is_seen_without_a_key() -> None:
    """The payload header in the signed part is checked with the rest of the structure."""
    _, data, _ = split(forge(b"", signed={"header": bytes(40)}, sender=ALICE, recipients=[BOB.public]))
    with pytest.raises(IntegrityError, match="header"):
        Envelope.parse(data)


def test_rewrap_changes_the_recipients_only() -> None:
    """The new recipient opens the same payload, the old one cannot; what was signed stays."""
    data = seal([("a", b"abc")], ALICE, [BOB])
    payload, old, trailer = split(data)
    new = rewrap_envelope(old, trailer, [BOB], trusting(ALICE), [CAROL.public, CAROL.public])
    rewrapped = payload + new + Trailer(len(payload), len(new)).pack()
    assert extract(rewrapped, [CAROL], [ALICE]) == {"a": b"abc"}
    with pytest.raises(IntegrityError) as caught:
        extract(rewrapped, [BOB], [ALICE])
    assert caught.value.code == "wrong_recipient"
    before, after = Envelope.parse(old), Envelope.parse(new)
    assert len(after.recipients) == 1
    for kept in ("signed", "signature", "index"):
        assert getattr(before.wire, kept) == getattr(after.wire, kept)


def test_rewrap_checks_first() -> None:
    """Nobody rewraps what is not for them, whom they do not trust, or for nobody."""
    _, data, trailer = split(OBJECT)
    for ours, trust, recipients, family in [
        ([CAROL], trusting(ALICE), [CAROL.public], IntegrityError),
        ([BOB], trusting(CAROL), [CAROL.public], IntegrityError),
        ([BOB], trusting(ALICE), [], UsageError),
    ]:
        with pytest.raises(family):
            rewrap_envelope(data, trailer, ours, trust, recipients)


def test_trust_may_say_why() -> None:
    """An error of the trust store passes through; a wrong answer of it is no trust."""
    _, data, trailer = split(OBJECT)

    def expired(key_id: bytes) -> None:
        raise NotFoundError("no_such_key", "expired")

    with pytest.raises(NotFoundError):
        open_envelope(data, trailer, [BOB], expired)
    with pytest.raises(IntegrityError) as caught:
        open_envelope(data, trailer, [BOB], lambda key_id: CAROL.public)
    assert caught.value.code == "untrusted_sender"


def test_the_file_key_is_wiped_when_opening_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault found after unwrapping leaves no key behind."""
    keys: list[bytearray] = []

    class Watched(FileKey):
        def __init__(self, material: bytearray) -> None:
            keys.append(material)
            super().__init__(material)

    monkeypatch.setattr(room, "FileKey", Watched)
    _, data, trailer = split(forge(b"x", [], sender=ALICE, recipients=[BOB.public]))
    with pytest.raises(IntegrityError, match="index"):
        open_envelope(data, trailer, [BOB], trusting(ALICE))
    assert [bytearray(32)] == keys


def sealed_with(entries: list[Entry], recipients: list[Identity]) -> bytes:
    return seal_envelope(
        file_key=FileKey.generate(),
        object_id=bytes(16),
        header=b"\x28" + bytes(39),
        layout=Layout(sum(each.size for each in entries)),
        leaves_digest=bytes(32),
        entries=entries,
        sender=ALICE,
        recipients=[each.public for each in recipients],
        created=0,
    )


@pytest.mark.parametrize(
    ("entries", "recipients", "code"),
    [
        ([], [BOB], "bad_request"),
        ([Entry("../a", 0, 0, bytes(32))], [BOB], "bad_name"),
        ([Entry("a", 0, 0, bytes(32)), Entry("A", 0, 0, bytes(32))], [BOB], "bad_name"),
        ([Entry("a", 0, 0, bytes(32))], [], "bad_request"),
        ([Entry("a", 0, 0, bytes(32), "", {"n": 1 << 70})], [BOB], "bad_request"),
        ([Entry("a", 0, 0, bytes(32), "", {"n": None})], [BOB], "bad_request"),  # type: ignore[dict-item]
        ([Entry("a", 0, 0, bytes(32), "", {"n": [["deep"]]})], [BOB], "bad_request"),  # type: ignore[list-item]
    ],
)
def test_what_is_not_sealed(entries: list[Entry], recipients: list[Identity], code: str) -> None:
    """A writer refuses what a reader would."""
    with pytest.raises(UsageError) as caught:
        sealed_with(entries, recipients)
    assert code == caught.value.code


def test_too_many_recipients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of rows is bounded on both sides."""
    monkeypatch.setattr(room, "RECIPIENTS_MAX", 1)
    with pytest.raises(UsageError):
        sealed_with([Entry("a", 0, 0, bytes(32))], [BOB, CAROL])
    _, data, _ = split(forge(b"", sender=ALICE, recipients=[BOB.public, CAROL.public]))
    with pytest.raises(IntegrityError):
        Envelope.parse(data)


_, ENVELOPE, TRAILER = split(OBJECT)


def refused(data: bytes) -> str:
    """The code with which an envelope is refused, or nothing."""
    try:
        open_envelope(data, TRAILER, [BOB], trusting(ALICE)).file_key.wipe()
    except SmpError as error:
        return error.code
    return ""


@given(st.binary(max_size=300))
def test_envelope_fuzz(data: bytes) -> None:
    """Any bytes are refused as ``corrupt``."""
    assert refused(data) == "corrupt"


@settings(max_examples=300)
@given(st.integers(0, len(ENVELOPE)), st.integers(0, 40), st.binary(max_size=40))
def test_envelope_splices(at: int, removed: int, added: bytes) -> None:
    """Any bytes replaced, removed or added anywhere in a good envelope are refused, by one of our errors."""
    changed = ENVELOPE[:at] + added + ENVELOPE[at + removed :]
    if changed != ENVELOPE:
        assert refused(changed) in {"corrupt", "unsupported", "untrusted_sender", "wrong_recipient"}


WIRE = dict(
    zip(
        ("signed", "signature", "recipients", "recipients_mac", "index"),
        (b"", bytes(64), b"", bytes(32), b""),
        strict=True,
    )
)
DEEP = b"\x91" * 100_000 + b"\xc0"
MANY = b"\xdd\x00\x0f\x42\x40" + b"\xc0" * 1_000_000


@pytest.mark.parametrize(
    "data",
    [DEEP, b"\x81\xa1a" * 50_000, MANY, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
     b"\xdf\xff\xff\xff\xff", encode(WIRE | {"signed": DEEP}), encode(WIRE | {"signed": MANY}),
     encode(WIRE | {"recipients": bytes(3 << 20)})],
    ids=["deep", "deep maps", "wide", "array", "bin", "map", "deep signed", "wide signed", "rows"],
)  # fmt: skip
def test_hostile_envelopes_stay_small(data: bytes) -> None:
    """Deep nesting and huge counts are refused, in memory of the order of the input."""
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            Envelope.parse(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(data) + (1 << 20)


GOOD_INDEX = encode([{"name": "a", "offset": 0, "size": 0, "sha256": bytes(32), "media_type": "", "attributes": {}}])


@given(
    st.binary(max_size=60)
    | st.builds(
        lambda at, removed, added: GOOD_INDEX[:at] + added + GOOD_INDEX[at + removed :],
        st.integers(0, len(GOOD_INDEX)),
        st.integers(0, 9),
        st.binary(max_size=9),
    )
)
def test_index_fuzz(index: bytes) -> None:
    """Any bytes that a trusted sender seals as an index are an index or ``corrupt``."""
    _, data, trailer = split(forge(b"", sender=ALICE, recipients=[BOB.public], encode_index=lambda _: index))
    try:
        opened = open_envelope(data, trailer, [BOB], trusting(ALICE))
    except IntegrityError as error:
        code = error.code
    else:
        code = ""
        assert encode(opened.entries) == index
    assert code in {"", "corrupt"}


def test_the_first_row_for_one_of_our_keys_counts() -> None:
    """Whether an object opens does not depend on the order in which its reader holds keys."""
    alice, bob, carol = map(identity, ("alice", "bob", "carol"))
    data = forge(
        sender=alice, recipients=[bob.public, carol.public], rows=lambda rows: rows[:16] + bytes(1168) + rows[1184:]
    )
    for identities in ([bob, carol], [carol, bob]):
        with pytest.raises(IntegrityError, match="does not open"):
            reader(data, identities, [alice])
    reader(data, [carol], [alice]).close()
