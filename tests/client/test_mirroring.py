"""A mirror against the stand-in: what a folder holds that cannot be sent stops nothing else."""

import os
from pathlib import Path
from typing import Any

import pytest
from client.conftest import Smpctl
from client.standin import StandIn

from smp_proto import control as c
from smpctl import Client
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
    from smp_proto.sealed.keys import Identity

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
