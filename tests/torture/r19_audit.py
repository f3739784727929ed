"""R19: an audit log tampered with, from a careless hand to one with the box's own signing key, against a checkpoint held elsewhere."""

import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from box import Box
from click.testing import CliRunner

from smp_proto.audit import verify as verifying
from smp_proto.audit.merkle import leaf_hash, root_of
from smp_proto.audit.note import Checkpoint, VerifierKey, iter_notes, open_checkpoint, sign_note
from smp_proto.audit.record import AuditRecord, FieldValue, encode_line, parse_line
from smp_proto.audit.turns import Turns
from smp_proto.errors import AuditError, DaemonError
from smpctl import Client
from smpctl.cli import cli
from smpctl.commands.audit import LOG_NAME, NOTES_NAME
from smpd.audit.log import AuditLog
from torture.harness import Experiment, Trials, replaced
from torture.tampering import BOX, OTHER, install

KEY = VerifierKey(f"smpd/{BOX.public.fingerprint()}", BOX.public.verify_key)
FORGER = VerifierKey(KEY.name, OTHER.public.verify_key)
RECORDS = 120
EVERY = 25  # one of so many is also asked of a daemon that was started on the tampered log
Lines = list[bytes]
Attack = Callable[[Lines, random.Random, int], Lines]


def write_log(folder: Path, rng: random.Random) -> tuple[Lines, list[bytes]]:
    """A log as a daemon writes it; its lines, and its checkpoints."""
    keys = bytearray(rng.randbytes(32)), bytearray(rng.randbytes(32))
    log = AuditLog(
        str(folder),
        sign=BOX.sign,
        key=KEY,
        pseudonym_key=keys[0],
        detail_key=keys[1],
        checkpoint_records=10,
    )
    with log:
        while log.size < RECORDS:
            event = rng.choice(["object.open", "object.deliver", "vault.open", "trust.remove", "job.done"])
            actor = f"{rng.choice(['alice', 'bob'])}({rng.randrange(1000)})"
            names = [f"disk:{rng.randrange(99)}" for _ in range(rng.randrange(1, 5))]
            log.append(event, actor=actor, job=f"j{rng.randrange(50)}", subjects=names, entries=rng.randrange(9))
    return (folder / LOG_NAME).read_bytes().splitlines(keepends=True), notes_of(folder)


def notes_of(folder: Path) -> list[bytes]:
    """The checkpoints in a folder."""
    return list(iter_notes((folder / NOTES_NAME).read_bytes().splitlines(keepends=True)))


# ── what is done to the records that the outside checkpoint covers ─────────────────────────────────────────


def _renumbered(lines: Lines) -> Lines:
    return [encode_line(msgspec.structs.replace(parse_line(line), seq=seq)) for seq, line in enumerate(lines)]


def _changed(record: AuditRecord, rng: random.Random) -> AuditRecord:
    """Another record in its place, as well formed."""
    day = str(rng.randrange(10, 29))
    changes: list[dict[str, object]] = [
        {"actor": "nobody"},
        {"event": "object.lost"},
        {"job": "other"},
        {"subject": rng.randbytes(32).hex()},
        {"fields": {"entries": 10 + rng.randrange(99)}},
        {"outcome": "changed"},
        {"time": f"{record.time[:8]}{day if day != record.time[8:10] else '09'}{record.time[10:]}"},
        {"detail": "AAAA"},
    ]
    return msgspec.structs.replace(record, **rng.choice(changes))


def edited(lines: Lines, rng: random.Random, size: int) -> Lines:
    """One record says something else."""
    at = rng.randrange(size)
    return [*lines[:at], encode_line(_changed(parse_line(lines[at]), rng)), *lines[at + 1 :]]


def deleted(lines: Lines, rng: random.Random, size: int) -> Lines:
    """Some records are gone, and the others numbered anew."""
    at = rng.randrange(size)
    return _renumbered(lines[:at] + lines[at + rng.randrange(1, 6) :])


def inserted(lines: Lines, rng: random.Random, size: int) -> Lines:
    """One more."""
    at = rng.randrange(size)
    return _renumbered([*lines[:at], encode_line(_changed(parse_line(lines[at]), rng)), *lines[at:]])


