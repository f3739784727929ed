"""The wheel as somebody installs it: into an environment of its own, by pip and by pipx, without a network."""

import ast
import email
import os
import subprocess
import sys
import venv
import zipfile
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from wheel.house import closure, repack

from smp_proto import __version__

ROOT = Path(__file__).parents[2]
NAME = "secure-media-processor"
BOX_ONLY = {"torch", "kornia", "pillow", "aiobotocore", "botocore", "asyncssh", "structlog", "h11", "uvloop"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make wheel`` makes."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    """The METADATA of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def base(metadata: email.message.Message) -> set[str]:
    """What an installation without extras brings."""
    return closure(metadata.get_all("Requires-Dist", []))


@pytest.fixture(scope="module")
def house(base: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheels of what the base needs, and nothing else."""
    folder = tmp_path_factory.mktemp("house")
    for name in base:
        repack(name, folder)
    return folder


@pytest.fixture(scope="module")
def installed(wheel: Path, house: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment into which pip installed the wheel alone."""
    folder = tmp_path_factory.mktemp("sender")
    venv.create(folder, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", folder / "bin/python", "install", "-q"]
    offline = ["--no-index", "--find-links", house, "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*pip, *offline, wheel], check=True, env={**os.environ, "PIP_CONFIG_FILE": os.devnull})
    return folder / "bin"


def run(program: Path, *args: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment; nothing of this one is in its."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8"}
    return subprocess.run([program, *args], cwd=home, env=environment, capture_output=True, text=True, timeout=60)


def test_the_wheel_is_one_distribution(wheel: Path, metadata: email.message.Message) -> None:
    """It has its name, the three packages and nothing else, both programs, and the extras of a box."""
    assert (metadata["Name"], metadata["Version"]) == (NAME, __version__)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (points,) = [archive.read(each).decode() for each in names if each.endswith("/entry_points.txt")]
    parts = {f"secure_media_processor-{__version__}.{each}" for each in ("dist-info", "data")}
    assert {each.partition("/")[0] for each in names} - parts == {"smpd", "smpctl", "smp_proto"}
    units = {each.partition("/share/smp/")[2] for each in names if "/share/smp/" in each}
    assert units == {str(path.relative_to(ROOT)) for path in (ROOT / "systemd").rglob("*") if path.is_file()}
    assert [each for each in names if each.endswith("/py.typed")] != []
    assert "smpctl = smpctl.__main__:main" in points
    assert "smpd = smpd.__main__:main" in points
    assert {"daemon", "gpu", "images"} <= set(metadata.get_all("Provides-Extra", []))


def test_a_sender_needs_nothing_of_a_box(base: set[str]) -> None:
    """Without extras neither torch nor a client of S3 or SFTP is asked for, by us or by what we ask for."""
    assert base & BOX_ONLY == set()
    assert {"cryptography", "msgspec", "click"} <= base


def test_each_room_imports_what_its_extras_bring(metadata: email.message.Message) -> None:
    """Every import of the client is of the base, of smpd of ``daemon``, of the compute process of ``gpu`` and ``images``."""
    asked: dict[str, set[str]] = {}
    for text in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(text)
        for extra in ("", "daemon", "gpu", "images"):
            if requirement.marker is None or (extra and requirement.marker.evaluate({"extra": extra})):
                asked.setdefault(extra, set()).add(canonicalize_name(requirement.name))
    rooms = {"smpctl": asked[""], "proto/smp_proto": asked[""], "smpd": asked["daemon"]}
    wrong = []
    for room, allowed in rooms.items():
        for source in (ROOT / room).rglob("*.py"):
            device = source.relative_to(ROOT).parts[:2] in (("smpd", "compute"), ("smpd", "processors"))
            brought = _modules(allowed | (asked["gpu"] | asked["images"] if device else set()))
            for module in _imported(source) - set(sys.stdlib_module_names) - {"smp_proto", "smpd", "smpctl"} - brought:
                wrong.append(f"{source.relative_to(ROOT)}: {module}")
    assert wrong == []


def _modules(distributions: set[str]) -> set[str]:
    """What can be imported of these; aiobotocore is there for botocore and aiohttp, which it pins and hands out."""
    names = distributions | ({"botocore", "aiohttp"} if "aiobotocore" in distributions else set())
    return {module for name in names for module in _modules_of(name)}


@cache
def _modules_of(name: str) -> frozenset[str]:
    lines = (distribution(name).read_text("RECORD") or "").splitlines()
    return frozenset(line.partition(",")[0].partition("/")[0].partition(".")[0] for line in lines)


def _imported(source: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


def test_a_sender_seals_with_it(installed: Path, base: set[str], tmp_path: Path) -> None:
    """From a new key to an opened object, where nothing is installed but what the wheel asks for."""
    listed = run(installed / "python", "-c", _LIST, home=tmp_path)
    assert {canonicalize_name(each) for each in listed.stdout.split()} == base | {NAME}
    _seal_and_open(installed / "smpctl", tmp_path)


def _seal_and_open(smpctl: Path, home: Path) -> None:
    assert run(smpctl, "--version", home=home).stdout == f"smpctl {__version__}\n"
    (home / "material").write_bytes(os.urandom(32))
    (home / "material").chmod(0o600)
    (home / "scan.png").write_bytes(b"not really a picture")
    key = ["--credential-file", "material"]
    for command in (
        ["keys", "new", "clinic", *key],
        ["seal", "scan.png", "-o", "scan.smp", "--to", "clinic", *key],
        ["inspect", "scan.smp"],
        ["open", "scan.smp", "-o", "opened", *key],
    ):
        done = run(smpctl, *command, home=home)
        assert done.returncode == 0, (command, done.stderr)
    assert (home / "opened/scan.png").read_bytes() == b"not really a picture"


def test_what_a_box_needs_is_named(installed: Path, tmp_path: Path) -> None:
    """``smpd`` of a sender's installation says which extras make it a daemon."""
    done = run(installed / "smpd", home=tmp_path)
    assert done.returncode == 2
    assert "structlog" in done.stderr
    assert "pip install 'secure-media-processor[daemon,gpu,images]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_machine_is_set_up_with_it(installed: Path, tmp_path: Path) -> None:
    """The units come along: ``smpctl setup`` writes them as they are in the checkout, but for the programs' place."""
    done = run(installed / "smpctl", "setup", "--root", "box", "--programs", "/srv/smp/bin", home=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = (ROOT / "systemd/smpd.service").read_text().replace("/opt/smp/venv/bin/", "/srv/smp/bin/")
    assert (tmp_path / "box/etc/systemd/system/smpd.service").read_text() == expected


@pytest.mark.skipif("PIPX" not in os.environ, reason="make wheel-check has pipx; it needs a network")
def test_pipx_installs_it(wheel: Path, tmp_path: Path) -> None:
    """``pipx install`` of the file makes both programs, and they run."""
    environment = {**os.environ, "PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(tmp_path / "bin")}
    subprocess.run([os.environ["PIPX"], "install", wheel], env=environment, check=True, timeout=110)
    assert sorted(os.listdir(tmp_path / "bin")) == ["smpctl", "smpd"]
    _seal_and_open(tmp_path / "bin/smpctl", tmp_path)


_LIST = "from importlib.metadata import distributions; print(*(each.metadata['Name'] for each in distributions()))"
