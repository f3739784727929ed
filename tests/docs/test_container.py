"""The container's files say what the systemd units say. No engine runs here: they are read, and what can run is run."""

import json
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from box import Box

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "container"


class Dockerfile:
    """The instructions of a Dockerfile, by stage (https://docs.docker.com/reference/dockerfile/)."""

    def __init__(self, path: Path) -> None:
        text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
        self.stages: list[list[tuple[str, str]]] = [[]]
        for line in filter(str.strip, text.splitlines()):
            name, _, rest = line.strip().partition(" ")
            if name == "FROM":
                self.stages.append([])
            self.stages[-1].append((name, " ".join(rest.split())))

    def last(self, name: str) -> str:
        """The one instruction of this name in the stage that becomes the image."""
        (found,) = [rest for each, rest in self.stages[-1] if each == name]
        return found

    @property
    def environment(self) -> dict[str, str]:
        """What ENV sets."""
        return dict(each.split("=", 1) for each in self.last("ENV").split())

    @property
    def arguments(self) -> dict[str, str]:
        """What ARG has as its default."""
        return dict(rest.split("=", 1) for name, rest in self.stages[-1] if name == "ARG")


IMAGE = Dockerfile(FOLDER / "Dockerfile")
SERVICE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["smpd"]
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def unit() -> dict[str, str]:
    """The [Service] of smpd.service; of repeated keys the last counts."""
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "systemd" / "smpd.service")
    return dict(parser["Service"])


