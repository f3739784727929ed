"""Records and whole logs: what verifies, and that every kind of tampering is found (R19)."""

import json
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from smp_proto.audit.merkle import leaf_hash, root_of
from smp_proto.audit.note import Checkpoint, VerifierKey, sign_note
from smp_proto.audit.record import AuditRecord, encode_line, format_time, parse_line
from smp_proto.audit.verify import prove, verify_log
from smp_proto.errors import AuditError, UsageError

SEED = random.SystemRandom().randrange(2**32)

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=256)
field_names = st.from_regex(r"\A[a-z][a-z0-9_]{0,31}\Z")
records = st.builds(
    AuditRecord,
    seq=st.integers(0, 2**53 - 1),
    time=st.floats(0, 2**33).map(format_time),
    event=st.sampled_from(["object.open", "a.b.c"]),
    actor=text.filter(bool),
    job=text,
    subject=st.sampled_from(["", "ab" * 32]),
    outcome=text,
    fields=st.dictionaries(field_names, text | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1), max_size=16),
    detail=st.binary(max_size=40).map(msgspec.to_builtins),
)


def record(seq: int, actor: str = "alice", seconds: float = 1.0) -> AuditRecord:
    return AuditRecord(seq, format_time(seconds), "object.open", actor, "", "", "", {"n": seq}, "")


def make(size: int, actor: str = "alice") -> list[bytes]:
    return [encode_line(record(seq, actor)) for seq in range(size)]


def signed(lines: list[bytes], size: int, key: VerifierKey, sign: Callable[[bytes], bytes]) -> bytes:
    root = root_of(leaf_hash(line[:-1]) for line in lines[:size])
    return sign_note(Checkpoint(key.name, size, root).text(), key, sign)


@given(records)
def test_records_come_back(each: AuditRecord) -> None:
    """A line parses to its record, and is what Python's json writes with sorted keys and no spaces."""
    line = encode_line(each)
    assert parse_line(line) == each
    plain = json.dumps(msgspec.to_builtins(each), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert line == plain.encode() + b"\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"seq":7', b'"seq": 7'),
        (b'"seq":7', b'"seq":7.0'),
        (b'"seq":7', b'"seq":07'),
        (b'"seq":7', b'"seq":-7'),
        (b'"seq":7', b'"seq":7,"seq":7'),
        (b'"n":7', b'"n":7.5'),
        (b'"n":7', b'"n":null'),
        (b'"n":7', b'"n":9007199254740993'),
        (b'"n":7', b'"N":7'),
        (b'"n":7', b'"n":7,"b":1'),
        (b'"alice"', b'"\\u0061lice"'),
        (b'"alice"', b'"al\xffce"'),
        (b'"alice"', b'""'),
        (b'"job":"",', b""),
        (b'"job":"",', b'"job":"","other":"",'),
        (b'"n":7', b'"n":' + b"[" * 50_000),
        (b'"subject":""', b'"subject":"name of a patient"'),
        (b"Z", b"+00:00"),
        (b"1970", "١٩٧٠".encode()),
        (b"1970-01", b"1970-13"),
        (b"T00:", b"T24:"),
        (b'"detail":""', b'"detail":"A=="'),
        (b"\n", b""),
        (b"\n", b"\n\n"),
        (b"alice", b"a" * 257),
    ],
)
def test_only_the_canonical_line_is_a_record(old: bytes, new: bytes) -> None:
    """Another spelling of the same JSON, a value of another kind, or a missing or added member is refused."""
    line = encode_line(record(7))
    assert line.count(old) >= 1
    with pytest.raises(ValueError, match=r"."):
        parse_line(line.replace(old, new, 1))


@given(st.binary(max_size=200))
def test_no_bytes_upset_the_parser(noise: bytes) -> None:
    """Arbitrary bytes are a ValueError, never another exception."""
    for line in (noise, noise + b"\n", b"{" + noise + b"}\n"):
        with pytest.raises(ValueError, match=r"."):
            parse_line(line)


@pytest.mark.parametrize(
    "change",
    [{"actor": "\udcff"}, {"actor": ""}, {"event": "open"}, {"fields": {"n": 1.5}}, {"job": "j" * 257}],
)
def test_what_cannot_be_encoded_is_the_callers_fault(change: dict[str, Any]) -> None:
    """A record out of form is bad_request before anything is written."""
    with pytest.raises(UsageError, match="cannot be written"):
        encode_line(msgspec.structs.replace(record(0), **change))


