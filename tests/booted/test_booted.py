"""SMP as a service on a machine that was booted with systemd, set up as the guide for operating says.

Not among the tests of the suite: the installation needs a network, and a few minutes.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from booted.machine import Machine, machine, no_machine
from servers import ACCESS_KEY, BUCKET, SECRET_KEY, program

pytestmark = [
    pytest.mark.skipif("SMP_BOOTED" not in os.environ, reason="make booted-check has a machine; it needs a network"),
    pytest.mark.timeout(1200),
]
ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
MIB = 1 << 20
LARGE = 48 * MIB
SLOW = f"[limits.lake]\nbytes_per_s = {12 * MIB}\n"  # so that the large object takes four seconds
CONFIG = f"[jobs]\nbackoff_base_s = 0.1\n\n{SLOW}"
CONFIG_SOCKET = f'{CONFIG}\n[compute]\nstart = "socket"\n'
CONFIG_FILE = "/etc/smpd/config.toml"
INSTALL = """
python3 -m venv /opt/smp/venv
/opt/smp/venv/bin/pip install -q -c /srv/constraints.txt "$(ls /srv/*.whl)[daemon,gpu,images]"
ln -sf /opt/smp/venv/bin/smpctl /usr/local/bin/
useradd -m alice; useradd -m bob; useradd -m clinic
"""


class Box:
    """The machine, SMP on it, and a bucket with a large and a small sealed object."""

    def __init__(self, at: Machine) -> None:
        self.at = at
        self._jobs = 0

    def ctl(self, *arguments: str, user: str = "alice", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``smpctl``."""
        return self.at.run("smpctl", *arguments, user=user, check=check)

    def checks(self, state: str = "") -> list[dict[str, str]]:
        """What ``smpctl doctor`` says, or what of it is in a state."""
        lines = [json.loads(line) for line in self.ctl("doctor", "--json", user="", check=False).stdout.splitlines()]
        found = [each for line in lines for each in line.get("checks", [line])]
        return [each for each in found if not state or each["state"] == state]

    def begin(self, name: str) -> str:
        """Have an object digested; the job's id."""
        self._jobs += 1
        return self.ctl("run", "digest", f"lake:{name}", "--detach", "--key", str(self._jobs)).stdout.strip()

    def job(self, job: str) -> dict[str, Any]:
        """A job as it is; nothing while nobody answers."""
        done = self.ctl("job", "show", job, "--json", check=False)
        found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {"state": "", "done_bytes": 0}
        return found

    def until(self, test: Callable[[], object]) -> None:
        """Wait until something holds."""
        end = time.monotonic() + WAIT_S
        while not test():
            assert time.monotonic() < end, self.at.run("journalctl", "-u", "smpd", "-n", "30", "--no-pager").stdout

    def in_the_middle(self) -> str:
        """A job of which some has come, and not all."""
        job = self.begin("large.smp")
        self.until(lambda: self.job(job)["done_bytes"] > 4 * MIB)
        assert self.job(job)["state"] == "running"
        return job

    def ends_well(self, job: str) -> None:
        self.until(lambda: self.job(job)["state"] in ("done", "failed", "quarantined"))
        assert self.job(job)["state"] == "done", self.job(job)

    @property
    def pid(self) -> str:
        return self.at.show("smpd.service", "MainPID")

    def up(self) -> bool:
        """Whether the daemon is ready."""
        return self.at.show("smpd.service", "ActiveState") == "active"


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with SMP's wheel installed and not yet set up."""
    if reason := no_machine():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("booted")
    wheel = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(wheel, cwd=ROOT, check=True)
    with machine(folder, [*(folder / "dist").iterdir(), ROOT / "constraints.txt"], INSTALL) as at:
        yield at


