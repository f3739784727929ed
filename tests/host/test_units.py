"""The systemd units, judged by systemd's own tools where they are installed."""

import os
import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from smp_proto.errors import UsageError
from smpctl.commands.metrics import LISTEN
from smpd.compute import keeper
from smpd.config import Compute, Jobs

UNITS = Path(__file__).parents[2] / "systemd"
SERVICES = {
    "smpd.service": ("smpd", "smpctl"),
    "smpd-compute@.service": ("python",),
    "smpd-metrics.service": ("smpctl",),
}
README = (UNITS / "README.md").read_text()
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


class Unit(ConfigParser):
    """A unit file; of repeated keys the last one counts."""

    def __init__(self, name: str) -> None:
        super().__init__(strict=False, interpolation=None)
        self.optionxform = str
        self.read(UNITS / name)


@pytest.fixture
def units(tmp_path):
    """The units, with a program that exists here in place of the installed one."""
    for name, programs in SERVICES.items():
        text = (UNITS / name).read_text()
        assert tuple(re.findall(r"^Exec\w+=/opt/smp/venv/bin/(\w+)\b", text, re.MULTILINE)) == programs
        (tmp_path / name).write_text(re.sub(r"/opt/smp/venv/bin/\w+", "/bin/true", text))
    for path in UNITS.glob("*.socket"):
        shutil.copy(path, tmp_path)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {path.name for path in UNITS.iterdir() if path.suffix in (".service", ".socket")}
    return [str(tmp_path / name) for name in sorted(found)]


@needs_systemd
def test_verify(units):
    """systemd finds nothing to say about the units."""
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "smpd" in line]
    assert (done.returncode, said) == (0, [])


@needs_systemd
@pytest.mark.parametrize("name", SERVICES)
def test_exposure(units, name):
    """The exposure is no more than the README states."""
    stated = re.search(rf"`systemd-analyze security {name}`.*exposure of at most (\d\.\d)", README)[1]
    (unit,) = [path for path in units if path.endswith(f"/{name}")]
    done = subprocess.run(
        [
            *("systemd-analyze", "security", "--offline=true", "--no-pager"),
            f"--threshold={round(float(stated) * 10)}",
            unit,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-400:]


def test_units_agree():
    """Socket, service and configuration agree on the path, the group and the watchdog's protocol."""
    service, sock = Unit("smpd.service")["Service"], Unit("smpd.socket")["Socket"]
    assert sock["ListenStream"] == f"/run/{service['RuntimeDirectory']}/smpd.sock"
    assert sock["SocketGroup"] == service["Group"]
    assert sock["SocketMode"] == "0660"
    assert service["Type"] == "notify"
    assert f"--socket {sock['ListenStream']} reload" in service["ExecReload"]
    assert int(service["TimeoutStopSec"].removesuffix("s")) > Jobs().drain_s
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert int(service["RestartPreventExitStatus"]) == UsageError.exit_code
    assert "MemoryDenyWriteExecute" not in service
    assert "PrivateUsers" not in service


def filters(name):
    return re.findall(r"^SystemCall.*$", (UNITS / name).read_text(), re.MULTILINE)


def test_units_of_compute_agree():
    """Socket, service, smpd's own unit and the configuration's default agree; nothing of the process is left behind."""
    daemon, service, sock = (Unit(name) for name in ("smpd.service", "smpd-compute@.service", "smpd-compute.socket"))
    listener, process = sock["Socket"], service["Service"]
    assert listener["ListenStream"] == Compute().socket
    assert os.path.dirname(listener["ListenStream"]) == "/run"  # root's: nobody else can put a socket there
    assert (listener["Accept"], listener["SocketMode"]) == ("yes", "0600")
    assert listener["SocketUser"] == daemon["Service"]["User"]
    module, expected = process["ExecStart"].split()[-2:]
    assert (module, expected) == (keeper.__name__, daemon["Service"]["User"])
    assert (process["StandardInput"], process["KillMode"]) == ("socket", "control-group")
    assert "MemoryDenyWriteExecute" not in process
    assert filters("smpd.service") == filters("smpd-compute@.service")
    assert "PrivateUsers" not in process  # the keeper could not tell smpd from others


def test_unit_of_the_exporter_agrees():
    """It listens where the documents say, on loopback alone, as a user that sysusers makes a viewer."""
    service = Unit("smpd-metrics.service")["Service"]
    assert service["ExecStart"].endswith(f" metrics serve --listen {LISTEN}")
    assert (service["IPAddressDeny"], service["IPAddressAllow"]) == ("any", "localhost")
    users = (UNITS / "sysusers.d" / "smpd.conf").read_text().splitlines()
    member = [line.split()[2] for line in users if line.split()[:2] == ["m", service["User"]]]
    assert member == [Unit("smpd.socket")["Socket"]["SocketGroup"]]