def test_a_good_log_verifies(key: VerifierKey, signer: Callable[[bytes], bytes]) -> None:
    """The report of a good log counts records and checkpoints and says what is not covered yet."""
    lines = make(20)
    notes = [signed(lines, size, key, signer) for size in (0, 5, 5, 17)]
    report = verify_log(lines, notes, (key,), signed(lines, 9, key, signer))
    assert (report.size, report.checkpoints_ok, report.covered) == (20, 4, 17)
    assert report.root == root_of(leaf_hash(line[:-1]) for line in lines)
    assert report.findings == ("records 17 to 19 are covered by no checkpoint yet",)


def test_a_clock_that_went_back_is_a_finding(key: VerifierKey, signer: Callable[[bytes], bytes]) -> None:
    """Order is by number; a jump of the clock is told, not refused; so many are told, and how many more there are."""
    lines = [encode_line(record(seq, seconds=1e9 - seq * 3600)) for seq in range(300)]
    report = verify_log(lines, [signed(lines, 300, key, signer)], (key,))
    assert "record 1: the clock went back" in report.findings[0]
    assert len(report.findings) == 101
    assert report.findings[-1] == "199 more like these are left out: the clock went back"


@pytest.mark.parametrize(
    ("event", "told"), [("audit.adopted", "was taken as it was found"), ("audit.begin", "comes after a broken one")]
)
def test_no_clock_hides_what_happened_to_the_log(
    event: str, told: str, key: VerifierKey, signer: Callable[[bytes], bytes]
) -> None:
    """However often the clock went back, what else is to be looked at is told; so is what no checkpoint covers."""
    records = [record(seq, seconds=1e9 - seq * 3600) for seq in range(300)]
    records[250] = msgspec.structs.replace(records[250], event=event)
    lines = list(map(encode_line, records))
    findings = verify_log(lines, [signed(lines, 299, key, signer)], (key,)).findings
    assert [finding for finding in findings if told in finding and finding.startswith("record 250: ")]
    assert "records 299 to 299 are covered by no checkpoint yet" in findings


def test_a_checkpoint_of_another_log_is_refused(key: VerifierKey, signer: Callable[[bytes], bytes]) -> None:
    """A checkpoint signed by the right key for another origin is not this log's."""
    lines = make(3)
    root = root_of(leaf_hash(line[:-1]) for line in lines)
    note = sign_note(Checkpoint("audit.example/other", 3, root).text(), key, signer)
    with pytest.raises(AuditError, match="of another log"):
        verify_log(lines, [], (key,), note)


def test_the_first_bad_record_is_named(key: VerifierKey, signer: Callable[[bytes], bytes]) -> None:
    """Damage names its record; a well-formed change names the first record since the last good checkpoint."""
    lines = make(20)
    notes = [signed(lines, size, key, signer) for size in (6, 12, 20)]
    damaged = [*lines[:9], lines[9][:-3] + b"\n", *lines[10:]]
    with pytest.raises(AuditError) as caught:
        verify_log(damaged, notes, (key,))
    assert (caught.value.code, caught.value.details["record"]) == ("audit_broken", 9)
    changed = [*lines[:9], encode_line(record(9, "mallory")), *lines[10:]]
    with pytest.raises(AuditError) as caught:
        verify_log(changed, notes, (key,))
    assert caught.value.details["record"] == 6
    assert "evidence" in caught.value.hint


def test_a_missing_number_shows_without_any_checkpoint(key: VerifierKey) -> None:
    """A record taken out or moved shows by its number alone."""
    lines = make(5)
    for wrong in ([*lines[:2], *lines[3:]], [lines[1], lines[0], *lines[2:]]):
        with pytest.raises(AuditError, match="bears the number"):
            verify_log(wrong, [], (key,))


def _edit(lines: list[bytes], rng: random.Random, outside: int) -> list[bytes]:
    at = rng.randrange(outside)
    return [*lines[:at], encode_line(record(at, "mallory")), *lines[at + 1 :]]


def _renumber(lines: list[bytes]) -> list[bytes]:
    return [encode_line(msgspec.structs.replace(parse_line(line), seq=seq)) for seq, line in enumerate(lines)]


def _delete(lines: list[bytes], rng: random.Random, outside: int) -> list[bytes]:
    at = rng.randrange(outside)
    return _renumber(lines[:at] + lines[at + 1 :])


def _truncate(lines: list[bytes], rng: random.Random, outside: int) -> list[bytes]:
    return lines[: rng.randrange(outside)]


def _reorder(lines: list[bytes], rng: random.Random, outside: int) -> list[bytes]:
    one, other = rng.sample(range(outside), 2)
    moved = list(lines)
    moved[one], moved[other] = moved[other], moved[one]
    return _renumber(moved)