def _seconds(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(s|min|m)", text).groups()  # type: ignore[union-attr]
    return int(number) * (1 if unit == "s" else 60)


def _volumes() -> dict[str, tuple[str, str]]:
    """By place in the container: what is mounted there, and how."""
    split = [re.sub(r"\$\{[^}]*\}", "HOST", each).split(":") for each in SERVICE["volumes"]]
    return {parts[1]: (parts[0], parts[2] if len(parts) > 2 else "rw") for parts in split}


def test_the_image_runs_the_units_program_as_its_user(unit: dict[str, str]) -> None:
    """Program, user and group are the unit's; the user is a number, and not root's."""
    assert json.loads(IMAGE.last("ENTRYPOINT")) == unit["ExecStart"].split()
    user, group = IMAGE.last("USER").split(":")
    assert (user, group) == ("${UID}", "${GID}")
    assert int(IMAGE.arguments["UID"]) > 0
    made = IMAGE.last("RUN")
    assert f"--gid ${{GID}} {unit['Group']} " in made
    assert f"--uid ${{UID}} --gid {unit['Group']} " in made
    assert re.search(rf"useradd [^&]* {unit['User']}( |$)", made)
    assert "user" not in SERVICE  # nothing overrides it


def test_the_image_has_nothing_that_built_it() -> None:
    """Two stages; the second copies the environment alone, and installs nothing."""
    assert len([stage for stage in IMAGE.stages if stage[0][0] == "FROM"]) == 2
    assert [rest for name, rest in IMAGE.stages[-1] if name in ("COPY", "ADD")] == [
        "--from=build /opt/smp/venv /opt/smp/venv"
    ]
    assert not re.search(r"\b(pip|apt|apt-get|curl|wget)\b", IMAGE.last("RUN"))


def test_what_is_copied_is_there_and_not_ignored() -> None:
    """Each source of the build exists and is let through by .dockerignore."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, rest in IMAGE.stages[-2]:
        if name == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert source in allowed


@pytest.mark.parametrize(
    ("key", "variable", "root"),
    [("StateDirectory", "STATE_DIRECTORY", "/var/lib"), ("RuntimeDirectory", "RUNTIME_DIRECTORY", "/run")],
)
def test_folders_are_the_units(unit: dict[str, str], key: str, variable: str, root: str) -> None:
    """Made with the unit's mode for its user, told to smpd as systemd tells it, and a volume that lasts."""
    place = f"{root}/{unit[key]}"
    assert IMAGE.environment[variable] == place
    assert f"install -d -o {unit['User']} -g {unit['Group']} -m {unit[f'{key}Mode']} {place}" in IMAGE.last("RUN")
    assert place in json.loads(IMAGE.last("VOLUME"))
    source, mode = _volumes()[place]
    assert mode == "rw"
    assert source in COMPOSE["volumes"]


def test_configuration_and_key_come_from_outside(unit: dict[str, str]) -> None:
    """The configuration is read-only; the secret lies where the daemon looks for a credential of that name."""
    place = f"/etc/{unit['ConfigurationDirectory']}"
    assert IMAGE.environment["CONFIGURATION_DIRECTORY"] == place
    assert f"install -d -m {unit['ConfigurationDirectoryMode']} {place}" in IMAGE.last("RUN")
    assert _volumes()[place] == ("HOST", "ro")
    (name,) = re.findall(r"LoadCredentialEncrypted=([^:]+):", (ROOT / "systemd/smpd.service").read_text())
    assert SERVICE["secrets"] == [name]
    assert name in COMPOSE["secrets"]
    assert IMAGE.environment["CREDENTIALS_DIRECTORY"] == "/run/secrets"  # where engines put them


def test_nothing_is_gained_and_little_can_be_written(unit: dict[str, str]) -> None:
    """No capability, no new privilege, the engine's seccomp profile, a root that cannot be written to, a /tmp of its own."""
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == ""
    assert SERVICE["cap_drop"] == ["ALL"]
    assert "cap_add" not in SERVICE
    assert unit["NoNewPrivileges"] == "yes"
    assert SERVICE["security_opt"] == ["no-new-privileges:true"]  # and so nothing unconfined
    assert "SystemCallFilter" in unit
    assert not {"privileged", "pid", "ipc", "network_mode", "devices", "userns_mode"} & set(SERVICE)
    assert (unit["ProtectSystem"], SERVICE["read_only"]) == ("strict", True)
    assert unit["PrivateTmp"] == "yes"
    assert [each.partition(":")[0] for each in SERVICE["tmpfs"]] == ["/tmp"]
    assert {place for place, (_, mode) in _volumes().items() if mode == "rw"} == {"/var/lib/smpd", "/run/smpd"}


def test_limits_are_the_units(unit: dict[str, str]) -> None:
    """Tasks, core, locked memory, descriptors; and no swap."""
    limits = {"core": unit["LimitCORE"], "memlock": unit["LimitMEMLOCK"], "nofile": unit["LimitNOFILE"]}
    assert SERVICE["ulimits"] == {name: -1 if text == "infinity" else int(text) for name, text in limits.items()}
    assert SERVICE["pids_limit"] == int(unit["TasksMax"])
    assert unit["MemorySwapMax"] == "0"
    assert SERVICE["mem_limit"] == SERVICE["memswap_limit"]


def test_it_is_stopped_as_gently(unit: dict[str, str]) -> None:
    """By the signal that smpd drains at, with at least the unit's time; and it is started again as the unit says."""
    assert IMAGE.last("STOPSIGNAL") == unit.get("KillSignal", "SIGTERM")
    assert _seconds(SERVICE["stop_grace_period"]) >= _seconds(unit["TimeoutStopSec"])
    assert SERVICE["restart"] == unit["Restart"]
    assert SERVICE["init"] is True  # a plugin's orphans are somebody's to reap


def test_a_line_of_the_unit_has_its_line_here(unit: dict[str, str]) -> None:
    """Each line of the unit is one of those above, or one that a container has by itself; a new one is to be decided on."""
    here = [
        "ExecStart",
        "User",
        "Group",
        "Restart",
        "TimeoutStopSec",
        "StateDirectory",
        "StateDirectoryMode",
        "RuntimeDirectory",
        "RuntimeDirectoryMode",
        "ConfigurationDirectory",
        "ConfigurationDirectoryMode",
        "MemoryMax",
        "MemorySwapMax",
        "TasksMax",
        "LimitCORE",
        "LimitMEMLOCK",
        "LimitNOFILE",
        "CapabilityBoundingSet",
        "AmbientCapabilities",
        "NoNewPrivileges",
        "PrivateTmp",
        "ProtectSystem",
        "SystemCallFilter",
        "WatchdogSec",
        "DevicePolicy",
        "DeviceAllow",
    ]
    # Namespaces of its own, masked /proc and /sys, no capability to change any of it; UMask is set by smpd itself.
    by_itself = [
        "KillMode",
        "OOMPolicy",
        "RuntimeDirectoryPreserve",
        "UMask",
        "KeyringMode",
        "LockPersonality",
        "PrivateMounts",
        "ProtectClock",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "RemoveIPC",
        "RestrictAddressFamilies",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "SystemCallArchitectures",
        "SystemCallErrorNumber",
    ]
    of_systemd = ["Type", "RestartSec", "RestartPreventExitStatus", "ExecReload", "TimeoutStartSec"]
    assert set(unit) - {*here, *by_itself, *of_systemd} == set()


def test_the_exporter_is_its_units() -> None:
    """Program, limits and rights of smpd-metrics.service; of the volumes the socket's alone, which it may not write to."""
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "systemd" / "smpd-metrics.service")
    unit, service = parser["Service"], COMPOSE["services"]["metrics"]
    assert service["entrypoint"] == unit["ExecStart"].split()
    user, group = service["user"].split(":")
    assert user not in ("0", IMAGE.arguments["UID"])  # either of whom the daemon would take for an admin
    assert group == IMAGE.arguments["GID"]  # of smpd, which makes a viewer
    assert service["mem_limit"] == service["memswap_limit"] == unit["MemoryMax"].lower()
    assert service["pids_limit"] == int(unit["TasksMax"])
    assert service["ulimits"]["core"] == int(unit["LimitCORE"])
    assert (service["cap_drop"], unit["CapabilityBoundingSet"]) == (["ALL"], "")
    assert service["security_opt"] == SERVICE["security_opt"]
    assert service["read_only"] is True
    assert service["volumes"] == ["run:/run/smpd:ro"]
    assert service["restart"] == unit["Restart"]


