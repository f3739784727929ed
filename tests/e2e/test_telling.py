"""What the service manager is told: when a daemon is ready, how it is, and that it lives, as long as it does."""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from box import Box
from gated_s3 import gated_s3
from manager import Manager
from scene import Following, add_remote, client, done
from whole import whole

from smp_proto.control import GetSpec, JobView, LocalConfig, Submit, SyncSpec
from smp_proto.errors import ResourceError
from smpctl import Client
from smpd.host.notify import Notifier
from smpd.jobs.job import Job
from smpd.jobs.states import Move
from smpd.telling import Counts, Telling, status_line

MIB = 1 << 20


@pytest.fixture
def manager() -> Iterator[Manager]:
    """A manager of the test's own."""
    with tempfile.TemporaryDirectory(prefix="smpd-") as folder, Manager(f"{folder}/notify") as manager:
        yield manager


def test_status_line() -> None:
    """Jobs and rates where there are some, and what is wrong."""
    assert status_line(Counts(0, 0, 0), 0.0, 0.0, []) == "idle"
    line = status_line(Counts(2, 0, 1), 3.5 * MIB, 0.0, ["remote lake is down"])
    assert line == "2 running, 1 waiting, 3.5 MiB/s in, 0.0 MiB/s out; remote lake is down"


def pings_for(seconds: float, manager: Manager, ctl: Client) -> int:
    """How often the watchdog is fed while the daemon gets older by so much."""
    before, since = ctl.status().uptime_s, len(manager.told)
    while ctl.status().uptime_s < before + seconds:
        pass
    return manager.told[since:].count(["WATCHDOG=1"])


def test_pings_end_when_nothing_moves(tmp_path: Path, manager: Manager) -> None:
    """While a job moves and when there is none the watchdog is fed; not while a job runs in which nothing moves.

    It is fed again once something does. STATUS says it, too.
    """
    machine = Box(
        tmp_path / "box", {"fetch": {"processes": 1, "slots": 4, "slot_bytes": MIB}, "jobs": {"stuck_s": 1.0}}
    )
    machine.manager = manager
    machine.env |= {"WATCHDOG_USEC": "100000"}
    with gated_s3({"volume": bytes(8 * MIB)}) as (store, served):
        try:
            machine.start()
            add_remote(machine, "lake", served, "standard")
            with client(machine) as ctl, Following(machine) as following:
                store.hold_after(4 * MIB)
                job = ctl.submit(GetSpec("lake:volume"))
                store.until_held(1)
                while pings_for(0.5, manager, ctl):  # ten looks of the daemon's
                    assert ctl.job(job.id).state == "running"
                assert "NOTHING MOVES" in [line for lines in manager.told for line in lines if "STATUS" in line][-1]
                later = len(manager.told)
                store.release()
                done(following.final(job.id))
                at = manager.until(lambda line: line == "WATCHDOG=1", later)
                manager.until(lambda line: line == "STATUS=idle", at)
        finally:
            machine.close()


async def test_pings_go_on_while_the_disk_is_full(tmp_path: Path, manager: Manager, monkeypatch: Any) -> None:
    """A job whose end the disk does not take is as still as one that is stuck; a restart would end with an error."""
    (tmp_path / "r").mkdir()
    async with whole(tmp_path, scheduler=True, jobs={"stuck_s": 0.05}) as box, box.client(0) as caller:
        daemon = box.daemon
        move, free = daemon.box.journal.move, False

        def written(job_id: str, name: Move, **facts: Any) -> Job:
            if not free:
                raise ResourceError("disk_full", "no space is left")
            return move(job_id, name, **facts)

        monkeypatch.setattr(daemon.box.journal, "move", written)
        await anyio.to_thread.run_sync(daemon.remotes.add, "r", LocalConfig(str(tmp_path / "r")))
        job = await caller.call(Submit(GetSpec("r:nothing"), "k"), JobView)
        notifier = Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "20000"})
        with anyio.fail_after(30):
            while not daemon.scheduler.full:
                await anyio.lowlevel.checkpoint()
            async with anyio.create_task_group() as group:
                group.start_soon(Telling(daemon, notifier).run)
                while manager.told.count(["WATCHDOG=1"]) < 20:  # each a hundredth of a second after the one before
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
            free = True
            while daemon.box.journal.get(job.id).state != "failed":
                await anyio.lowlevel.checkpoint()


