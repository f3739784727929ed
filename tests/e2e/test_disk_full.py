"""A disk that is full: the job says so, nothing is half done, and it goes on by itself when there is space again."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from box import Box
from refusals import PLAIN, marked
from scene import Following, client, spool_empties
from small_disk import Disk, no_small_disk, small_disk

from smp_proto.control import GetSpec, LocalConfig, RunSpec
from smp_proto.errors import SmpError
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpctl import Client

MIB = 1 << 20
DISK_BYTES = 24 * MIB


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """A small file system, where this user may mount one."""
    if reason := no_small_disk():
        pytest.skip(reason)
    with small_disk(tmp_path_factory.mktemp("disk"), DISK_BYTES) as found:
        yield found


@pytest.fixture(scope="module")
def full(disk: Disk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A box whose state is on that disk, and a remote ``disk`` on another one with two objects of 2 MiB."""
    folder = tmp_path_factory.mktemp("full")
    config = {
        "paths": {"state": str(disk.path / "state")},
        "fetch": {"slots": 2, "slot_bytes": MIB, "processes": 1},
        "compute": {"slots": 2, "processors": ["digest", "image.edges"]},
        "audit": {"checkpoint_s": 0.2},
    }
    machine = Box(folder / "box", config)
    machine.state = disk.path / "state"
    sender, stored = Identity.generate("hospital"), folder / "stored"
    stored.mkdir()
    try:
        machine.start()
        with client(machine) as caller:
            for name, kind in (("a", ""), ("no-picture", "image/png")):
                sealed = bytearray()
                writer = BundleWriter(
                    sealed.extend, sender=sender, recipients=[PublicIdentity.parse(caller.box_key().text)]
                )
                writer.begin("a.bin", kind)
                writer.write(PLAIN)
                writer.end()
                writer.finish()
                (stored / f"{name}.smp").write_bytes(sealed)
            caller.trust_add("hospital", sender.public.text())
            caller.remote_add("disk", LocalConfig(str(stored)))
        yield machine
        machine.ctl("audit", "verify")
        assert machine.stop() == 0
    finally:
        machine.close()


@pytest.fixture(autouse=True)
def _space(full: Box, disk: Disk) -> Iterator[None]:
    spool_empties(full)  # or what an earlier test left goes, and makes room, in the middle of this one
    yield
    disk.clear()


@pytest.mark.parametrize("spec", [GetSpec("disk:a.smp"), RunSpec("disk:a.smp", "digest")], ids=["get", "run"])
def test_no_space_for_the_spool(full: Box, disk: Disk, spec: GetSpec | RunSpec) -> None:
    """The job waits and says what for; with space it goes on and ends, without anybody's help."""
    disk.leave(MIB)
    with client(full) as caller, Following(full) as following:
        vault = caller.vault()
        job = caller.submit(spec).id
        view = following.until(job, lambda view: view.state == "waiting")
        assert view.attempt == 0
        assert view.error
        assert view.error.code == "disk_full"
        assert view.error.details["needed_bytes"] > view.error.details["usable_bytes"]
        assert "smpctl vault" in view.error.hint
        assert caller.vault() == vault
        status = caller.status()
        assert status.free_bytes < 5 * MIB
        assert status.short_jobs == 1
        checks = {check.name: check for check in caller.doctor()}
        assert checks["disk"].state == "fail"
        assert "1 jobs wait" in checks["disk"].text
        disk.clear()
        view = following.final(job)
        assert view.state == "done", view.error
        assert view.result
        caller.vault_remove(view.result.vault_id)


def test_a_person_who_waits_is_told_why(full: Box, disk: Disk) -> None:
    """``smpctl get`` goes on waiting, says what for, and ends well."""
    disk.leave(MIB)
    with Following(full) as following:
        arguments = [sys.executable, "-m", "smpctl", "get", "disk:a.smp"]
        waiting = subprocess.Popen(arguments, env=full.env, stderr=subprocess.PIPE)
        following.until("", lambda view: view.state == "waiting")
        disk.clear()
        said = waiting.communicate(timeout=60)[1].decode()
    assert waiting.returncode == 0, said
    assert said.count("no space is left for") == 1
    assert "smpctl vault rm" in said


