"""No file descriptor left: whoever asks is told or waits, jobs are tried again, and the daemon goes on afterwards."""

import os
import resource
import socket
import time
from pathlib import Path

import pytest
from box import Box, box
from refusals import PLAIN
from scene import client

from smp_proto.control import GetSpec, LocalConfig
from smp_proto.errors import DaemonError
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpctl import Client


def open_files(machine: Box) -> int:
    """How many the daemon has open."""
    assert machine.process
    return len(os.listdir(f"/proc/{machine.process.pid}/fd"))


def leave(machine: Box, count: int) -> None:
    """Let the daemon open so many more; None: as many as it may at most."""
    assert machine.process
    hard = resource.prlimit(machine.process.pid, resource.RLIMIT_NOFILE)[1]
    highest = max(map(int, os.listdir(f"/proc/{machine.process.pid}/fd")))
    resource.prlimit(machine.process.pid, resource.RLIMIT_NOFILE, (highest + 1 + count if count else hard, hard))


def cpu_s(machine: Box) -> float:
    """Processor time that the daemon has used."""
    assert machine.process
    fields = Path(f"/proc/{machine.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_none_left(tmp_path: Path) -> None:
    """A client is told that the daemon is busy, a job waits, the daemon does not spin, and all go on afterwards."""
    config = {"fetch": {"processes": 1, "slots": 2}, "jobs": {"attempts": 100, "backoff_max_s": 0.5}}
    with box(tmp_path / "box", config) as machine:
        sender, stored = Identity.generate("hospital"), tmp_path / "stored"
        stored.mkdir()
        with client(machine) as caller:
            sealed = bytearray()
            own = PublicIdentity.parse(caller.box_key().text)
            writer = BundleWriter(sealed.extend, sender=sender, recipients=[own])
            writer.begin("a.bin")
            writer.write(PLAIN)
            writer.end()
            writer.finish()
            (stored / "a.smp").write_bytes(sealed)
            caller.trust_add("hospital", sender.public.text())
            caller.remote_add("disk", LocalConfig(str(stored)))
            files = next(check for check in caller.doctor() if check.name == "files")
            assert files.state == "ok"
            before = open_files(machine)
            leave(machine, 3)
            job = caller.submit(GetSpec("disk:a.smp")).id
            others, refused = [], 0
            used, since = cpu_s(machine), time.monotonic()
            try:
                for _ in range(12):  # hold what is left, and then some
                    other = socket.socket(socket.AF_UNIX)
                    other.connect(str(machine.socket))
                    others.append(other)
                for _ in range(3):
                    with pytest.raises(DaemonError) as caught, Client(str(machine.socket)) as another:
                        another.status()
                    assert caught.value.retryable
                    refused += 1
                assert caller.status().jobs["failed"] == 0
                took = time.monotonic() - since
                assert cpu_s(machine) - used < 0.2 + 0.5 * took
            finally:
                for other in others:
                    other.close()
            leave(machine, 0)
            assert caller.wait(job).state == "done"
            assert refused == 3
        while open_files(machine) > before + 4:
            time.sleep(0.01)
        assert machine.stop() == 0
