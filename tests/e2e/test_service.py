"""The daemon as a service: told by its manager, and telling it, over a real notify socket."""

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from box import Box
from gated_s3 import GatedS3, gated_s3
from manager import Manager
from scene import Following, add_remote, client, done

from smp_proto.control import GetSpec

MIB = 1 << 20
TOTAL = 12 * MIB
CONFIG = {
    "fetch": {"processes": 1, "slots": 4, "slot_bytes": MIB, "connections": 4},
    "compute": {"processors": []},
}


@dataclass
class Service:
    """A box under a manager, and a gated server that holds a plain object."""

    box: Box
    manager: Manager
    store: GatedS3

    @property
    def pid(self) -> int:
        assert self.box.process
        return self.box.process.pid

    def log(self, event: str) -> list[dict[str, object]]:
        """The lines of the daemon's log about an event."""
        lines = [json.loads(line) for line in self.box.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == event]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests here."""
    machine = Box(tmp_path_factory.mktemp("service") / "box", CONFIG)
    with (
        tempfile.TemporaryDirectory(prefix="smpd-") as folder,
        Manager(f"{folder}/notify") as manager,
        gated_s3({"volume.bin": np.random.default_rng(1).bytes(TOTAL)}) as (store, served),
    ):
        machine.manager = manager
        try:
            machine.start()
            add_remote(machine, "lake", served, "standard")
            yield Service(machine, manager, store)
        finally:
            machine.close()


@pytest.fixture(autouse=True)
def ready(service: Service) -> Iterator[None]:
    """Each test begins with a daemon that runs, and leaves the gate open."""
    if service.box.process is None or service.box.process.poll() is not None:
        service.box.start()
    yield
    service.store.release()


def audited(service: Service) -> list[dict[str, Any]]:
    """The latest records of the audit log."""
    return [json.loads(line) for line in service.box.ctl("audit", "tail", "--json").stdout.splitlines()]


def hup(service: Service) -> None:
    """Have the manager's signal obeyed to the end."""
    since = len(service.manager.told)
    assert service.box.process
    service.box.process.send_signal(signal.SIGHUP)
    begun = service.manager.until(lambda line: line == "RELOADING=1", since)
    assert any(line.startswith("MONOTONIC_USEC=") for line in service.manager.told[begun - 1])
    service.manager.until(lambda line: line == "READY=1", begun)


