"""``smpctl top``: rates from two looks, each way of showing, and a daemon that goes and comes back."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
from client.conftest import Smpctl
from client.standin import JOB_ID, StandIn, job, standin, status
from client.test_terminal import Terminal

from smp_proto import control as c
from smpctl.commands.top import Look


def _busy(daemon: StandIn) -> None:
    """Each look finds 1 MiB more done, and 10 ranges of 8 MiB more fetched."""
    looks = iter(range(1, 1000))

    def answer() -> c.Status:
        n = next(looks)
        load = c.RemoteLoad("lab", lanes=32, window=16, in_use=9, ranges=10 * n, bytes=n * 80 << 20)
        worker = c.Worker("fetch", 77, "lab", 0, rss_bytes=1 << 20)
        return msgspec.structs.replace(status(), loads=[load], workers=[worker], ring_bytes=64 << 20)

    done = iter(range(1, 1000))
    daemon.answers |= {
        c.StatusRequest: _each(answer),
        c.JobsRequest: _each(lambda: c.Jobs([_running(next(done) << 20)])),
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


def test_a_terminal_shows_a_screen(daemon: StandIn) -> None:
    """On a terminal it is a screen that is left as it was; Ctrl-C ends it well."""
    _busy(daemon)
    terminal = Terminal("top", "--interval", "0.1")
    terminal.until("window 16, ")
    terminal.until("0 restarts")
    terminal.type("\x03")
    assert terminal.end() == 0
    assert "\x1b[?1049h" in terminal.shown
    assert "\x1b[?1049l" in terminal.shown
