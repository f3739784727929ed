"""Faults reach the daemon and its workers, and only while they are to."""

import box
from box import Box

from smp_proto.control import LocalConfig
from smpctl import Client
from torture.planted import planting

VERSION = "torture.faults.telling:version=9.9"
FACT = "torture.faults.telling:probe=here"


def test_a_planted_daemon_and_its_workers(tmp_path) -> None:
    """Both are started with the faults that are named; a daemon that is started afterwards is whole."""
    machine = Box(tmp_path / "box")
    try:
        with planting(VERSION), planting(FACT):
            machine.start()
        with Client(str(machine.socket)) as caller:
            assert caller.status().version == "9.9"
            caller.remote_add("disk", LocalConfig(str(tmp_path)))
            assert caller.remote_test("disk").facts == {"planted": "here"}
        machine.stop()
        machine.start()
        with Client(str(machine.socket)) as caller:
            assert caller.status().version != "9.9"
    finally:
        machine.close()
    assert box.LAUNCH == ["-m", "smpd"]
