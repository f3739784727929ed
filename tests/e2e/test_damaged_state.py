"""A damaged state: the daemon starts, says what is lost and what to type, and a broken audit log waits for an admin."""

import contextlib
import os
import shutil
import sqlite3
import tarfile
from pathlib import Path

import msgspec
import pytest
from box import Box
from faulty import until
from scene import client

from smp_proto.audit.note import iter_notes
from smp_proto.control import GetSpec, LocalConfig
from smp_proto.errors import AuditError, SmpError
from smp_proto.sealed.filekey import random_secret
from smp_proto.sealed.keys import Identity
from smpd.jobs.database import Database
from smpd.jobs.pages import FRAME_HEADER_BYTES, read_wal
from smpd.jobs.seal import StateSeal
from smpd.vault import keys
from smpd.vault.checkpoint import LastCheckpoint
from smpd.vault.trust import TrustStore

_ROOT = "SELECT rootpage FROM sqlite_master WHERE name='{}'"
FIXTURE = Path(__file__).parents[1] / "fixtures" / "state-2.tar.xz"


@pytest.fixture
def machine(tmp_path: Path):
    """A box on the state that a killed daemon left; it is not started."""
    with tarfile.open(FIXTURE) as tar:
        tar.extractall(tmp_path, filter="fully_trusted")
    tmp_path.chmod(0o700)
    found = Box(tmp_path, {"compute": {"processors": []}})
    yield found
    found.close()


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def spoil_wal(machine: Box, part: int, left: int) -> None:
    """Overwrite the write-ahead log of a stopped daemon: from one ``part`` of its frames on, but for the last of them."""
    wal = machine.state / "smpd.db-wal"
    found = read_wal(str(wal))
    data = bytearray(wal.read_bytes())
    start = found.frames[len(found.frames) // part].offset - FRAME_HEADER_BYTES
    last = found.frames[-left].offset + found.page_size
    data[start:last] = os.urandom(last - start)
    wal.write_bytes(data)


def events(caller) -> list[dict]:
    return [msgspec.json.decode(line) for line in caller.audit_lines()]


def test_lost_jobs_are_named(machine: Box) -> None:
    """Frames that nothing can be read of cost the jobs in them: they are in the audit log, and doctor says so."""
    spoil_wal(machine, 2, 6)
    machine.start()
    with client(machine) as caller:
        records = events(caller)
        salvaged = next(record for record in records if record["event"] == "state.salvaged")
        assert (machine.state / salvaged["fields"]["set_aside"]).exists()
        known = {job.id for job in caller.jobs()}
        submitted = {record["job"] for record in records if record["event"] == "job.submit"}
        ended = {record["job"] for record in records if record["event"] in ("job.done", "job.cancelled")}
        lost = {record["job"] for record in records if record["event"] == "job.lost"}
        assert lost == submitted - known - ended
        notes = " ".join(check.text for check in caller.doctor())
        assert "set aside as smpd.db.damaged-" in notes
        assert all(job in notes for job in lost)
    machine.ctl("audit", "verify")
    assert machine.stop() == 0
    machine.start()
    with client(machine) as caller:
        assert "set aside as smpd.db.damaged-" in " ".join(check.text for check in caller.doctor())
        assert [record["event"] for record in events(caller)].count("state.salvaged") == 1


def test_a_damaged_remote(machine: Box, tmp_path: Path) -> None:
    """It can be removed and added again, as doctor says."""
    machine.start()
    machine.ctl("remote", "add", "ward", f"file://{tmp_path}")
    assert machine.stop() == 0
    with contextlib.closing(sqlite3.connect(machine.state / "smpd.db")) as db, db:
        db.execute("UPDATE remotes SET body=x'00' WHERE name='ward'")
    machine.start()
    assert "the record of remote ward is damaged" in machine.ctl("doctor", check=False).stdout.decode()
    machine.ctl("remote", "remove", "ward")
    machine.ctl("remote", "add", "ward", f"file://{tmp_path}")


def test_a_file_of_the_vault_that_is_gone(machine: Box) -> None:
    """The command that doctor shows for it does away with it."""
    file = next((machine.state / "vault" / "objects").iterdir())
    file.unlink()
    machine.start()
    typed = f"smpctl vault rm {file.stem}"
    assert f"the file of vault object {file.stem} is gone: restore it from a backup, or: {typed}" in " ".join(
        machine.ctl("doctor", check=False).stdout.decode().split()
    )
    machine.ctl(*typed.split()[1:], "--yes")
    with client(machine) as caller:
        assert file.stem not in [item.id for item in caller.vault()]


def test_a_broken_audit_log(machine: Box) -> None:
    """The daemon runs and lets look; acts are refused, jobs wait, until an admin begins a new log that names the old one."""
    machine.start()
    with client(machine) as caller:  # else it waits by the clock of the machine that the state is from
        (job,) = until(lambda: [job for job in caller.jobs() if job.state == "waiting"])
        caller.pause(job.id)
        caller.resume(job.id)
    assert machine.stop() == 0
    flip(machine.state / "audit" / "audit.jsonl", 40)
    machine.start()
    with client(machine) as caller:
        assert not caller.status().audit_ok
        check = next(check for check in caller.doctor() if check.name == "audit")
        assert check.state == "fail"
        assert "smpctl audit renew" in check.hint
        assert caller.vault()
        with pytest.raises(AuditError) as caught:
            caller.submit(GetSpec("disk:a.smp"))
        assert caught.value.code == "audit_broken"
        assert machine.ctl("audit", "verify", check=False).returncode == 11
        assert machine.ctl("audit", "tail").stdout
        waiting = until(lambda: [job for job in caller.jobs() if job.error and job.error.code == "audit_broken"])
        assert [(found.id, found.state) for found in waiting] == [(job.id, "waiting")]
        assert waiting[0].attempt <= 1
    assert machine.stop() == 0
    machine.start()
    for blank in ("", " \t"):
        assert machine.ctl("audit", "renew", "--reason", blank, check=False).returncode == 2
    machine.ctl("audit", "renew", "--reason", "a flipped bit")
    found = machine.ctl("audit", "verify").stdout.decode()
    assert "set aside as set-aside-1" in found
    with client(machine) as caller:
        assert caller.status().audit_ok
        first = events(caller)[0]
        assert (first["event"], first["fields"]["reason"]) == ("audit.begin", "a flipped bit")
        with pytest.raises(SmpError) as again:
            caller.audit_renew("once more")
        assert again.value.code == "wrong_state"


def test_an_audit_log_without_its_checkpoints(machine: Box) -> None:
    """One that somebody changed while smpd was stopped, and left the checkpoints out of, is not signed anew."""
    machine.start()
    assert machine.stop() == 0
    log, notes = (machine.state / "audit" / name for name in ("audit.jsonl", "checkpoints"))
    log.write_bytes(log.read_bytes().replace(b'"actor":"', b'"actor":"not '))
    notes.write_bytes(b"")
    machine.start()
    with client(machine) as caller:
        assert not caller.status().audit_ok
    assert machine.ctl("audit", "verify", check=False).returncode == 11  # although by itself it is in order
    assert not notes.read_bytes()
    machine.ctl("audit", "renew", "--reason", "somebody was here")
    machine.ctl("audit", "verify")


def test_a_state_of_somebody_else(machine: Box) -> None:
    """Whoever may write the disk can give the box a database of theirs; that they did, the audit log says for good."""
    machine.start()
    assert machine.stop() == 0
    folder = machine.state / "keys"
    public, root = Identity.peek((folder / keys.IDENTITY).read_bytes()), random_secret(32)
    theirs = keys._expand(root, b"smpd state")
    for where in (folder, folder / keys.COPIES):
        (where / keys.STATE_KEY).write_bytes(public.wrap(root, b"smpd state key"))
    for path in machine.state.glob("smpd.db*"):
        path.unlink()
    database, eve = Database(str(machine.state / "smpd.db")), Identity.generate("eve").public
    seal = StateSeal(theirs)
    TrustStore(database, seal).add("eve", eve.text(), key_id=eve.key_id, fingerprint=eve.fingerprint())
    notes = iter_notes((machine.state / "audit" / "checkpoints").read_bytes().splitlines(keepends=True))
    LastCheckpoint(database, seal).keep(list(notes)[-1])
    database.close()
    for _ in range(2):
        machine.start()
        with client(machine) as caller:
            adopted = [record["fields"]["reason"] for record in events(caller) if record["event"] == "audit.adopted"]
        assert adopted[-1] == "the key of the database was not signed by the box"
        assert len(adopted) == 2  # the first is of the upgrade
        assert machine.stop() == 0


@pytest.mark.parametrize("name", [keys.IDENTITY, keys.STATE_KEY, keys.CREDENTIAL])
@pytest.mark.parametrize("copy", [False, True])
def test_a_damaged_key_file(machine: Box, name: str, copy: bool) -> None:
    """Either copy is enough, also one that is gone; what was damaged is kept, and both are whole afterwards."""
    machine.start()
    assert machine.stop() == 0
    folder = machine.state / "keys"
    good = (folder / name).read_bytes()
    damaged = folder / keys.COPIES / name if copy else folder / name
    flip(damaged, len(good) // 2)
    was = damaged.read_bytes()
    machine.start()
    with client(machine) as caller:
        assert f"{damaged} was damaged" in " ".join(check.text for check in caller.doctor())
        assert caller.vault()
    assert machine.stop() == 0
    assert damaged.with_name(f"{name}.damaged").read_bytes() == was
    assert damaged.read_bytes() == good
    (folder / name).unlink()
    machine.start()
    with client(machine) as caller:
        assert caller.vault()
    assert machine.stop() == 0
    assert (folder / name).read_bytes() == good


def test_lost_jobs_are_named_although_the_audit_log_is_broken_too(tmp_path: Path) -> None:
    """One disk may have damaged both: later nobody could tell, since the log that knows the jobs is set aside then."""
    machine = Box(tmp_path / "box", {"compute": {"processors": []}})
    try:
        machine.start()
        with client(machine) as caller:
            caller.remote_add("lake", LocalConfig(str(tmp_path)))
            submitted = {caller.submit(GetSpec(f"lake:{number}.smp")).id for number in range(20)}
        machine.kill()
        spoil_wal(machine, 3, 3)
        flip(machine.state / "audit" / "audit.jsonl", 0)
        machine.start()
        with client(machine) as caller:
            lost = submitted - {job.id for job in caller.jobs()}
            checks = caller.doctor()
        assert next(check.state for check in checks if check.name == "audit") == "fail"
        assert lost == {check.text.split()[1] for check in checks if "was lost with the damaged database" in check.text}
        assert lost
    finally:
        machine.close()


def test_a_sender_who_was_removed_is_not_believed_again(tmp_path: Path) -> None:
    """What can be read of the database may be from before: the audit log knows better."""
    machine = Box(tmp_path / "box")
    try:
        machine.start()
        with client(machine) as caller:
            for name in ("eve", "otto"):
                caller.trust_add(name, Identity.generate(name).public.text())
        assert machine.stop() == 0
        machine.start()
        with client(machine) as caller:
            caller.trust_remove("eve")
            caller.remote_add("lake", LocalConfig(str(tmp_path)))
        machine.kill()
        shutil.copyfile(machine.state / "smpd.db", tmp_path / "copy.db")  # SQLite would tidy up beside the other
        (page,) = sqlite3.connect(tmp_path / "copy.db").execute(_ROOT.format("trust")).fetchone()
        wal = machine.state / "smpd.db-wal"
        (frame,) = [frame for frame in read_wal(str(wal)).frames if frame.page == page]
        flip(wal, frame.offset + 3000)
        machine.start()
        with client(machine) as caller:
            assert [view.name for view in caller.trusted() if not view.removed] == ["otto"]
            assert "that sender eve was removed was lost" in " ".join(check.text for check in caller.doctor())
    finally:
        machine.close()


@pytest.mark.parametrize(("kind", "table"), [("sender", "trust"), ("remote", "remotes")])
@pytest.mark.parametrize("later", [False, True])
def test_what_was_removed_does_not_come_back(tmp_path: Path, kind: str, table: str, later: bool) -> None:
    """Where the frame of the write-ahead log that holds it is damaged: the last one, or one before others."""
    machine = Box(tmp_path / "box", {"compute": {"processors": []}})
    try:
        machine.start()
        with client(machine) as caller:
            for name in ("eve", "otto"):
                caller.trust_add(name, Identity.generate(name).public.text())
                caller.remote_add(name, LocalConfig(str(tmp_path)))
        assert machine.stop() == 0
        machine.start()
        with client(machine) as caller:
            (caller.trust_remove if kind == "sender" else caller.remote_remove)("eve")
            if later:
                caller.submit(GetSpec("otto:x.smp"))
        machine.kill()
        shutil.copyfile(machine.state / "smpd.db", tmp_path / "copy.db")
        (page,) = sqlite3.connect(tmp_path / "copy.db").execute(_ROOT.format(table)).fetchone()
        wal = machine.state / "smpd.db-wal"
        frame = [frame for frame in read_wal(str(wal)).frames if frame.page == page or not later][-1]
        flip(wal, frame.offset + 3000)
        assert (read_wal(str(wal)).torn, read_wal(str(wal)).damaged) == (True, later)
        machine.start()
        with client(machine) as caller:
            believed = [view.name for view in caller.trusted() if not view.removed]
            known = [view.name for view in caller.remotes()]
            assert (believed if kind == "sender" else known) == ["otto"]
            assert f"that {kind} eve was removed was lost" in " ".join(check.text for check in caller.doctor())
    finally:
        machine.close()
