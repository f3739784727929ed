"""Crashes, full disks and damage: no acknowledged record is lost, no act goes unrecorded (R3, R7, R14)."""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from smp_proto.audit.note import VerifierKey
from smp_proto.audit.record import AuditRecord, parse_line
from smp_proto.audit.verify import verify_log
from smp_proto.errors import AuditError
from smpd.audit import AuditLog

pytestmark = pytest.mark.usefixtures("any_length")

Open = Callable[..., AuditLog]
CHILD = Path(__file__).with_name("audit_child.py")
SEED = random.SystemRandom().randrange(2**32)


def parsed(log: AuditLog) -> list[AuditRecord]:
    return [parse_line(line) for line in log.read(0, 1 << 30)]


def fill(open_log: Open, count: int = 4, **settings: Any) -> None:
    with open_log(**settings) as log:
        for number in range(count):
            log.append("object.open", actor="alice", n=number)


# --- torn ends ---


def test_a_torn_last_line_is_cut_at_every_byte(open_log: Open, tmp_path: Path, key: VerifierKey) -> None:
    """A last line of any length that no checkpoint covers is cut off at start, and that is recorded."""
    fill(open_log)
    path = tmp_path / "audit" / "audit.jsonl"
    whole = path.read_bytes()
    for torn in [whole[:at] for at in range(1, len(whole.splitlines()[0]) + 1)] + [
        b"\0" * 5000,
        b"\xff" * 70_000,
    ]:
        directory = tmp_path / "torn"
        shutil.copytree(tmp_path / "audit", directory)
        with open(directory / "audit.jsonl", "ab") as file:
            file.write(torn)
        with open_log(directory) as log:
            records = parsed(log)
            assert (records[4].event, records[4].fields["bytes_dropped"]) == ("audit.recovered", len(torn))
            assert log.append("object.open", actor="alice") == 5
            report = verify_log(log.read(0, 10), [log.checkpoint()], (key,))
            assert "record 4: the log was recovered" in report.findings[0]
        shutil.rmtree(directory)


def test_a_torn_checkpoint_is_cut_at_every_byte(open_log: Open, tmp_path: Path) -> None:
    """An unfinished checkpoint is cut off at start; the records stay and get a new one."""
    fill(open_log)
    notes = tmp_path / "audit" / "checkpoints"
    whole = notes.read_bytes()
    for at in range(1, len(whole)):
        notes.write_bytes(whole[:at])
        (tmp_path / "audit" / "audit.jsonl").write_bytes(
            b"".join((tmp_path / "audit" / "audit.jsonl").read_bytes().splitlines(keepends=True)[:4])
        )
        with open_log() as log:
            assert [record.event for record in parsed(log)[3:]] == ["object.open", "audit.recovered"]
            assert len(log.checkpoints()) == 0
        with open_log() as log:
            assert len(log.checkpoints()) == 1


def test_a_line_that_a_checkpoint_covers_is_never_cut(open_log: Open, tmp_path: Path) -> None:
    """A log that ends before its last checkpoint is broken wherever it ends, and is left as it is."""
    fill(open_log)
    path = tmp_path / "audit" / "audit.jsonl"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at])
        with pytest.raises(AuditError) as caught:
            open_log()
        assert caught.value.code == "audit_broken"
        assert caught.value.details["record"] == whole[:at].count(b"\n")
        assert path.stat().st_size == at