@pytest.fixture(scope="module")
def box(booted: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """Set up as the guide says; a sender's key and a remote are known."""
    stored = tmp_path_factory.mktemp("stored")
    (stored / BUCKET).mkdir()
    booted.run("/opt/smp/venv/bin/smpctl", "setup")
    booted.run("usermod", "-aG", "smpd,smpd-operator", "alice")
    booted.write(CONFIG_FILE, CONFIG)
    booted.run("systemctl", "reload", "smpd")
    found = Box(booted)
    booted.write("/srv/pass", "correct horse battery staple\n")
    booted.write("/srv/lake.toml", f'access_key = "{ACCESS_KEY}"\nsecret_key = "{SECRET_KEY}"\n')
    for path in ("pass", "lake.toml"):
        booted.run("chown", "clinic" if path == "pass" else "root", f"/srv/{path}")
        booted.run("chmod", "600", f"/srv/{path}")
    booted.write("/srv/box.pub", found.ctl("keys", "export", "--box").stdout)
    found.ctl("keys", "new", "clinic", "--passphrase-file", "/srv/pass", user="clinic")
    booted.write("/srv/clinic.pub", found.ctl("keys", "export", "clinic", user="clinic").stdout)
    for name, size in (("large", LARGE), ("small", 1000)):
        booted.run("truncate", "-s", str(size), f"/home/clinic/{name}", user="clinic")
        seal = ("seal", f"/home/clinic/{name}", "-o", f"/home/clinic/{name}.smp", "--to", "/srv/box.pub")
        found.ctl(*seal, "--passphrase-file", "/srv/pass", user="clinic")
        (stored / BUCKET / f"{name}.smp").write_bytes((booted.root / f"home/clinic/{name}.smp").read_bytes())
    found.ctl("trust", "add", "clinic", "/srv/clinic.pub", user="")
    server = [program("rclone"), "serve", "s3", str(stored), "--addr", "127.0.0.1:0", "--config", os.devnull]
    server += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    with booted.serving(*server, ready=r"Starting s3 server on \[(http://127.0.0.1:\d+)/") as said:
        where = ("--endpoint", said[1], "--addressing", "path", "--secret-file", "/srv/lake.toml")
        found.ctl("remote", "add", "lake", f"s3://{BUCKET}", *where, user="")
        yield found
        found.ctl("audit", "verify")


def test_it_is_set_up(box: Box) -> None:
    """Ready, enabled, its identity sealed by a credential of the machine, every wall up below the unit's own."""
    assert box.up()
    assert box.at.run("systemctl", "is-enabled", "smpd.service", "smpd.socket").stdout.split() == ["enabled"] * 2
    assert not box.checks("fail")
    said = {check["name"]: check for check in box.checks()}
    assert "sealed by /run/credentials/smpd.service/smpd.key" in said["identity"]["text"]
    walls = {name: check["state"] for name, check in said.items() if name.startswith("sandbox ")}
    assert len(walls) >= 5
    assert set(walls.values()) == {"ok"}


def test_who_may_what(box: Box) -> None:
    """By groups: an operator runs jobs and does not change the key, somebody else does not get in."""
    job = box.begin("small.smp")
    box.ends_well(job)
    assert box.ctl("keys", "rotate", "--box", "--reason", "no", check=False).returncode == 4
    assert "may not connect" in box.ctl("status", user="bob", check=False).stderr


@pytest.mark.parametrize("how", ["KILL", "STOP"])
def test_it_is_started_again(box: Box, how: str) -> None:
    """After a crash, and after it stood still for as long as the watchdog waits; the job goes on."""
    box.at.write("/etc/systemd/system/smpd.service.d/watchdog.conf", "[Service]\nWatchdogSec=4s\n")
    box.at.run("systemctl", "daemon-reload")
    box.at.run("systemctl", "restart", "smpd")  # the watchdog of a process is that of its start
    job, before = box.in_the_middle(), box.pid
    box.at.run("kill", f"-{how}", before)
    box.until(lambda: box.pid not in ("0", before) and box.up())
    box.ends_well(job)
    assert box.job(job)["attempt"] == 1


def test_a_restart_lets_jobs_end(box: Box) -> None:
    """Within jobs.drain_s, for which it asks the manager; and the socket stays."""
    job = box.in_the_middle()
    box.at.run("systemctl", "restart", "smpd")
    assert box.job(job)["state"] == "done"
    box.at.run("systemctl", "stop", "smpd.service")
    assert not box.up()
    box.ends_well(box.begin("small.smp"))  # whoever connects has it started


def test_a_mistake_in_the_configuration(box: Box) -> None:
    """A reload of it fails and changes nothing, a start of it is not tried again and again, and mending is enough."""
    before = box.pid
    box.at.write(CONFIG_FILE, "[jobs]\nrunning = 3\n")
    assert box.at.run("systemctl", "reload", "smpd", check=False).returncode
    assert box.pid == before
    assert box.at.run("systemctl", "restart", "smpd", check=False).returncode
    assert box.at.show("smpd.service", "ActiveState") == "failed"
    assert box.at.show("smpd.service", "NRestarts") == "0"
    assert box.ctl("status", check=False).returncode == 3
    box.at.write(CONFIG_FILE, CONFIG)
    box.at.run("systemctl", "reset-failed", "smpd.service", "smpd.socket")
    box.at.run("systemctl", "start", "smpd")
    box.ends_well(box.begin("small.smp"))


def test_compute_processes_of_the_manager(box: Box) -> None:
    """Each as a user of its own; without its keeper there is none, and without it the job is tried again."""
    box.at.write(CONFIG_FILE, CONFIG_SOCKET)
    assert "has to say" not in box.ctl("setup", "--compute", "socket", user="").stdout
    box.at.run("systemctl", "restart", "smpd")
    assert any("as another user" in check["text"] for check in box.checks("ok"))
    for victim in ("smpd.compute [0-9]", "smpd.compute.keeper"):
        job = box.in_the_middle()
        users = box.at.run("ps", "-o", "user:32=", "-p", box.at.run("pgrep", "-of", victim).stdout.strip()).stdout
        assert users.strip() not in ("root", "smpd")
        box.at.run("pkill", "-KILL", "-f", victim)
        box.ends_well(job)
    box.at.run("kill", "-KILL", box.pid)
    box.until(lambda: "smpd-compute@" not in box.at.run("systemctl", "list-units", "smpd-compute@*").stdout)
    box.until(box.up)


def test_metrics(box: Box) -> None:
    """The exporter is a viewer, on loopback."""
    box.at.run("systemctl", "start", "smpd-metrics")
    box.until(lambda: "smp_build_info" in box.at.run("curl", "-s", "http://127.0.0.1:9464/metrics", check=False).stdout)


def test_an_upgrade(box: Box) -> None:
    """Nothing of the new version is started by the daemon of the old one, which says so; then it is as ever."""
    box.at.run("systemctl", "restart", "smpd")
    installed = box.at.run("/opt/smp/venv/bin/python", "-c", "import smpd; print(smpd.__file__)").stdout.strip()
    box.at.run("touch", installed)  # as pip does
    job = box.begin("small.smp")
    box.until(lambda: (box.job(job).get("error") or {}).get("code") == "program_replaced")
    assert any("another version" in check["text"] for check in box.checks("fail"))
    box.at.run("systemctl", "restart", "smpd")
    box.ends_well(job)
    assert not box.checks("fail")


def test_the_box_s_key_is_changed(box: Box) -> None:
    """The credential is there for that, too, and after a restart."""
    before = box.ctl("keys", "export", "--box").stdout
    box.ctl("keys", "rotate", "--box", "--reason", "a year has passed", user="")
    box.at.run("systemctl", "restart", "smpd")
    assert box.ctl("keys", "export", "--box").stdout != before
    box.ends_well(box.begin("small.smp"))
