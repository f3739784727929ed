"""The systemd units, judged by systemd's own tools where they are installed."""

import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
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
    text = (UNITS / "smpd.service").read_text()
    assert text.count("ExecStart=/opt/smp/venv/bin/smpd\n") == 1
    (tmp_path / "smpd.service").write_text(text.replace("/opt/smp/venv/bin/smpd", "/bin/true"))
    shutil.copy(UNITS / "smpd.socket", tmp_path)
    return [str(tmp_path / "smpd.service"), str(tmp_path / "smpd.socket")]


@needs_systemd
def test_verify(units):
    """systemd finds nothing to say about the units."""
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "smpd." in line]
    assert (done.returncode, said) == (0, [])


@needs_systemd
def test_exposure(units):
    """The exposure is no more than the README states."""
    stated = re.search(r"exposure of at most (\d\.\d)", (UNITS / "README.md").read_text())[1]
    threshold = str(round(float(stated) * 10))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", "--no-pager", units[0]],
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
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert "MemoryDenyWriteExecute" not in service
    assert "PrivateUsers" not in service
