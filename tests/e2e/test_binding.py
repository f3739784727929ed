"""What handles plaintext or keys has its symbols bound at the start."""

import os
from pathlib import Path

from box import Box
from scene import client, done, workers

from smp_proto.control import GetSpec


def test_smpd_and_its_workers(tmp_path: Path) -> None:
    """Also where whoever started smpd did not see to it: it is the same process, and says READY once."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "scan").write_bytes(os.urandom(1000))
    machine = Box(tmp_path / "box", {"compute": {"processors": ["digest"]}})
    del machine.env["LD_BIND_NOW"]
    try:
        machine.start()
        with client(machine) as caller:
            machine.ctl("remote", "add", "disk", f"file://{store}", "--mode", "standard")
            done(caller.wait(caller.submit(GetSpec("disk:scan")).id))
            machine.ctl("run", "digest", "disk:scan", "--export", tmp_path / "out")
            assert machine.process
            assert caller.status().pid == machine.process.pid
            found = [machine.process.pid, *workers(machine, "fetch"), *workers(machine, "compute")]
            assert len(found) >= 3
            for pid in found:
                assert b"LD_BIND_NOW=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    finally:
        machine.close()