def test_a_failed_job_makes_room(full: Box, disk: Disk) -> None:
    """What it received goes to a job that waits, without anybody's help; resumed, it fetches that again."""
    with client(full) as caller, Following(full) as following:
        failed = caller.submit(RunSpec("disk:no-picture.smp", "image.edges")).id
        view = following.final(failed)
        assert (view.state, view.error and view.error.code) == ("failed", "processor_failed")
        assert os.listdir(full.state / "spool") == [f"{failed}.part"]
        disk.leave(MIB)
        view = following.final(caller.submit(GetSpec("disk:a.smp")).id)
        assert view.state == "done", view.error
        assert view.result
        spool_empties(full)
        assert caller.job(failed).state == "failed"
        disk.clear()
        caller.vault_remove(view.result.vault_id)
        caller.resume(failed)
        assert caller.wait(failed).state == "failed"
        assert os.listdir(full.state / "spool") == [f"{failed}.part"]
        caller.cancel(failed)


def test_no_space_for_a_put(full: Box, disk: Disk, tmp_path: Path) -> None:
    """A put is refused before it is acknowledged, and leaves nothing in the spool."""
    (tmp_path / "letter").write_bytes(marked(3 * MIB))
    disk.leave(MIB)
    done = full.ctl("put", tmp_path / "letter", "disk:new.smp", "--to", "box", "--json", check=False)
    assert done.returncode == 8, done.stderr
    error = msgspec.json.decode(done.stdout)["error"]
    assert error["code"] == "disk_full"
    assert "spool" in error["message"]
    assert "smpctl vault" in error["hint"]
    assert os.listdir(full.state / "spool") == []
    disk.clear()
    full.ctl("put", tmp_path / "letter", "disk:new.smp", "--to", "box")


def test_no_byte_left(full: Box, disk: Disk) -> None:
    """With every byte taken by others, what a person does to make room works and is recorded, and jobs wait."""
    with client(full) as caller, Following(full) as following:
        kept = following.final(caller.submit(GetSpec("disk:a.smp")).id).result
        assert kept
        disk.leave(0)
        jobs = [caller.submit(GetSpec("disk:a.smp")).id for _ in range(3)]
        assert following.until(jobs[2], lambda view: view.state == "waiting").error
        caller.cancel(jobs[0])
        caller.vault_remove(kept.vault_id)
        assert kept.vault_id not in [item.id for item in caller.vault()]
        status = caller.status()
        assert status.audit_ok
        assert status.reserve_held_bytes < status.reserve_bytes
        events = [msgspec.json.decode(line)["event"] for line in caller.audit_lines()]
        assert events.count("vault.remove") >= 1
        disk.clear()
        for job in jobs[1:]:
            assert following.final(job).state == "done"
        while caller.status().reserve_held_bytes < status.reserve_bytes:
            assert caller.status().free_bytes


def test_the_quarantine_can_be_emptied(full: Box, disk: Disk, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With every byte taken, what was refused is still refused with its reason, and removing it makes room."""
    stored = tmp_path_factory.mktemp("bad")
    data = bytearray((full.folder.parent / "stored" / "a.smp").read_bytes())
    data[MIB + 9] ^= 1
    (stored / "bad.smp").write_bytes(data)
    with client(full) as caller, Following(full) as following:
        caller.remote_add("bad", LocalConfig(str(stored)))
        jobs = [caller.submit(GetSpec("bad:bad.smp")).id]
        assert following.final(jobs[0]).state == "quarantined"
        (kept,) = caller.quarantine(jobs[0])
        assert kept.kept_bytes > MIB
        disk.leave(0)
        jobs.append(caller.submit(RunSpec("bad:bad.smp", "digest")).id)  # waits for room in the spool
        following.until(jobs[1], lambda view: view.state == "waiting")
        before = disk.free
        assert caller.quarantine_remove(kept.id).state == "cancelled"
        assert disk.free > before
        assert not caller.quarantine()
        disk.clear()
        assert following.final(jobs[1]).state == "quarantined"
        caller.cancel(jobs[1])
        caller.remote_remove("bad")


def test_somebody_takes_the_reserve_too(full: Box, disk: Disk) -> None:
    """Where not even the audit log can grow nothing is accepted; the daemon answers, and recovers by itself."""
    with client(full) as caller:
        refused: SmpError | None = None
        for _ in range(50):
            disk.leave(0)
            refused = refusal(caller)
            if refused:
                break
        assert refused
        assert refused.code in {"audit_unwritable", "disk_full"}
        assert refused.hint
        assert caller.status().reserve_held_bytes == 0
        disk.clear()
        deadline = time.monotonic() + 60
        while not caller.status().audit_ok:
            assert time.monotonic() < deadline
        assert refusal(caller) is None
        for job in caller.jobs():
            view = caller.wait(job.id)
            assert view.state in ("done", "cancelled"), view.error


def refusal(caller: Client) -> SmpError | None:
    """Why a job was not accepted, if it was not."""
    try:
        caller.submit(GetSpec("disk:a.smp"))
    except SmpError as error:
        return error
    return None