def doubled(lines: Lines, rng: random.Random, size: int) -> Lines:
    """One twice, the second time within what is covered."""
    at = rng.randrange(size - 1)
    return _renumbered([*lines[: at + 1], lines[at], *lines[at + 1 :]])


def truncated(lines: Lines, rng: random.Random, size: int) -> Lines:
    """The end is gone, at a border of records or within one."""
    at = rng.randrange(size)
    return lines[:at] + ([lines[at][: rng.randrange(1, len(lines[at]))]] if rng.random() < 0.3 else [])


def reordered(lines: Lines, rng: random.Random, size: int) -> Lines:
    """Two changed places."""
    moved = list(lines)
    one, other = rng.sample(range(size), 2)
    moved[one], moved[other] = moved[other], moved[one]
    return _renumbered(moved)


def forked(lines: Lines, rng: random.Random, size: int) -> Lines:
    """From some record on it tells another story, and a longer one."""
    at = rng.randrange(size)
    story = [_changed(parse_line(line), rng) for line in lines[at:]] * 2
    return lines[:at] + _renumbered([*lines[:at], *(encode_line(each) for each in story)])[at:]


def begun_anew(lines: Lines, rng: random.Random, size: int) -> Lines:
    """All of it is another log's, as long or shorter."""
    return _renumbered([encode_line(_changed(parse_line(line), rng)) for line in lines[: rng.randrange(len(lines))]])


def flipped(lines: Lines, rng: random.Random, size: int) -> Lines:
    """A bit, anywhere in it."""
    at = rng.randrange(size)
    line = bytearray(lines[at])
    line[rng.randrange(len(line))] ^= 1 << rng.randrange(8)
    return b"".join([*lines[:at], bytes(line), *lines[at + 1 :]]).splitlines(keepends=True)


def usurped(lines: Lines, rng: random.Random, size: int) -> Lines:
    """Beyond what is covered, a record hands the log to a key of somebody's own, who has none of the box's."""
    at = rng.randrange(size, len(lines))
    like = parse_line(lines[at])
    fields: dict[str, FieldValue] = {"former": str(KEY), "verifier": str(FORGER), "key_id": OTHER.public.key_id.hex()}
    forged = AuditRecord(at, like.time, "key.rotate", like.actor, "", "", "", fields, "")
    return _renumbered([*lines[:at], encode_line(forged), *lines[at + (rng.random() < 0.5) :]])


ATTACKS: list[Attack] = [edited, deleted, truncated, reordered, forked, inserted, doubled, begun_anew, flipped, usurped]


# ── and to the log's own checkpoints ───────────────────────────────────────────────────────────────────────


def _resigned(lines: Lines, notes: list[bytes]) -> list[bytes]:
    """Checkpoints of the same sizes over other records, with the box's own key."""
    sizes = sorted({min(open_checkpoint(note, (KEY,)).size, len(lines)) for note in notes} | {len(lines)})
    hashes = [leaf_hash(line.removesuffix(b"\n")) for line in lines]
    roots = [(size, root_of(hashes[:size])) for size in sizes]
    return [sign_note(Checkpoint(KEY.name, size, root).text(), KEY, BOX.sign) for size, root in roots]


def _by_the_forger(lines: Lines, notes: list[bytes]) -> list[bytes]:
    """The box's checkpoints that still hold, and the forger's own over all that there is."""
    hashes = [leaf_hash(line.removesuffix(b"\n")) for line in lines]
    good = [note for note in notes if root_of(hashes[: (says := open_checkpoint(note, (KEY,))).size]) == says.root]
    return [*good, sign_note(Checkpoint(KEY.name, len(lines), root_of(hashes)).text(), FORGER, OTHER.sign)]