def test_sighup_takes_a_configuration_up(service: Service) -> None:
    """A job goes on through it; what changed holds; what needs a restart is named in log, status and doctor."""
    with Following(service.box) as following, client(service.box) as ctl:
        service.store.hold_after(TOTAL // 2)
        job = ctl.submit(GetSpec("lake:volume.bin"))
        service.store.until_held(1)
        service.box.configure(jobs={"running_max": 1}, log={"level": "warning"}, fetch={"slots": 6})
        hup(service)
        assert ctl.status().config_restart == ["fetch.slots"]
        assert "needs a restart: fetch.slots" in service.box.ctl("status").stdout.decode()
        second = ctl.submit(GetSpec("lake:volume.bin"))
        assert (ctl.job(job.id).state, ctl.job(second.id).state) == ("running", "queued")
        service.store.release()
        assert done(following.final(job.id)).attempt == 1
        done(following.final(second.id))
        # Not before: it asks the remote, and waits for one that is held.
        assert any(check.name == "configuration" and "fetch.slots" in check.text for check in ctl.doctor())
    records = [each["fields"] for each in audited(service) if each["event"] == "daemon.reload"]
    assert records == [{"changed": "jobs.running_max log.level", "restart": "fetch.slots"}]


def test_reload_by_smpctl(service: Service) -> None:
    """The verb waits and says what came of it; going back needs no restart any more."""
    service.box.configure(jobs={"running_max": 3}, log={"level": "info"}, fetch={"slots": 4})
    assert set(service.box.json("reload")["changed"]) == {"jobs.running_max", "log.level"}
    assert service.box.ctl("reload").stdout == b"nothing to take up has changed\n"


def test_a_bad_configuration_is_refused_whole(service: Service) -> None:
    """The old one goes on, visibly; the manager is not told of a stop, and smpctl fails."""
    good = service.box.config.read_text()
    service.box.config.write_text(good.replace("running_max = 3", "running_max = 0"))
    refused = service.box.ctl("reload", check=False)
    assert (refused.returncode, b"jobs.running_max" in refused.stderr) == (2, True)
    hup(service)
    with client(service.box) as ctl:
        status = ctl.status()
        assert "jobs.running_max" in status.config_refused
        assert any(check.name == "configuration" and check.state == "fail" for check in ctl.doctor())
    assert b"REFUSED" in service.box.ctl("status").stdout
    service.box.config.write_text(good)
    hup(service)
    assert b"REFUSED" not in service.box.ctl("status").stdout
    assert len(service.log("configuration refused: the one before goes on")) == 2


def begin(service: Service, drain_s: float) -> str:
    """A job of which half came; returns its id."""
    service.box.configure(jobs={"drain_s": drain_s})
    hup(service)
    service.store.hold_after(TOTAL // 2)
    with Following(service.box) as following, client(service.box) as ctl:
        job = ctl.submit(GetSpec("lake:volume.bin"))
        following.until(job.id, lambda view: view.done_bytes > TOTAL // 4)
    service.store.until_held(1)
    return job.id


def test_stop_lets_a_job_end(service: Service) -> None:
    """Told to stop, the daemon ends what runs, answers meanwhile, starts nothing, and asks its manager for the time."""
    job = begin(service, 100.0)
    assert service.box.process
    since = len(service.manager.told)
    service.box.process.send_signal(signal.SIGTERM)
    at = service.manager.until(lambda line: line == "STOPPING=1", since)
    assert "EXTEND_TIMEOUT_USEC=130000000" in service.manager.told[at - 1]
    with client(service.box) as ctl:
        assert ctl.status().stopping
        late = ctl.submit(GetSpec("lake:volume.bin")).id
        assert (ctl.job(job).state, ctl.job(late).state) == ("running", "queued")
    service.store.release()
    assert service.box.process.wait(100) == 0
    service.box.start()
    with Following(service.box) as following, client(service.box) as ctl:
        view = done(ctl.job(job))
        assert (view.attempt, view.transfer.resumed_bytes) == (1, 0)  # it ended before the daemon did
        done(following.final(late))


@pytest.mark.parametrize("how", ["late", "twice", "SIGINT"])
def test_stop_puts_a_job_back(service: Service, how: str) -> None:
    """What does not end in time, or is not waited for, goes on at the next start, from its spool."""
    job = begin(service, 0.05 if how == "late" else 1000.0)
    assert service.box.process
    since = len(service.manager.told)
    if how == "SIGINT":
        service.box.process.send_signal(signal.SIGINT)
    else:
        service.box.process.send_signal(signal.SIGTERM)
        service.manager.until(lambda line: line == "STOPPING=1", since)
    if how == "twice":
        service.box.process.send_signal(signal.SIGTERM)
    assert service.box.process.wait(100) == 0
    service.store.release()
    service.box.start()
    with Following(service.box) as following:
        view = done(following.final(job))
    assert view.attempt == 1


def test_a_hangup_during_the_start(service: Service) -> None:
    """It does not end the daemon, which takes up what the configuration is by the time that it is ready."""
    if service.box.process:
        service.box.stop()
    file, since = service.box.config, len(service.manager.told)
    good = file.read_text()
    file.unlink()
    os.mkfifo(file)
    try:
        service.box._launch(service.manager.address)
        with file.open("w") as written:  # it is being read
            assert service.box.process
            service.box.process.send_signal(signal.SIGHUP)
            written.write(good)
        begun = service.manager.until(lambda line: line == "RELOADING=1", since)
        assert any("READY=1" in lines for lines in service.manager.told[since:begun])
        file.write_text(good)
        service.manager.until(lambda line: line == "READY=1", begun)
    finally:
        file.unlink()
        file.write_text(good)


def test_signals_during_the_end(service: Service) -> None:
    """What comes once the daemon takes itself down is too late, and keeps it from nothing."""
    assert service.box.process
    since = len(service.manager.told)
    service.box.process.send_signal(signal.SIGINT)  # which waits for no job
    service.manager.until(lambda line: line == "STOPPING=1", since)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        service.box.process.send_signal(number)
    assert service.box.process.wait(100) == 0
