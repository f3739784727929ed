"""Limits that hold work back in a running daemon, and let it go on when they are changed."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from box import Box, box
from scene import Following, client, done

from smp_proto.control import GetSpec, LimitView

MIB = 1 << 20
CONFIG = {"fetch": {"slots": 2, "slot_bytes": MIB, "processes": 1, "idle_s": 3.0}}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A box with a folder that holds a plain object of four ranges."""
    folder = tmp_path_factory.mktemp("limits")
    (folder / "store").mkdir()
    (folder / "store" / "scan").write_bytes(bytes(4 * MIB))
    with box(folder / "box", CONFIG) as machine:
        machine.ctl("remote", "add", "disk", f"file://{folder / 'store'}", "--mode", "standard")
        yield machine


def hold(machine: Box, **limits: object) -> None:
    """Take limits of the remote up."""
    machine.configure(**{"limits.disk": limits})
    machine.ctl("reload")


def held(machine: Box) -> LimitView:
    """The limit, once somebody waits for it."""
    with client(machine) as ctl:
        until = time.monotonic() + 100
        while time.monotonic() < until:
            limits = ctl.status().limits
            if limits and limits[0].waiting:
                return limits[0]
    raise AssertionError("nobody waits")


def test_a_rate_holds_ranges_back(machine: Box) -> None:
    """At a byte a second one range comes, and the next waits, which status shows; without the limit the job ends."""
    hold(machine, bytes_per_s=1)
    with Following(machine) as following, client(machine) as ctl:
        job = ctl.submit(GetSpec("disk:scan"))
        limit = held(machine)
        assert (limit.name, limit.bytes_per_s, limit.quiet) == ("disk", 1.0, False)
        assert "limit disk: 1 B/s; " in machine.ctl("status").stdout.decode()
        assert ctl.job(job.id).state == "running"
        hold(machine, bytes_per_s=0)
        assert done(following.final(job.id)).attempt == 1
        assert ctl.status().limits == []


def test_quiet_hours_hold_jobs_back(machine: Box) -> None:
    """A job does not begin in them, and loses no attempt; a person may look; afterwards the job goes on."""
    hold(machine, times=["daily 00:00-24:00 quiet"])
    with Following(machine) as following, client(machine) as ctl:
        job = ctl.submit(GetSpec("disk:scan"))
        waiting = following.until(job.id, lambda view: view.state == "waiting")
        assert waiting.error is not None
        assert (waiting.error.code, waiting.attempt) == ("quiet_hours", 0)
        assert "limit disk: QUIET" in machine.ctl("status").stdout.decode()
        assert b"scan" in machine.ctl("ls", "disk:").stdout
        hold(machine, times=[])
        assert done(following.final(job.id)).attempt == 1


def test_a_rate_holds_an_upload_back(machine: Box, tmp_path: Path) -> None:
    """Between two steps of it."""
    (tmp_path / "result").write_bytes(bytes(24 * MIB))
    hold(machine, bytes_per_s=1)
    with Following(machine) as following:
        job = machine.json("put", tmp_path / "result", "disk:up.smp", "--to", "box", "--detach")["id"]
        held(machine)
        hold(machine, bytes_per_s=0)
        done(following.final(job))
