"""A mirror against the stand-in: what a folder holds that cannot be sent stops nothing else."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from client.conftest import Smpctl
from client.standin import StandIn

from smp_proto import control as c
from smp_proto.errors import IntegrityError, NotFoundError, ResourceError
from smp_proto.sealed.keys import Identity
from smpctl import Client
from smpctl.files import LocalFile
from smpctl.mirroring import Mirror, Mirrored, State

ODD = [b"not-utf-8-\xff", b"line\nbreak", b"esc\x1b[2J", b"back\\slash"]


class Removing(Client):
    """A client beside somebody who removes a file once the first is sent."""

    victim: Path | None = None

    def put(self, *args: Any, **kwargs: Any) -> c.JobView:
        sent = super().put(*args, **kwargs)
        if self.victim is not None:
            self.victim.unlink(missing_ok=True)
        return sent


def mirrored(client: Client, folder: Path, notes: list[str], *, named: bool = False) -> Mirrored:
    """A round, as the command does one."""
    with State(str(folder), str(folder.parent / "state")) as state:
        return Mirror(client, state, ["lab:in/"], ["k"], named=named, note=notes.append).round()


@pytest.fixture
def folder(tmp_path: Path, daemon: StandIn) -> Path:
    """Three files, and a daemon that takes them."""
    daemon.answers[c.Submit] = daemon.putting
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in "acz":
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_a_name_that_no_entry_may_have_is_left_out(daemon: StandIn, folder: Path, odd: bytes, named: bool) -> None:
    """It is noted, also below a folder, and all others are sent."""
    (folder / "sub").mkdir()
    for parent in (folder, folder / "sub"):
        with open(os.path.join(os.fsencode(parent), b"b" + odd), "wb"):
            pass
    notes: list[str] = []
    with Client(daemon.path) as client:
        found = mirrored(client, folder, notes, named=named)
    assert (found.sent, found.failed, sorted(daemon.written)) == (3, 0, ["a", "c", "z"])
    assert [note.startswith("left out ") for note in notes] == [True, True]


def test_a_file_that_goes_during_the_round_is_left_out(daemon: StandIn, folder: Path) -> None:
    """The others are sent, and the next round does not take it for one that was there."""
    with Removing(daemon.path) as client:
        client.victim = folder / "c"
        found = mirrored(client, folder, [])
        assert (found.sent, found.failed, sorted(daemon.written)) == (2, 0, ["a", "z"])
        found = mirrored(client, folder, [])
        assert (found.same, found.gone) == (2, 0)


def test_the_command_shows_odd_names_and_goes_on(
    smpctl: Smpctl, daemon: StandIn, folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a name reaches the terminal as an order."""
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    (home / "reader.pub").write_text(Identity.generate("reader").public.text())
    for odd in ODD:
        with open(os.path.join(os.fsencode(folder), odd), "wb"):
            pass
    ran = smpctl("mirror", folder, "lab:in/", "--to", home / "reader.pub")
    assert (ran.code, "3 sent" in ran.out) == (0, True), ran.err
    assert "\x1b" not in ran.err
    assert "esc\\x1b[2J" in ran.err
    assert "line\\nbreak" in ran.err


def test_a_folder_that_goes_while_it_is_listed_is_left_out(
    daemon: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that watches goes on."""
    (folder / "b").mkdir()
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("/b"):
            os.rmdir(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with Client(daemon.path) as client:
        assert mirrored(client, folder, []).sent == 3
        folder.rename(folder.parent / "moved")
        with pytest.raises(NotFoundError):
            mirrored(client, folder, [])


@pytest.mark.parametrize("code", ["source_changed", "no_such_file"])
def test_a_file_that_cannot_be_read_whole_is_told_and_stops_no_other(
    daemon: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """It is not there afterwards, so nobody may think it is."""
    kind = IntegrityError if code == "source_changed" else NotFoundError
    real = LocalFile.open

    def opened(self: LocalFile) -> tuple[int, int]:
        if self.name == "c":
            raise kind(code, f"{self.path} cannot be read: permission denied", hint="x")
        return real(self)

    monkeypatch.setattr(LocalFile, "open", opened)
    notes: list[str] = []
    with Client(daemon.path) as client:
        found = mirrored(client, folder, notes)
    assert (found.sent, found.failed, found.exit_code) == (2, 1, kind.exit_code)
    assert [str(folder / "c") in note for note in notes] == [True]


def test_a_watch_goes_on_while_the_box_is_full(
    daemon: StandIn, folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a box that is away: it is told, and tried again."""
    tries = 0

    async def putting(request: c.Submit, exchange: Any) -> c.JobView:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ResourceError("disk_full", "no space is left for the spool", hint="x")
        return await daemon.putting(request, exchange)

    daemon.answers[c.Submit] = putting
    (home / "reader.pub").write_text(Identity.generate("reader").public.text())
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    command = ["mirror", str(folder), "lab:in/", "--to", str(home / "reader.pub"), "--watch", "--every", "0.1s"]
    process = subprocess.Popen([sys.executable, "-m", "smpctl", *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("3 sent")
    finally:
        process.kill()
        process.communicate()