def test_a_corrupt_byte_is_found_at_start(open_log: Open, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R14: a changed byte in log or checkpoints refuses the start or, where it looks torn, is recorded."""
    fill(open_log, 30, checkpoint_records=10)
    rng, missed = random.Random(SEED), 0
    for number in range(100):
        directory = tmp_path / "copy"
        shutil.copytree(tmp_path / "audit", directory)
        path = directory / ("audit.jsonl", "checkpoints")[number % 2]
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            with open_log(directory) as log:
                missed += parsed(log)[-1].event != "audit.recovered"
        except AuditError as exc:
            missed += exc.code != "audit_broken"
        shutil.rmtree(directory)
    with capsys.disabled():
        print(f"\nR14 audit seed {SEED}: tried 100, failed {missed}")
    assert missed == 0, f"seed {SEED}"


# --- failed calls ---


class Faults:
    """Makes the n-th of the calls that change or sync the log fail; writes fail half done."""

    CALLS = ("fsync", "write", "ftruncate", "open")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int) -> None:
        self.count = 0
        self.fail_at = fail_at
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count != self.fail_at:
                return call(*args, **kwargs)
            if name == "write":
                call(args[0], bytes(args[1])[: len(args[1]) // 2])
            raise OSError(errno.EIO if name == "fsync" else errno.ENOSPC, "injected")

        return counted


def acts(open_log: Open, done: list[int], retry: bool) -> None:
    """Append until refused; with ``retry`` go on after recovering, twice at most."""
    with open_log(checkpoint_records=2) as log:
        number = 0
        while number < 6:
            try:
                log.append("object.open", actor="alice", n=number)
            except AuditError:
                assert log.failure
                if not retry:
                    return
                with suppress(AuditError):
                    log.retry()
            else:
                done.append(number)
                number += 1


@pytest.mark.parametrize("retry", [False, True])
def test_each_failing_call_loses_nothing_acknowledged(
    open_log: Open, tmp_path: Path, key: VerifierKey, retry: bool
) -> None:
    """R3: whichever write, fsync, truncate or open fails, acknowledged records stay and the log verifies."""
    fail_at, reached = 1, True
    while reached:
        done: list[int] = []
        with pytest.MonkeyPatch.context() as monkeypatch:
            faults = Faults(monkeypatch, fail_at)
            with suppress(AuditError):
                acts(open_log, done, retry)
        reached = faults.count >= fail_at
        with open_log() as log:
            records = [record for record in parsed(log) if record.event == "object.open"]
            numbers = [record.fields["n"] for record in records]
            assert numbers[: len(done)] == done
            if retry:  # this process cut off what it had not acknowledged
                assert numbers == done
            log.checkpoint()
            verify_log(log.read(0, 100), log.checkpoints(), (key,))
        shutil.rmtree(tmp_path / "audit")
        fail_at += 1
    assert fail_at > 20
    assert done == list(range(6))


def test_a_failed_fsync_refuses_until_retry(open_log: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed fsync every append is refused, though the disk works again, until retry read back."""
    with open_log() as log:
        assert log.append("a.b", actor="a") == 0
        with monkeypatch.context() as failing:
            Faults(failing, 2)
            with pytest.raises(AuditError, match="injected") as caught:
                log.append("a.b", actor="lost")
            assert caught.value.retryable
        for _ in range(2):
            with pytest.raises(AuditError, match="injected"):
                log.append("a.b", actor="a")
        assert [record.actor for record in parsed(log)] == ["a"]
        log.retry()
        assert log.append("a.b", actor="b") == 2
        assert [record.actor for record in parsed(log)] == ["a", "smpd", "b"]
        assert parsed(log)[1].fields["reason"] == "[Errno 5] injected"


def test_retry_refuses_a_disk_that_lost_acknowledged_records(
    open_log: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If what comes back from the disk is not what was acknowledged, the log is broken and stays refused."""
    with open_log() as log:
        for _ in range(3):
            log.append("a.b", actor="a")
        with monkeypatch.context() as failing:
            Faults(failing, 2)
            with pytest.raises(AuditError):
                log.append("a.b", actor="a")
        path = tmp_path / "audit" / "audit.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
        with pytest.raises(AuditError) as caught:
            log.retry()
        assert caught.value.code == "audit_broken"
        with pytest.raises(AuditError, match="acknowledged"):
            log.append("a.b", actor="a")


# --- full disks and kills, in another process ---


def run_child(command: list[str], **kwargs: Any) -> tuple[list[int], str]:
    """Run until it refuses; the acknowledged numbers, and what it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **kwargs)
    lines = done.stdout.splitlines()
    return [int(line.split()[0]) for line in lines if line[0].isdigit()], done.stdout + done.stderr


def child(directory: Path, threads: int, filler: int = 10) -> list[str]:
    return [sys.executable, str(CHILD), str(directory), str(threads), str(filler)]


def test_a_file_size_limit_refuses_and_loses_nothing(open_log: Open, tmp_path: Path) -> None:
    """At the process's file size limit appends are refused; later the log opens with nothing lost."""
    limit = 200_000
    numbers, said = run_child(
        child(tmp_path / "audit", 2, 200),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "refused audit_unwritable" in said
    with open_log() as log:
        assert len(numbers) > 10
        assert sorted(numbers) == list(range(len(numbers)))
        assert [record.seq for record in parsed(log)][: len(numbers)] == sorted(numbers)
        log.append("object.open", actor="alice")


def test_a_full_disk_refuses_and_goes_on_when_space_returns(open_log: Open, tmp_path: Path) -> None:
    """R7: on a full file system appends are refused; with space again the log goes on, nothing lost."""
    mount = tmp_path / "mount"
    mount.mkdir()
    script = f"mount -t tmpfs -o size=256k none {mount} && {' '.join(child(mount / 'audit', 2, 200))}; "
    script += f"cp -r {mount}/audit {tmp_path}/audit"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no unprivileged mount namespaces here")
    numbers, said = run_child(["unshare", "-rm", "sh", "-c", script])
    assert "No space left on device" in said
    with open_log() as log:
        assert len(numbers) > 10
        assert [record.seq for record in parsed(log)][: len(numbers)] == sorted(numbers)
        log.append("object.open", actor="alice")


def lines_of(process: "subprocess.Popen[bytes]") -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.endswith(b"\n"):
            yield line.decode()


def test_kill_keeps_every_acknowledged_record(open_log: Open, tmp_path: Path, key: VerifierKey) -> None:
    """kill -9 in the middle of concurrent appends: each acknowledged record is there, with its number."""
    rng = random.Random(SEED)
    acknowledged: dict[int, str] = {}
    for _ in range(6):
        with subprocess.Popen(child(tmp_path / "audit", 3), stdout=subprocess.PIPE) as process:
            after = rng.randrange(1, 120)
            for count, line in enumerate(lines_of(process), 1):
                seq, worker = line.split()
                acknowledged[int(seq)] = f"worker{worker}"
                if count == after:
                    process.send_signal(signal.SIGKILL)
    with open_log() as log:
        records = parsed(log)
        assert len(acknowledged) > 50
        assert {seq: records[seq].actor for seq in acknowledged} == acknowledged, f"seed {SEED}"
        log.checkpoint()
        verify_log(log.read(0, 1 << 30), log.checkpoints(), (key,))