def _insert(lines: list[bytes], rng: random.Random, outside: int) -> list[bytes]:
    at = rng.randrange(outside)
    return _renumber([*lines[:at], encode_line(record(at, "mallory")), *lines[at:]])


def _fork(lines: list[bytes], rng: random.Random, outside: int) -> list[bytes]:
    at = rng.randrange(outside)
    return lines[:at] + [encode_line(record(seq, "mallory")) for seq in range(at, len(lines))]


def _flip(lines: list[bytes], rng: random.Random, outside: int) -> list[bytes]:
    at = rng.randrange(outside)
    damaged = bytearray(lines[at])
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return [*lines[:at], bytes(damaged), *lines[at + 1 :]]


TAMPERINGS = [_edit, _delete, _truncate, _reorder, _insert, _fork, _flip]


def test_tampering_shows_against_an_outside_checkpoint(
    key: VerifierKey, signer: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """R19: whoever rewrites a log and signs it again with the true key is found out, 200 times of 200."""
    rng = random.Random(SEED)
    missed = []
    for number in range(200):
        size = rng.randrange(2, 60)
        lines = [encode_line(record(seq, rng.choice(("alice", "bob")))) for seq in range(size)]
        held = rng.randrange(2, size + 1)
        outside = signed(lines, held, key, signer)
        tamper = TAMPERINGS[number % len(TAMPERINGS)]
        rewritten = tamper(lines, rng, held)
        step = rng.randrange(1, 20)
        notes = [signed(rewritten, at, key, signer) for at in range(0, len(rewritten) + 1, step)]
        if number % 2:  # a forger may also sign with a key of his own
            own = SigningKey(rng.randbytes(32))
            own_key = VerifierKey(key.name, bytes(own.verify_key))
            notes += [signed(rewritten, len(rewritten), own_key, lambda raw, own=own: own.sign(raw).signature)]
        assert verify_log(lines, [], (key,), outside).size == size
        try:
            verify_log(rewritten, notes, (key,), outside)
            missed.append((number, tamper.__name__))
        except AuditError as exc:
            missed += [] if exc.code == "audit_broken" else [(number, exc.code)]
    with capsys.disabled():
        print(f"\nR19 seed {SEED}: tried 200, failed {len(missed)}")
    assert not missed, f"seed {SEED}"


def test_tampering_without_the_key_shows_in_the_log_itself(key: VerifierKey, signer: Callable[[bytes], bytes]) -> None:
    """Without the signing key, any change below the last checkpoint shows even with nothing held outside."""
    rng = random.Random(SEED)
    for number in range(70):
        lines = [encode_line(record(seq, rng.choice(("alice", "bob")))) for seq in range(30)]
        notes = [signed(lines, size, key, signer) for size in (10, 20, 30)]
        with pytest.raises(AuditError):
            verify_log(TAMPERINGS[number % len(TAMPERINGS)](lines, rng, 30), notes, (key,))


def test_a_rewrite_that_no_outside_checkpoint_saw_passes(key: VerifierKey, signer: Callable[[bytes], bytes]) -> None:
    """The limit, stated: re-signed changes after the outside checkpoint are not seen."""
    lines = make(20)
    outside = signed(lines, 10, key, signer)
    rewritten = [*lines[:15], encode_line(record(15, "mallory")), *lines[16:]]
    assert verify_log(rewritten, [signed(rewritten, 20, key, signer)], (key,), outside).size == 20


@given(st.integers(1, 40), st.data())
def test_a_proof_holds_for_its_checkpoint_only(size: int, data: st.DataObject) -> None:
    """A proof convinces a holder of the checkpoint it was made for, and not with another record or size."""
    held = data.draw(st.integers(1, size))
    index = data.draw(st.integers(0, held - 1))
    lines = make(size)
    checkpoint = Checkpoint("x", held, root_of(leaf_hash(line[:-1]) for line in lines[:held]))
    proof = prove(lines, index, held)
    assert proof.record + b"\n" == lines[index]
    assert proof.holds(checkpoint)
    assert not msgspec.structs.replace(proof, record=make(size, "mallory")[index][:-1]).holds(checkpoint)
    assert not proof.holds(msgspec.structs.replace(checkpoint, size=held + 1))
    assert msgspec.json.decode(msgspec.json.encode(proof), type=type(proof)) == proof


@pytest.mark.parametrize(("index", "size"), [(-1, None), (5, None), (3, 3), (0, 6), (0, 0)])
def test_there_is_no_proof_of_what_is_not_there(index: int, size: int | None) -> None:
    """A record outside the checkpoint, or a checkpoint larger than the log, is bad_request."""
    with pytest.raises(UsageError):
        prove(make(5), index, size)