def test_a_gpu_is_added_and_nothing_else() -> None:
    """The file for a GPU gives a device to the same service, and takes no wall down."""
    (name, added), *rest = yaml.safe_load((FOLDER / "compose.gpu.yaml").read_text())["services"].items()
    assert (name, rest, list(added)) == ("smpd", [], ["deploy"])


def test_the_health_check_tells_up_from_down(tmp_path: Path) -> None:
    """The command of HEALTHCHECK, with the image's environment and no other, succeeds while a daemon answers and fails else."""
    options, _, command = IMAGE.last("HEALTHCHECK").partition("CMD ")
    program, *arguments = json.loads(command)
    assert program == "/opt/smp/venv/bin/smpctl"
    assert _seconds(re.search(r"--timeout=(\S+)", options)[1]) <= _seconds(re.search(r"--interval=(\S+)", options)[1])  # type: ignore[index]
    machine = Box(tmp_path)
    # The places of the image, moved to where a test may write; the configuration then names none.
    moved = {
        "/var/lib": str(tmp_path / "lib"),
        "/run": str(machine.socket.parent.parent),
        "/etc": str(tmp_path / "etc"),
    }
    environment = {
        name: next((value.replace(old, new, 1) for old, new in moved.items() if value.startswith(old)), value)
        for name, value in IMAGE.environment.items()
        if name != "PATH"
    }
    for folder in ("lib", "etc"):
        (tmp_path / folder).mkdir(mode=0o755)
    (tmp_path / "etc/smpd").mkdir()
    machine.config = tmp_path / "etc/smpd/config.toml"
    machine.config.write_text("[space]\nreserve_bytes = 4194304\n")
    machine.env = {"PATH": os.environ["PATH"], **environment}

    def healthy() -> int:
        done = subprocess.run([sys.executable, "-m", "smpctl", *arguments], env=machine.env, capture_output=True)
        return done.returncode

    try:
        assert healthy() != 0
        machine.start()
        assert healthy() == 0
        machine.stop()
        assert healthy() != 0
    finally:
        machine.close()
