"""What only a terminal shows: the bar, colours, questions, Ctrl-C. Each test has a pseudo-terminal."""

import contextlib
import os
import pty
import re
import signal
import sys
import threading
from pathlib import Path

import pytest
from client.conftest import PASSPHRASE
from client.standin import JOB_ID, StandIn, job

from smp_proto import aio
from smp_proto import control as c
from smp_proto.sealed.keys import Identity

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """smpctl on a terminal of its own."""

    def __init__(self, *args: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:  # pragma: no cover - the child
            os.environ["TERM"] = "xterm-256color"
            os.environ["COLUMNS"] = "160"
            os.execv(sys.executable, [sys.executable, "-m", "smpctl", *args])
        self.shown = ""

    def until(self, text: str) -> None:
        """Read until something shows."""
        while text not in ESCAPE.sub("", self.shown):
            data = os.read(self._fd, 4096)
            assert data, self.shown
            self.shown += data.decode()

    def type(self, text: str) -> None:
        """Keys."""
        os.write(self._fd, os.fsencode(text))

    def end(self) -> int:
        """Everything else, and the exit code."""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while data := os.read(self._fd, 4096):
                self.shown += data.decode()
        os.close(self._fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_the_bar_moves(daemon: StandIn) -> None:
    """On a terminal progress is a bar with bytes and state; the result comes after it."""
    terminal = Terminal("get", "lab:scan.smp")
    assert terminal.end() == 0
    plain = ESCAPE.sub("", terminal.shown)
    assert "━" in plain
    assert "get 0198c0de" in plain
    assert "100/100 bytes" in plain
    assert "vault 5eed" in plain.splitlines()[-1]
    assert terminal.shown.endswith("\r\n")


@pytest.mark.parametrize("no_colour", [True, False])
def test_colours_only_where_they_are_wanted(daemon: StandIn, monkeypatch: pytest.MonkeyPatch, no_colour: bool) -> None:
    """States and the bar have colour on a terminal, and none with NO_COLOR."""
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    daemon.answers[c.DoctorRequest] = c.Doctor([c.Check("gpu", "warn", "none", "x")])
    coloured = re.compile(r"\x1b\[(3\d|9\d|38;)")
    for args in (["doctor"], ["get", "lab:scan.smp"]):
        terminal = Terminal(*args)
        assert terminal.end() == 0
        assert bool(coloured.search(terminal.shown)) is not no_colour


def test_ctrl_c_stops_waiting_and_not_the_job(daemon: StandIn) -> None:
    """Ctrl-C ends the wait with 130, says how to go on, and sends no cancel for the job."""
    started = threading.Event()

    async def forever(_request: c.Watch, exchange: aio.Exchange) -> None:
        import anyio
        import msgspec

        await exchange.send(c.Event(1, "snapshot", msgspec.Raw(aio.encode(job()))))
        started.set()
        await anyio.sleep_forever()

    daemon.answers[c.Watch] = forever
    terminal = Terminal("get", "lab:scan.smp")
    assert started.wait(20)
    terminal.until("running")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert f"job {JOB_ID} goes on" in terminal.shown
    assert "smpctl job wait 0198c0de" in terminal.shown
    assert not any(isinstance(each, c.JobControl) for each in daemon.seen)


@pytest.mark.parametrize(
    ("number", "code", "shown"),
    [(signal.SIGINT, 130, "smpctl: interrupted"), (signal.SIGTERM, 143, ""), (signal.SIGHUP, 129, "")],
)
def test_a_signal_elsewhere(daemon: StandIn, number: int, code: int, shown: str) -> None:
    """It ends any other verb by way of what has to be cleared away, and is what the exit status says."""
    asked = threading.Event()

    async def never(_request: c.StatusRequest, _exchange: aio.Exchange) -> None:
        import anyio

        asked.set()
        await anyio.sleep_forever()

    daemon.answers[c.StatusRequest] = never
    terminal = Terminal("status")
    assert asked.wait(20)
    os.kill(terminal.pid, number)
    assert terminal.end() == code
    assert terminal.shown.strip() == shown


def test_a_passphrase_is_asked_for_twice_and_not_echoed(home: Path) -> None:
    """A new key asks twice without showing what is typed; two that differ make no key."""
    terminal = Terminal("keys", "new", "ann")
    terminal.until("New passphrase for ann: ")
    terminal.type(PASSPHRASE + "\n")
    terminal.until("again: ")
    terminal.type("another\n")
    assert (terminal.end(), "differ" in terminal.shown) == (2, True)
    terminal = Terminal("keys", "new", "ann")
    terminal.until("New passphrase for ann: ")
    terminal.type(PASSPHRASE + "\n")
    terminal.until("again: ")
    terminal.type(PASSPHRASE + "\n")
    assert terminal.end() == 0
    assert PASSPHRASE not in terminal.shown
    data = (home / ".config/smp/keys/ann.key").read_bytes()
    Identity.from_file(data, passphrase=bytearray(PASSPHRASE.encode())).wipe()


def test_ctrl_c_at_the_question_leaves_the_echo_on(home: Path) -> None:
    """Interrupting the question restores the terminal."""
    import termios

    terminal = Terminal("keys", "new", "ann")
    terminal.until("New passphrase for ann: ")
    assert not termios.tcgetattr(terminal._fd)[3] & termios.ECHO
    terminal.type("\x03")
    terminal.until("interrupted")
    assert termios.tcgetattr(terminal._fd)[3] & termios.ECHO
    assert terminal.end() == 130


def test_credentials_are_asked_for(daemon: StandIn) -> None:
    """Adding an S3 remote without saying where its secret is asks for both halves, unseen."""
    daemon.answers[c.RemoteAdd] = c.RemoteView("lab", "standard", c.S3Config("b"), True)
    terminal = Terminal("remote", "add", "lab", "s3://b")
    terminal.until("Access key: ")
    terminal.type("AK\n")
    terminal.until("Secret key: ")
    terminal.type("hush\n")
    assert terminal.end() == 0
    assert "hush" not in terminal.shown
    assert daemon.seen[-1].secret == c.S3Secret("AK", "hush")


def test_deleting_asks(daemon: StandIn) -> None:
    """On a terminal vault rm asks, and no is no."""
    for answer, code in (("n", 130), ("y", 0)):
        terminal = Terminal("vault", "rm", "5eed")
        terminal.until("[y/N]: ")
        terminal.type(answer + "\n")
        assert terminal.end() == code
    assert sum(isinstance(each, c.VaultRemove) for each in daemon.seen) == 1


def test_a_secret_that_is_not_utf_8_is_not_shown(daemon: StandIn) -> None:
    """As a terminal set to Latin-1 types it: what it held is in no message and no traceback."""
    terminal = Terminal("remote", "add", "lab", "s3://bucket")
    terminal.until("Access key: ")
    terminal.type("Sch\udcfcssel\n")
    assert terminal.end() == 2
    assert "not UTF-8 (access key)" in terminal.shown
    assert "Traceback" not in terminal.shown
    assert "fc" not in terminal.shown.partition("Access key: ")[2]
    assert daemon.seen == []
