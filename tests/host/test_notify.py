"""Talking to the service manager over a real datagram socket."""

import os
import secrets
import socket
import time

import pytest

from smpd.host.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A manager's socket and the address it would give us."""
    name = f"@smpd-test-{secrets.token_hex(8)}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if name[0] == "@" else name)
        sock.settimeout(10)
        yield sock, name


def test_states(manager):
    """READY with a status, STATUS on one line, STOPPING: one datagram each."""
    sock, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("2 remotes")
    notifier.status("busy\nREADY=1")
    notifier.stopping()
    assert [sock.recv(999) for _ in range(3)] == [b"READY=1\nSTATUS=2 remotes", b"STATUS=busy READY=1", b"STOPPING=1"]


def test_watchdog(manager):
    """With WATCHDOG_USEC the manager is told, and how often it wants to be."""
    sock, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000", "WATCHDOG_PID": str(os.getpid())})
    assert (notifier.watchdog_s, notifier.listens) == (0.002, True)
    notifier.alive()
    assert sock.recv(99) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    "environ", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}]
)
def test_no_watchdog(manager, environ):
    """Without an interval, or with another process's, there is nothing to feed."""
    sock, address = manager
    notifier = Notifier({**environ, "NOTIFY_SOCKET": address})
    notifier.alive()
    notifier.stopping()
    assert (notifier.watchdog_s, sock.recv(99)) == (0.0, b"STOPPING=1")


def test_reloading_and_stopping(manager):
    """RELOADING with the monotonic clock, READY after it whatever happens; STOPPING with the time that is asked for."""
    sock, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    before = time.monotonic_ns() // 1000
    with pytest.raises(ValueError, match="no good"), notifier.reloading():
        raise ValueError("no good")
    notifier.stopping("soon", 1.5)
    first, said = sock.recv(99).decode().split("\n")
    assert first == "RELOADING=1"
    assert before <= int(said.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    assert [sock.recv(99) for _ in range(2)] == [b"READY=1", b"STOPPING=1\nSTATUS=soon\nEXTEND_TIMEOUT_USEC=1500000"]


@pytest.mark.parametrize("address", ["", "/no/such/socket", "@nobody-listens-here", "/" + "x" * 200])
def test_nobody_listens(address):
    """No manager, or one that is gone, stops nothing."""
    Notifier({"NOTIFY_SOCKET": address}).ready("up")
