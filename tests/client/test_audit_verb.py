"""``audit tail`` and ``audit verify`` against logs that verify and logs that do not."""

from pathlib import Path

import msgspec
import pytest
from client.conftest import Smpctl
from client.standin import StandIn, status
from nacl.signing import SigningKey

from smp_proto import aio
from smp_proto import control as c
from smp_proto.audit.merkle import leaf_hash, root_of
from smp_proto.audit.note import Checkpoint, VerifierKey, sign_note
from smp_proto.audit.record import MAX_LINE_BYTES, AuditRecord, encode_line, format_time
from smpctl.commands.audit import _lines

SIGNER = SigningKey(bytes(32))
KEY = VerifierKey("box.example/audit", bytes(SIGNER.verify_key))


def lines_of(count: int, actor: str = "ann(1000)") -> list[bytes]:
    """A log of records."""
    return [
        encode_line(
            AuditRecord(number, format_time(1e9 + number), "object.open", actor, "", "", "ok", {"n": number}, "")
        )
        for number in range(count)
    ]


def checkpoint(lines: list[bytes]) -> bytes:
    """A signed checkpoint over them."""
    root = root_of(leaf_hash(line[:-1]) for line in lines)
    return sign_note(Checkpoint(KEY.name, len(lines), root).text(), KEY, lambda data: SIGNER.sign(data).signature)


def keep(daemon: StandIn, lines: list[bytes], *, newlines: bool = True, broken: str = "") -> list[c.AuditRead]:
    """Have the stand-in hold a log with one checkpoint over all of it; returns what it is asked from then on."""
    asked: list[c.AuditRead] = []

    async def answer(request: c.AuditRead, exchange: aio.Exchange) -> c.AuditProof:
        asked.append(request)
        since = max(0, len(lines) - request.last) if request.last else request.since
        wanted = [line if newlines else line[:-1] for line in lines[since:]]
        for start in range(0, len(wanted), 3):
            await exchange.send(c.AuditLines(wanted[start : start + 3]))
        return c.AuditProof([checkpoint(lines).decode()], KEY.name, KEY.public, broken=broken)

    daemon.answers |= {c.AuditRead: answer, c.StatusRequest: status(audit_size=len(lines))}
    return asked


def test_only_what_is_needed_is_asked_for(smpctl: Smpctl, daemon: StandIn) -> None:
    """Checkpoints of all time are for verifying alone."""
    asked = keep(daemon, lines_of(10))
    smpctl("audit", "tail")
    assert smpctl("audit", "checkpoint").out.encode() == checkpoint(lines_of(10))
    smpctl("audit", "verify")
    assert asked == [
        c.AuditRead(last=20, newest=True),
        c.AuditRead(10, newest=True),
        c.AuditRead(10),
        c.AuditRead(newest=True),
    ]


def test_tail_shows_no_more(smpctl: Smpctl, daemon: StandIn) -> None:
    """So many records, also of a broken log, whose size nobody can tell, so that all of it comes."""
    lines = lines_of(10)

    async def answer(request: c.AuditRead, exchange: aio.Exchange) -> c.AuditProof:
        await exchange.send(c.AuditLines(lines))
        return c.AuditProof([], KEY.name, KEY.public)

    daemon.answers |= {c.AuditRead: answer}
    assert [line.split()[0] for line in smpctl("audit", "tail", "-n", "2").out.splitlines()] == ["8", "9"]


@pytest.mark.parametrize("left", [True, False])
def test_nothing_of_a_broken_log_is_signed(smpctl: Smpctl, daemon: StandIn, left: bool) -> None:
    """A checkpoint from before is not taken for one over the log as it is, and none at all is no fault."""

    async def answer(request: c.AuditRead, exchange: aio.Exchange) -> c.AuditProof:
        return c.AuditProof([checkpoint(lines_of(10)).decode()] * left, KEY.name, KEY.public, broken="it ends sooner")

    daemon.answers |= {c.AuditRead: answer, c.StatusRequest: status(audit_size=0)}
    ran = smpctl("audit", "checkpoint")
    assert (ran.code, ran.out) == (11, "")
    assert "smpctl doctor" in ran.err


