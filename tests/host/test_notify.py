"""Talking to the service manager over a real datagram socket."""

import os
import secrets
import socket

import anyio
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


async def test_watchdog(manager):
    """With WATCHDOG_USEC the loop reports again and again."""
    sock, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000", "WATCHDOG_PID": str(os.getpid())})
    async with anyio.create_task_group() as group:
        group.start_soon(notifier.feed_watchdog)
        for _ in range(3):
            assert await anyio.to_thread.run_sync(sock.recv, 99) == b"WATCHDOG=1"
        group.cancel_scope.cancel()


@pytest.mark.parametrize(
    "environ", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}]
)
async def test_no_watchdog(environ):
    """Without an interval, or with another process's, there is nothing to feed."""
    with anyio.fail_after(5):
        await Notifier(environ).feed_watchdog()


@pytest.mark.parametrize("address", ["", "/no/such/socket", "@nobody-listens-here", "/" + "x" * 200])
def test_nobody_listens(address):
    """No manager, or one that is gone, stops nothing."""
    Notifier({"NOTIFY_SOCKET": address}).ready("up")
