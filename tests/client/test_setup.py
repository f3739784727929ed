"""Making a machine a box: what is written, what would be run, and what systemd says of it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from client.conftest import Smpctl

from smp_proto.errors import ResourceError, UsageError
from smpctl import installing
from smpctl.installing import File, Gone, Note, Options, Run

README = (Path(__file__).parents[2] / "systemd" / "README.md").read_text()


def smpctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "smpctl", "setup", *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module", params=["spawn", "socket"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A machine made below a folder, and who starts compute processes there."""
    root = tmp_path_factory.mktemp("root")
    done = smpctl("--root", str(root), "--programs", "/srv/smp/bin", "--compute", request.param)
    assert done.returncode == 0, done.stderr
    return root, request.param


def units(root: Path) -> Path:
    return root / "etc" / "systemd" / "system"


def test_what_is_written(made: tuple[Path, str]) -> None:
    """The units with the programs' place, users and folders, the credential; a configuration that fits; open to read."""
    root, compute = made
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    by_socket = {"etc/systemd/system/smpd.service.d/compute.conf"} if compute == "socket" else set()
    assert set(files) == by_socket | {
        "etc/sysusers.d/smpd.conf",
        "etc/tmpfiles.d/smpd.conf",
        "etc/smpd/config.toml",
        "etc/systemd/system/smpd.service",
        "etc/systemd/system/smpd.socket",
        "etc/systemd/system/smpd-compute@.service",
        "etc/systemd/system/smpd-compute.socket",
        "etc/systemd/system/smpd-metrics.service",
        "etc/systemd/system/smpd.service.d/credential.conf",
    }
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o644}
    assert ('start = "socket"' in files["etc/smpd/config.toml"].read_text()) == (compute == "socket")
    text = "".join(path.read_text() for path in files.values())
    assert "/opt/smp" not in text
    assert "ExecStart=/srv/smp/bin/smpd\n" in text
    done = subprocess.run([sys.executable, "-m", "smpd", "--config", files["etc/smpd/config.toml"], "check-config"])
    assert done.returncode == 0


def test_again(tmp_path: Path) -> None:
    """What is there stays, other versions of units are replaced, a configuration never is; back to spawn has no rest."""
    root = ["--root", str(tmp_path), "--programs", "/srv/smp/bin"]
    assert "has to say" not in smpctl(*root, "--compute", "socket").stdout
    config, service = tmp_path / "etc/smpd/config.toml", units(tmp_path) / "smpd.service"
    expected = service.read_text()
    config.write_text("[jobs]\nrunning_max = 2\n")
    service.write_text("[Unit]\n")
    said = smpctl(*root).stdout
    assert "/etc/smpd/config.toml is kept\n" in said
    assert "/etc/systemd/system/smpd.service written\n" in said
    assert "/etc/systemd/system/smpd.socket is there\n" in said
    assert "compute.conf removed\n" in said
    assert (config.read_text(), service.read_text()) == ("[jobs]\nrunning_max = 2\n", expected)
    assert not (units(tmp_path) / "smpd.service.d" / "compute.conf").exists()
    assert "has to say" not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[jobs]\nrunning_max = 2\n", "where it is spawn"),
        ('[compute]\nstart = "socket"\n', ""),
        ("compute = 1\n", "where it is not to be read"),
        ("[compute\n", "where it is not to be read"),
    ],
)
def test_a_configuration_that_says_otherwise(tmp_path: Path, text: str, said: str) -> None:
    """It is left as it is, and what it has to say is told last, for units that took the devices from smpd."""
    config = tmp_path / "etc/smpd/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(text)
    shown = smpctl("--root", str(tmp_path), "--programs", "/srv/smp/bin", "--compute", "socket").stdout
    assert config.read_text() == text
    last = shown.splitlines()[-1]
    assert (f'has to say: start = "socket" below [compute], {said}' in last) if said else "has to say" not in shown


