"""A daemon's stand-in, a home of its own for each test, and the real smpctl as a process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from client.standin import StandIn, standin

PASSPHRASE = "correct horse"
KEY_MATERIAL = bytes(range(32))


class Ran(NamedTuple):
    """What a run of smpctl left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on standard output."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """All of them."""
        return [json.loads(line) for line in self.out.splitlines()]


Smpctl = Callable[..., Ran]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with nothing in it, and no daemon to be found by chance."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("SMPD_SOCKET", str(tmp_path / "smpd.sock"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    (home / "pass").write_text(PASSPHRASE + "\n")
    return home


@pytest.fixture
def key_file(home: Path) -> Path:
    """Key material that opens keys without Argon2id, which takes its time on purpose."""
    path = home / "credential"
    path.write_bytes(KEY_MATERIAL)
    return path


@pytest.fixture
def daemon(home: Path, tmp_path: Path) -> Iterator[StandIn]:
    """A stand-in at ``SMPD_SOCKET``."""
    with standin(str(tmp_path / "smpd.sock")) as running:
        yield running


@pytest.fixture
def smpctl(home: Path) -> Smpctl:
    """Runs the real command."""

    def run(*args: object, stdin: str | None = None, cwd: Path | None = None) -> Ran:
        return run_smpctl(*args, stdin=stdin, cwd=cwd or home)

    return run


def run_smpctl(*args: object, stdin: str | None = None, cwd: Path) -> Ran:
    """Run the real command, in a folder."""
    done = subprocess.run(
        [sys.executable, "-m", "smpctl", *map(str, args)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env=dict(os.environ),
        start_new_session=True,  # no controlling terminal to ask on
    )
    return Ran(done.returncode, done.stdout, done.stderr)