def test_what_the_daemon_refuses_does_not_verify(smpctl: Smpctl, daemon: StandIn) -> None:
    """A log without its checkpoints is in order by itself; the daemon knows what it signed."""
    keep(daemon, lines_of(10), broken="record 3 was changed")
    ran = smpctl("audit", "verify")
    assert (ran.code, ran.out) == (11, "")
    assert "record 3 was changed" in ran.err


def test_tail_shows_the_last(smpctl: Smpctl, daemon: StandIn) -> None:
    """The last records, as lines or as the records themselves."""
    keep(daemon, lines_of(10))
    assert [line.split()[0] for line in smpctl("audit", "tail", "-n", "4").out.splitlines()] == ["6", "7", "8", "9"]
    found = [msgspec.convert(each, AuditRecord) for each in smpctl("audit", "tail", "-n", "2", "--json").lines]
    assert [each.seq for each in found] == [8, 9]


@pytest.mark.parametrize(
    "line", [b"{}", b"", b"garbage \x1b[2J", b"\xff\xfe", b"[1,2]", b'{"seq":1,"fields":[1]}', b"[" * 60_000]
)
def test_tail_of_a_broken_log(smpctl: Smpctl, daemon: StandIn, line: bytes) -> None:
    """What is no record is shown as it is, between those that are, and obeyed by no terminal."""
    keep(daemon, [*lines_of(2), line + b"\n", *lines_of(1)], broken="record 2 is not a record")
    ran = smpctl("audit", "tail")
    shown = ran.out.splitlines()
    assert (ran.code, [each.split()[0] for each in shown], "\x1b" in ran.out) == (0, ["0", "1", "?", "0"], False)
    assert max(map(len, shown)) < 300
    assert smpctl("audit", "tail", "--json").lines[2] == {"damaged": line.decode("utf-8", "replace")}


@pytest.mark.parametrize("newlines", [True, False])
def test_verify_through_the_socket(smpctl: Smpctl, daemon: StandIn, newlines: bool) -> None:
    """A whole log verifies here, whether or not its lines come with their ends; the key is shown to be kept."""
    keep(daemon, lines_of(10), newlines=newlines)
    ran = smpctl("audit", "verify")
    assert ran.code == 0, ran.err
    assert "10 records" in ran.out
    assert str(KEY) in ran.out
    assert smpctl("audit", "verify", "--json").json["size"] == 10