def test_a_dry_run_does_nothing(tmp_path: Path) -> None:
    """It names each file and command, and writes none."""
    said = smpctl("--root", str(tmp_path), "--programs", "/srv/smp/bin", "--dry-run").stdout
    assert "would write /etc/systemd/system/smpd.service\n" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "link", ["etc", "etc/systemd/system", "etc/smpd", "etc/smpd/config.toml", "etc/systemd/system/smpd.service"]
)
@pytest.mark.parametrize("where", ["absolute", "relative", "dangling"])
def test_links_that_lead_out_of_the_root(tmp_path: Path, link: str, where: str) -> None:
    """A link below DIR that would have files read or written elsewhere is refused before anything is done."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(os.path.relpath(outside, (root / link).parent) if where == "relative" else outside)
    if where == "dangling":
        outside.rmdir()
    before = sorted(root.rglob("*"))
    done = smpctl("--root", str(root), "--programs", "/srv/smp/bin")
    assert (done.returncode, "leads out of" in done.stderr, "hint: " in done.stderr) == (2, True, True), done.stderr
    assert sorted(root.rglob("*")) == before
    assert not outside.exists() or not list(outside.iterdir())


def test_links_within_the_root(tmp_path: Path) -> None:
    """One that stays below DIR is a folder as any other, and DIR may be a link itself; no DIR at all is refused."""
    (tmp_path / "root/srv/etc").mkdir(parents=True)
    (tmp_path / "root/etc").symlink_to("srv/etc")
    (tmp_path / "link").symlink_to("root")
    assert smpctl("--root", str(tmp_path / "link"), "--programs", "/srv/smp/bin").returncode == 0
    assert (tmp_path / "root/srv/etc/systemd/system/smpd.service").is_file()
    assert smpctl("--root", "", "--programs", "/srv/smp/bin").returncode == 2
    assert smpctl("--root", str(tmp_path / "link"), "--programs", "").returncode == 2


def runs(options: Options) -> list[Run]:
    return [step for step in installing.plan(options) if isinstance(step, Run)]


def test_what_is_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine: users, folders, the key, the units; no secret is in an argument; files come before commands."""
    monkeypatch.setattr(installing, "check_programs", lambda options: None)
    monkeypatch.setattr(installing, "KEYS_FOLDER", str(tmp_path / "keys").lstrip("/"))
    monkeypatch.setattr(installing, "KEY_FILE", str(tmp_path / "smpd.key"))
    monkeypatch.setattr(installing.shutil, "which", lambda name: f"/usr/bin/{name}")
    steps = list(installing.plan(Options(compute="socket")))
    commands = [step.argv for step in steps if isinstance(step, Run)]
    assert [argv[0] for argv in commands] == [
        "systemd-sysusers", "systemd-tmpfiles", "systemd-creds", "systemctl", "systemctl",
    ]  # fmt: skip
    assert commands[-1] == (
        "systemctl", "enable", "--now", "smpd-compute.socket", "smpd.socket", "smpd.service",
    )  # fmt: skip
    assert [step.argv[0] for step in steps if isinstance(step, Run) and step.key] == ["systemd-creds"]
    assert len([argv for argv in commands if argv[0] == "systemctl"]) == 2
    assert [run.argv[0] for run in runs(Options(start=False, credential=False))] == [
        "systemd-sysusers", "systemd-tmpfiles", "systemctl",
    ]  # fmt: skip
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "identity.key").touch()
    steps = list(installing.plan(Options()))
    assert not [step for step in steps if isinstance(step, Run) and step.key]
    assert any(isinstance(step, Note) and "keeps what seals it" in step.text for step in steps)
    assert not any(isinstance(step, File) and step.path.endswith("credential.conf") for step in steps)
    assert not any(isinstance(step, Gone) for step in steps)


def test_a_command_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named with what it said; one that is not there, too. A key goes in by standard input, and not beyond."""
    monkeypatch.setattr(installing, "KEY_FILE", str(tmp_path / "store" / "smpd.key"))
    taken = tmp_path / "taken"
    installing.carry_out(Run(("sh", "-c", f"cat > {taken}"), key=True), Options())
    assert len(taken.read_bytes()) == installing.KEY_BYTES
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700
    with pytest.raises(ResourceError, match="sh -c failed: no luck"):
        installing.carry_out(Run(("sh", "-c", "echo no luck >&2; exit 3")), Options())
    with pytest.raises(ResourceError, match="no-such-program"):
        installing.carry_out(Run(("no-such-program",)), Options())


@pytest.mark.parametrize(
    ("programs", "why"),
    [
        ("venv/bin", "no absolute path"),
        ("/opt/my smp/bin", "characters"),
        ("/opt/smp%i/bin", "characters"),
        ("/home/ada/venv/bin", "cannot be seen"),
        ("/root/venv/bin", "cannot be seen"),
    ],
)
def test_programs_that_the_units_could_not_run(programs: str, why: str) -> None:
    """A place that the units do not see, or would read otherwise, is refused before anything is done."""
    with pytest.raises(UsageError, match=why):
        next(installing.plan(Options(root="/somewhere", programs=programs)))


def test_programs_that_others_could_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine the programs must be there, with their interpreter, and open to the daemon's user."""
    folder, python = tmp_path / "bin", tmp_path / "home" / "python3"
    for each in (folder, python.parent):
        each.mkdir()
    assert installing._unreachable(str(folder)) == "has no program smpd"
    for path in (folder / "smpd", folder / "smpctl", python):
        path.touch(0o755)
    (folder / "python").symlink_to(python)
    assert "cannot be seen by the units" in installing._unreachable(str(folder))  # it is below /tmp
    monkeypatch.setattr(installing, "_HIDDEN", ())
    python.parent.chmod(0o700)
    assert "is closed to other users at" in installing._unreachable(str(folder))
    folder.chmod(0o700)
    assert installing._unreachable(str(folder)) == f"is closed to other users at {folder}"