HANDS: list[Callable[[Lines, list[bytes]], list[bytes]]] = [
    _resigned,
    lambda lines, notes: notes,  # left as they are
    lambda lines, notes: [],
    lambda lines, notes: notes[: len(notes) // 2],
]


def run(trials: Trials) -> None:
    """Each attack in turn, each by every hand, against a random checkpoint that was kept elsewhere."""
    original = trials.folder / "log"
    lines, notes = write_log(original, trials.rng("log"))
    key = trials.folder / "key"
    key.write_text(f"{KEY}\n")
    outside = trials.folder / "outside"
    outside.write_bytes(notes[-1])
    verify(original, key, outside)  # untouched it is good
    asked = signed_again = 0
    for trial in trials:
        with trial:
            note = trial.rng.choice([each for each in notes if 1 < open_checkpoint(each, (KEY,)).size < len(lines)])
            (trial.folder / "outside").write_bytes(note)
            attack = ATTACKS[trial.number % len(ATTACKS)]
            hand = HANDS[trial.number // len(ATTACKS) % len(HANDS)] if attack is not usurped else _by_the_forger
            changed = attack(lines, trial.rng, open_checkpoint(note, (KEY,)).size)
            assert changed != lines
            folder = trial.folder / "state" / "audit"
            for each in (folder.parent, folder):
                each.mkdir(0o700)
            (folder / LOG_NAME).write_bytes(b"".join(changed))
            (folder / NOTES_NAME).write_bytes(b"".join(hand(changed, notes)))
            signed_again += hand is _resigned
            detected(folder, key, trial.folder / "outside")
            if trial.number % EVERY == EVERY - 1:
                asked += 1
                by_a_daemon(trial.folder, trial.folder / "outside")
    trials.figures["signed again with the box's own key"] = signed_again
    trials.figures["also of a daemon started on it"] = asked


def verify(folder: Path, key: Path, outside: Path) -> None:
    """``smpctl audit verify``, offline, in this process."""
    argv = ["audit", "verify", "--dir", str(folder), "--key", str(key), "--checkpoint", str(outside)]
    done = CliRunner().invoke(cli, argv, standalone_mode=False)
    if done.exception is not None:
        raise done.exception


def detected(folder: Path, key: Path, outside: Path) -> None:
    """See that it says so, and which record it is about."""
    try:
        verify(folder, key, outside)
    except AuditError as error:
        assert error.code == "audit_broken"
        assert isinstance(error.details["record"], int)
        return
    raise AssertionError("it verified")


def by_a_daemon(folder: Path, outside: Path) -> None:
    """Start a daemon on the tampered log: it refuses to, or smpctl finds out from what the daemon hands over."""
    machine = Box(folder, {})
    try:
        install(machine, BOX)
        machine.start(wait=False)
        if not _up(machine):
            assert machine.process
            assert machine.process.returncode == 11, machine.log.read_text()
            return
        done = machine.ctl("audit", "verify", "--checkpoint", outside, check=False)
        assert done.returncode == 11, done.stderr
        assert b"checkpoint" in done.stderr or b"record" in done.stderr, done.stderr
    finally:
        machine.close()


def _up(machine: Box) -> bool:
    """Whether it comes up, and not down."""
    assert machine.process
    while machine.process.poll() is None:
        with contextlib.suppress(DaemonError), Client(str(machine.socket)) as client:
            client.status()
            return True
        time.sleep(0.02)
    return False


def _only_own(verifier: verifying.LogVerifier, checkpoint: Checkpoint, name: str, since: int) -> None:
    if name != "the outside checkpoint":
        _match(verifier, checkpoint, name, since)


def _finished(verifier: verifying.LogVerifier) -> verifying.AuditReport:
    verifier._outside = None
    return _finish(verifier)


def _named(turns: Turns) -> tuple[VerifierKey, ...]:
    return (*_allowed(turns), *(key for _, key in turns._named))


_allowed = Turns.allowed
_finish = verifying.LogVerifier.finish
_match = verifying.LogVerifier._match

EXPERIMENT = Experiment(
    id="R19",
    title="audit entries edited, deleted, truncated, reordered, inserted, forked, begun anew, handed to another key; signed again",
    passes="all detected against an outside checkpoint",
    trials=200,
    short=EVERY,
    run=run,
    plants={
        "the outside checkpoint is not compared": lambda: replaced(verifying.LogVerifier, "_match", _only_own),
        "an end that is missing is not missed": lambda: replaced(verifying.LogVerifier, "finish", _finished),
        "whom a record names may sign": lambda: replaced(Turns, "allowed", _named),
    },
    planted_trials=EVERY - 1,
)
