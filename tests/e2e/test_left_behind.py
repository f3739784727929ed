"""What a notify.command leaves behind, by a double fork with a session of its own: a real daemon and real orphans."""

import socket
import subprocess
import sys
from pathlib import Path

from box import Box
from scene import client

LEAVING = """
import os, socket, sys
outer, inner = os.pipe(), os.pipe()
if os.fork() == 0:
    os.setsid()
    middle = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == middle:
        pass
    said = "nothing"
    if sys.argv[1] == "ask":
        from smp_proto.errors import SmpError
        from smpctl import Client
        try:
            Client(sys.argv[2]).connect()
            said = "admitted"
        except SmpError as error:
            said = f"{error.code} {error.message}"
        os.write(outer[1], said.encode())
        os._exit(0)
    os.close(0); os.close(2)
    line = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    os.write(outer[1], b"left")
    os.read(inner[0], 1)  # for ever
os.wait()
sys.stderr.write(os.read(outer[0], 1000).decode())
sys.stderr.flush()
os._exit(1)
"""


def left(box: Box, *arguments: str | Path) -> str:
    """Have the command run, and what it said."""
    box.configure(notify={"command": [sys.executable, "-c", LEAVING, *map(str, arguments)], "timeout_s": 60.0})
    box.start()
    with client(box) as ctl:
        (tried,) = ctl.notify_test().tried
    assert tried.error
    return str(tried.error.details["said"])


def test_an_orphan_is_turned_away(tmp_path: Path) -> None:
    """Its parent has ended, and it is a worker's all the same."""
    box = Box(tmp_path / "box", {"compute": {"processors": []}})
    try:
        assert left(box, "ask", box.socket).startswith("forbidden processes that smpd started")
    finally:
        box.close()


def test_an_orphan_ends_with_the_command(tmp_path: Path) -> None:
    """And is reaped; smpd, whose other children it leaves alone, ends in good order."""
    box = Box(tmp_path / "box", {"compute": {"processors": []}})
    with socket.create_server(("127.0.0.1", 0)) as server:
        try:
            assert left(box, "stay", str(server.getsockname()[1])) == "left"
            line, _ = server.accept()
            with line:
                line.settimeout(20)
                assert line.recv(1) == b""
            assert box.process
            assert children(box.process.pid) == []
        finally:
            box.close()


def children(pid: int) -> list[str]:
    """The children of a process, zombies too."""
    done = subprocess.run(["ps", "-o", "pid=,stat=,args=", "--ppid", str(pid)], capture_output=True, text=True)
    return done.stdout.splitlines()
