"""``smpctl top``: rates from two looks, each way of showing, and a daemon that goes and comes back."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from client.conftest import Smpctl
from client.standin import JOB_ID, StandIn, job, standin, status
from client.test_terminal import Terminal
from rich.console import Console

from smp_proto import control as c
from smpctl.commands.top import JobRate, Look, RemoteRate
from smpctl.screen import drawn

SYNC = c.SyncView(
    c.SyncSpec(name="knees", source="lab:knees/"), "active", "ann(1000)", 1.0, 9, 2, 1, done=5, failed=1, lag_s=75.0
)


def _busy(daemon: StandIn) -> None:
    """Each look finds 1 MiB more done, and 10 ranges of 8 MiB more fetched."""
    looks = iter(range(1, 1000))

    def answer() -> c.Status:
        n = next(looks)
        load = c.RemoteLoad("lab", lanes=32, window=16, in_use=9, ranges=10 * n, bytes=n * 80 << 20)
        worker = c.Worker("fetch", 77, "lab", 0, rss_bytes=1 << 20)
        device = c.Worker("compute", 78, "smp", 0, rss_bytes=2 << 20, device="cuda:0", slots=16, slots_in_use=5)
        return msgspec.structs.replace(status(), loads=[load], workers=[worker, device], ring_bytes=64 << 20)

    done = iter(range(1, 1000))
    daemon.answers |= {
        c.StatusRequest: _each(answer),
        c.JobsRequest: _each(lambda: c.Jobs([_running(next(done) << 20)])),
        c.SyncList: c.Syncs([SYNC]),
    }


def _running(done_bytes: int) -> c.JobView:
    return msgspec.structs.replace(job("running"), phase="fetch", done_bytes=done_bytes, total_bytes=64 << 20)


def _each(make: Callable[[], object]) -> Callable[..., object]:
    async def answer(_request: object, _exchange: object) -> object:
        return make()

    return answer


def test_once_shows_jobs_workers_remotes_and_rings(smpctl: Smpctl, daemon: StandIn) -> None:
    """One look, in lines, without anything that only a terminal understands."""
    _busy(daemon)
    ran = smpctl("top", "--once")
    assert ran.code == 0
    assert "remote lab: 9 of 32 lanes, window 16" in ran.out
    assert "fetch lab: process 77, 1.0 MiB, 0 restarts" in ran.out
    assert "compute smp: process 78, 2.0 MiB, 0 restarts, cuda:0" in ran.out
    assert "sync knees: active, 5 of 9 done, 2 waiting, 1 under way, 1 failed, lag 1 min 15 s" in ran.out
    assert "rings 64.0 MiB" in ran.out
    assert f"{JOB_ID[:8]} get normal running fetch 1 % of 64.0 MiB" in ran.out
    assert "\x1b" not in ran.out


def _start(*args: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "smpctl", "top", "--interval", "0.1", *args]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_json_lines_carry_rates(daemon: StandIn) -> None:
    """Each look is one object a line; from the second on it has rates."""
    _busy(daemon)
    process = _start("--json")
    assert process.stdout
    first, second = (msgspec.json.decode(process.stdout.readline(), type=Look) for _ in range(2))
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert (first.jobs[0].bytes_per_s, first.remotes[0].bytes_per_s) == (0, 0)
    passed = second.at - first.at
    assert abs(second.jobs[0].bytes_per_s * passed - (1 << 20)) < 1
    assert abs(second.remotes[0].ranges_per_s * passed - 10) < 1e-3
    assert abs(second.remotes[0].bytes_per_s * passed - (80 << 20)) < 1
    assert process.returncode == 130


def test_a_daemon_that_restarts_is_waited_for(home: Path) -> None:
    """While it is away that is said once; when it is back the looks go on, and it is said that it is another."""
    path = os.environ["SMPD_SOCKET"]
    with standin(path) as daemon:
        _busy(daemon)
        process = _start("--json")
        assert process.stdout
        assert process.stderr
        assert json.loads(process.stdout.readline())
    assert "waiting for it to come back" in process.stderr.readline()
    with standin(path) as daemon:
        _busy(daemon)
        daemon.answers[c.StatusRequest] = msgspec.structs.replace(status(), boot_id="another")
        assert "started again" in process.stderr.readline()
        while json.loads(process.stdout.readline())["status"]["boot_id"] != "another":
            pass
        process.send_signal(signal.SIGINT)
        process.communicate()


def test_a_terminal_shows_a_screen(home: Path) -> None:
    """A screen that is left as it was: tables of all; "smpd is away" while it is, and again what there is when it is back."""
    path = os.environ["SMPD_SOCKET"]
    with standin(path) as daemon:
        _busy(daemon)
        terminal = Terminal("top", "--interval", "0.1")
        for text in ("lab", "ranges/s", "cuda:0", "knees", "1 min 15 s", JOB_ID[:8], "64.0 MiB"):
            terminal.until(text)
    terminal.until("smpd is away")
    shown = len(terminal.shown)
    with standin(path) as daemon:
        _busy(daemon)
        daemon.answers[c.StatusRequest] = status(version="10.0.0", boot_id="another")
        terminal.until("smpd 10.0.0")
        assert terminal.shown.rindex("smpd 10.0.0") > shown
        terminal.type("\x03")
        assert terminal.end() == 0
    assert "\x1b[?1049h" in terminal.shown
    assert "\x1b[?1049l" in terminal.shown


@pytest.mark.parametrize("height", [10, 24, 60])
def test_a_screen_has_room_for_what_matters(height: int) -> None:
    """However many jobs there are the screen is not longer than the terminal, or has three jobs; none is left out silently."""
    jobs = [JobRate(job("running", id=f"{n:032}", total_bytes=4 << 20)) for n in range(100)]
    load = RemoteRate(c.RemoteLoad("lab", 32, 16, 9))
    found = Look(0.0, status(), jobs, [load], [SYNC])
    console = Console(width=160, height=height, file=io.StringIO())
    console.print(drawn(found, height))
    said = console.file.getvalue().splitlines()
    listed = sum(line.startswith("0000") for line in said)
    assert len(said) <= height or listed == 3
    assert said[-1] == f"and {100 - listed} more"


def test_names_of_others_do_not_command_the_terminal() -> None:
    """What a terminal would obey, or rich would take for markup, is shown as it is."""
    odd = job("running", source="lab:\x1b[2J[red]x[/red]", total_bytes=1)
    console = Console(width=160, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(drawn(Look(0.0, status(), [JobRate(odd)], []), 40))
    assert r"\x1b[2J[red]x[/red]" in console.file.getvalue()


def test_status_shows_syncs(smpctl: Smpctl, daemon: StandIn) -> None:
    """One screen, with what each sync has to do."""
    _busy(daemon)
    ran = smpctl("status")
    assert "sync knees: active, 5 of 9 done" in ran.out
    assert "cuda:0" in ran.out