def test_a_log_signed_again_shows_against_an_outside_checkpoint(
    smpctl: Smpctl, daemon: StandIn, tmp_path: Path
) -> None:
    """R19: a rewritten and newly signed log passes its own checkpoints and fails the one kept elsewhere."""
    (tmp_path / "kept").write_bytes(checkpoint(lines_of(5)))
    keep(daemon, lines_of(10, actor="eve(0)"))
    assert smpctl("audit", "verify").code == 0
    ran = smpctl("audit", "verify", "--checkpoint", tmp_path / "kept", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (11, "audit_broken")
    keep(daemon, lines_of(10))
    assert smpctl("audit", "verify", "--checkpoint", tmp_path / "kept").code == 0


def test_a_checkpoint_can_be_taken_away(smpctl: Smpctl, daemon: StandIn, tmp_path: Path) -> None:
    """What ``audit checkpoint`` prints is the newest, byte for byte, and good for ``--checkpoint`` later."""
    keep(daemon, lines_of(7))
    ran = smpctl("audit", "checkpoint")
    assert ran.out.encode() == checkpoint(lines_of(7))
    (tmp_path / "kept").write_text(ran.out)
    keep(daemon, lines_of(10))
    assert smpctl("audit", "verify", "--checkpoint", tmp_path / "kept").code == 0


def test_checkpoints_that_come_before_the_proof(smpctl: Smpctl, daemon: StandIn) -> None:
    """What a long log's proof has no room for is verified too, is no record, and the newest is still the last."""
    lines = lines_of(9)

    async def answer(request: c.AuditRead, exchange: aio.Exchange) -> c.AuditProof:
        await exchange.send(c.AuditLines(lines[request.since :]))
        for count in (3, 6):
            await exchange.send(c.AuditLines([], [checkpoint(lines[:count]).decode()]))
        return c.AuditProof([checkpoint(lines).decode()], KEY.name, KEY.public)

    daemon.answers |= {c.AuditRead: answer, c.StatusRequest: status(audit_size=len(lines))}
    assert smpctl("audit", "verify", "--json").json["checkpoints_ok"] == 3
    assert smpctl("audit", "checkpoint").out.encode() == checkpoint(lines)
    assert [line.split()[0] for line in smpctl("audit", "tail", "-n", "2").out.splitlines()] == ["7", "8"]


def test_another_key_is_not_believed(smpctl: Smpctl, daemon: StandIn, tmp_path: Path) -> None:
    """With a key kept elsewhere, the log's own word for its key does not count."""
    keep(daemon, lines_of(3))
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert smpctl("audit", "verify", "--key", tmp_path / "key").code == 0
    (tmp_path / "key").write_text(str(VerifierKey(KEY.name, bytes(SigningKey(b"1" * 32).verify_key))))
    assert smpctl("audit", "verify", "--key", tmp_path / "key").code == 11


@pytest.mark.parametrize("held", ["", "\n", "no key"])
def test_a_file_without_a_key_is_no_key(smpctl: Smpctl, daemon: StandIn, tmp_path: Path, held: str) -> None:
    """Whoever names one that is empty, as a failed download leaves it, does not get the log's own word."""
    keep(daemon, lines_of(3))
    (tmp_path / "key").write_text(held)
    ran = smpctl("audit", "verify", "--key", tmp_path / "key", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (12, "key_invalid")
    assert str(tmp_path / "key") in ran.err


def test_the_keys_of_one_log(smpctl: Smpctl, daemon: StandIn, tmp_path: Path) -> None:
    """Of two logs whose keys are in one file, the one does not verify in the other's place."""
    keep(daemon, lines_of(3))
    other = VerifierKey("other.example/audit", bytes(SigningKey(b"1" * 32).verify_key))
    (tmp_path / "key").write_text(f"{other}\n{KEY}\n")
    told = smpctl("audit", "verify", "--key", tmp_path / "key")
    assert (told.code, "keys of several logs" in told.err) == (12, True)


def test_a_line_without_end_is_not_held(smpctl: Smpctl, tmp_path: Path) -> None:
    """Of a line that is longer than any record no more is read than it takes to see that."""
    (tmp_path / "audit.jsonl").write_bytes(bytes(1 << 20))
    (tmp_path / "checkpoints").write_bytes(b"")
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert max(map(len, _lines(str(tmp_path / "audit.jsonl")))) == MAX_LINE_BYTES + 1
    told = smpctl("audit", "verify", "--dir", tmp_path, "--key", tmp_path / "key")
    assert told.code == 11
    assert "record 0 is not a record" in told.err


def test_verify_files(smpctl: Smpctl, tmp_path: Path) -> None:
    """The files of a log verify without a daemon, given its key; a changed byte is found; the key is asked for."""
    lines = lines_of(6)
    (tmp_path / "audit.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "checkpoints").write_bytes(checkpoint(lines[:3]) + checkpoint(lines))
    (tmp_path / "key").write_text(f"{KEY}\n")
    args = ["audit", "verify", "--dir", tmp_path, "--key", tmp_path / "key"]
    assert smpctl(*args, "--json").json["checkpoints_ok"] == 2
    assert "whole and in order" in smpctl(*args).out
    assert smpctl(*args[:4]).code == 2
    (tmp_path / "audit.jsonl").write_bytes(b"".join(lines).replace(b'"n":4', b'"n":5'))
    assert smpctl(*args).code == 11
    (tmp_path / "checkpoints").write_bytes(b"")
    assert "no checkpoint says that they are those that were written" in smpctl(*args).out
    assert smpctl("audit", "verify", "--dir", tmp_path / "no", "--key", tmp_path / "key").code == 5
