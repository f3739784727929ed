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
from scene import Following, client

from smp_proto.control import GetSpec, LocalConfig, RunSpec
from smp_proto.errors import SmpError
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpctl import Client

MIB = 1 << 20
DISK_BYTES = 24 * MIB


class Disk:
    """A file system of 24 MiB with the state of a box on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def leave(self, free: int) -> None:
        """Fill all but so many bytes."""
        self.clear()
        stat = os.statvfs(self.path)
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(stat.f_bavail * stat.f_frsize - free, 1))

    def clear(self) -> None:
        """Make space."""
        self._ballast.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """A small tmpfs, where this user may mount one."""
    path = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "none", str(path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.decode().strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture(scope="module")
def full(disk: Disk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A box whose state is on that disk, and a remote ``disk`` on another one with an object of 2 MiB."""
    folder = tmp_path_factory.mktemp("full")
    config = {
        "paths": {"state": str(disk.path / "state")},
        "fetch": {"slots": 2, "slot_bytes": MIB, "processes": 1},
        "compute": {"slots": 2, "processors": ["digest"]},
        "audit": {"checkpoint_s": 0.2},
    }
    machine = Box(folder / "box", config)
    machine.state = disk.path / "state"
    sender, stored = Identity.generate("hospital"), folder / "stored"
    stored.mkdir()
    try:
        machine.start()
        with client(machine) as caller:
            sealed = bytearray()
            writer = BundleWriter(
                sealed.extend, sender=sender, recipients=[PublicIdentity.parse(caller.box_key().text)]
            )
            writer.begin("a.bin")
            writer.write(PLAIN)
            writer.end()
            writer.finish()
            (stored / "a.smp").write_bytes(sealed)
            caller.trust_add("hospital", sender.public.text())
            caller.remote_add("disk", LocalConfig(str(stored)))
        yield machine
        machine.ctl("audit", "verify")
        assert machine.stop() == 0
    finally:
        machine.close()


@pytest.fixture(autouse=True)
def _space(disk: Disk) -> Iterator[None]:
    yield
    disk.clear()


@pytest.mark.parametrize("spec", [GetSpec("disk:a.smp"), RunSpec("disk:a.smp", "digest")], ids=["get", "run"])
def test_no_space_for_the_spool(full: Box, disk: Disk, spec: GetSpec | RunSpec) -> None:
    """The job waits and says what for; with space it goes on and ends, without anybody's help."""
    disk.leave(MIB)
    with client(full) as caller, Following(full) as following:
        vault = caller.vault()
        job = caller.submit(spec).id
        view = following.until(job, lambda view: view.state == "waiting" and view.attempt > 1)
        assert view.error
        assert view.error.code == "disk_full"
        assert "disk:a.smp" in view.error.message
        assert "smpctl vault" in view.error.hint
        assert caller.vault() == vault
        assert caller.status().free_bytes < 2 * MIB
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
        following.until("", lambda view: view.state == "waiting" and view.attempt > 1)
        disk.clear()
        said = waiting.communicate(timeout=60)[1].decode()
    assert waiting.returncode == 0, said
    assert said.count("disk:a.smp: no space is left for the spool") == 1
    assert "smpctl vault rm" in said


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
    """Where not even the audit log can grow nothing is accepted; the daemon answers, and recovers by itself."""
    disk.leave(0)
    with client(full) as caller:
        refused = [refusal(caller) for _ in range(20)]
        assert {error.code for error in refused if error} <= {"audit_unwritable", "disk_full"}
        assert refused[-1]
        assert all(error.hint for error in refused if error)
        disk.clear()
        deadline = time.monotonic() + 60
        while not caller.status().audit_ok:
            assert time.monotonic() < deadline
        assert refusal(caller) is None
        for job in caller.jobs():
            view = caller.wait(job.id)
            assert view.state == "done", view.error


def refusal(caller: Client) -> SmpError | None:
    """Why a job was not accepted, if it was not."""
    try:
        caller.submit(GetSpec("disk:a.smp"))
    except SmpError as error:
        return error
    return None