def test_pings_end_although_a_sync_is_alive(tmp_path: Path, manager: Manager) -> None:
    """What a sync lists, and what people ask, does not say that jobs move."""
    config = {"fetch": {"processes": 1, "slots": 4, "slot_bytes": MIB}, "jobs": {"stuck_s": 4.0}}
    machine = Box(tmp_path / "box", config)
    machine.manager = manager
    machine.env |= {"WATCHDOG_USEC": "100000"}
    folder = tmp_path / "folder"
    folder.mkdir()
    with gated_s3({"volume": bytes(8 * MIB)}) as (store, served):
        try:
            machine.start()
            add_remote(machine, "lake", served, "standard")
            machine.ctl("remote", "add", "folder", f"file://{folder}", "--mode", "standard")
            with client(machine) as ctl, Following(machine) as following:
                ctl.sync_add(SyncSpec(name="s", source="folder:", every_s=1.0))
                store.hold_after(4 * MIB)
                job = ctl.submit(GetSpec("lake:volume"))
                store.until_held(1)
                (listed,) = [each.last_poll for each in ctl.syncs()]
                while pings_for(0.5, manager, ctl):
                    ctl.remote_test("folder")
                    assert ctl.job(job.id).state == "running"
                while ctl.syncs()[0].last_poll <= listed:
                    pass  # it goes on all the time
                store.release()
                done(following.final(job.id))
        finally:
            machine.close()


def test_ready_once_the_device_was_tried(tmp_path: Path, manager: Manager) -> None:
    """Under a manager READY comes with what became of the device, whose process runs by then."""
    machine = Box(tmp_path / "box", {"compute": {"probe": "auto", "processors": ["digest"]}})
    machine.manager = manager
    try:
        machine.start()
        (told,) = [lines for lines in manager.told if "READY=1" in lines]
        assert "; device: secure-media-processor on cpu" in told[1]
        with client(machine) as ctl:
            assert [(each.role, each.state) for each in ctl.status().workers] == [("compute", "up")]
    finally:
        machine.close()


def test_a_device_that_fails_is_told_of(tmp_path: Path, manager: Manager) -> None:
    """A daemon whose device cannot be had is ready for all else, and says so."""
    nobody = {"probe": "start", "start": "socket", "socket": "/nowhere/smpd-compute.sock", "processors": ["digest"]}
    machine = Box(tmp_path / "box", {"compute": nobody})
    machine.manager = manager
    try:
        machine.start()
        (told,) = [lines for lines in manager.told if "READY=1" in lines]
        assert "secure-media-processor FAILED (worker_died): smpctl doctor" in told[1]
    finally:
        machine.close()


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is not installed")
def test_socket_activation(tmp_path: Path) -> None:
    """systemd's own tool holds the socket and starts the daemon for the first who connects; it is left when all ends."""
    machine = Box(tmp_path / "box")
    path = tmp_path / "activated"
    daemon = [sys.executable, "-m", "smpd", "--config", str(machine.config)]
    command = ["systemd-socket-activate", "--listen", str(path), "--fdname", "control", *daemon]
    with subprocess.Popen(command, env=machine.env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr
            while b"Listening on" not in process.stderr.readline():
                pass
            status = machine.json("--socket", str(path), "status")
            assert status["pid"] == process.pid  # it became the daemon
            assert not machine.socket.exists()  # which made no socket of its own
            process.send_signal(signal.SIGTERM)
            assert process.wait(100) == 0
            assert path.exists()
        finally:
            process.kill()
            machine.close()