def test_the_credential_is_named(made: tuple[Path, str]) -> None:
    """A box whose credential cannot be opened does not start, rather than make an identity without it."""
    text = (units(made[0]) / "smpd.service.d" / "credential.conf").read_text()
    assert f"LoadCredentialEncrypted=smpd.key:{installing.KEY_FILE}\n" in text
    assert "Environment=SMPD_KEYS_CREDENTIAL_FILE=%d/smpd.key\n" in text


@pytest.mark.skipif(os.geteuid() == 0 and os.path.isdir("/run/systemd/system"), reason="it would set this machine up")
def test_not_here() -> None:
    """Who is not root, or has no systemd, is told so; nothing is done."""
    done = smpctl()
    assert done.returncode in (2, 4)
    assert "only root" in done.stderr or "not booted with systemd" in done.stderr


@pytest.fixture
def judged(made: tuple[Path, str], tmp_path: Path) -> tuple[Path, str]:
    """What was made, with programs that exist here."""
    root, compute = made
    shutil.copytree(units(root), tmp_path / "units")
    for path in (tmp_path / "units").glob("*.service"):
        path.write_text(re.sub(r"/srv/smp/bin/\w+", "/bin/true", path.read_text()))
    return tmp_path / "units", compute


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_what_systemd_says(judged: tuple[Path, str]) -> None:
    """systemd finds nothing wrong with the units as they are installed, drop-ins included, and they are as closed as stated."""
    folder, compute = judged
    files = sorted(map(str, folder.glob("smpd*.s*t"))) + sorted(map(str, folder.glob("smpd*.service")))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "smpd" in line]) == (0, [])
    goals = {"smpd.service": 1.5 if compute == "socket" else 1.7, "smpd-compute@.service": 0.8}
    for name, goal in goals.items():
        command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={round(goal * 10)}"]
        done = subprocess.run([*command, str(folder / name)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-400:]


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("systemd-sysusers") or not shutil.which("systemd-tmpfiles"),
    reason="needs root, systemd-sysusers and systemd-tmpfiles",
)
def test_users_and_folders(made: tuple[Path, str]) -> None:
    """systemd's own tools make of it the users, groups and folders, with the modes that smpd asks for."""
    root, _ = made
    for command in (["systemd-sysusers"], ["systemd-tmpfiles", "--create"]):
        done = subprocess.run([*command, f"--root={root}"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    entries = {line.split(":")[0]: line.split(":") for line in (root / "etc/passwd").read_text().splitlines()}
    groups = {line.split(":")[0] for line in (root / "etc/group").read_text().splitlines()}
    assert groups >= {"smpd", "smpd-operator", "smpd-admin"}
    for path, mode in (("run/smpd", 0o750), ("var/lib/smpd", 0o700)):
        found = (root / path).stat()
        assert (found.st_mode & 0o777, found.st_uid) == (mode, int(entries["smpd"][2]))


@pytest.mark.parametrize("there", ["latin-1", "link"])
def test_a_configuration_is_never_replaced(smpctl: Smpctl, tmp_path: Path, there: str) -> None:
    """Not where it is no UTF-8, and not where it is a link to what is not there at the moment."""
    config = tmp_path / "root/etc/smpd/config.toml"
    config.parent.mkdir(parents=True)
    if there == "link":
        config.symlink_to("not-mounted/config.toml")
    else:
        config.write_bytes(b"# Ger\xe4t\n")
    ran = smpctl("setup", "--root", tmp_path / "root", "--programs", "/opt/smp/bin")
    assert ran.code == 0, ran.err
    assert "config.toml is kept" in ran.out
    assert config.is_symlink() if there == "link" else config.read_bytes() == b"# Ger\xe4t\n"
