"""Sockets handed over, and sockets bound without taking another's place."""

import os
import socket
import stat
import subprocess
import sys

import pytest

from smp_proto.errors import ResourceError, StateError
from smpd.host.sockets import bind_socket, inherited_sockets

CHILD = """
import json, os, sys
from smp_proto.errors import SmpError
from smpd.host.sockets import inherited_sockets
os.environ["LISTEN_PID"] = str(os.getpid()) if sys.argv[1] == "us" else "1"
try:
    found = inherited_sockets()
except SmpError as error:
    print(json.dumps(error.code), os.path.exists("/proc/self/fd/3")); sys.exit()
print(json.dumps({name: [sock.getsockname() for sock in socks] for name, socks in found.items()}))
print(json.dumps([os.get_inheritable(sock.fileno()) for socks in found.values() for sock in socks]))
"""


def activate(socks: list[socket.socket], names: str, whose: str = "us", count: int | None = None) -> list[str]:
    """Run a child that finds `socks` at descriptors 3, 4, … as systemd would leave them; return its lines."""
    for i, sock in enumerate(socks):
        os.dup2(sock.fileno(), 100 + i)
    moves = "".join(f" {3 + i}<&{100 + i} {100 + i}<&-" for i in range(len(socks)))
    environ = os.environ | {"LISTEN_FDS": str(len(socks) if count is None else count), "LISTEN_FDNAMES": names}
    try:
        done = subprocess.run(
            ["bash", "-c", f'exec "$0" -c "$1" {whose}{moves}', sys.executable, CHILD],
            env=environ,
            pass_fds=[100 + i for i in range(len(socks))],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        for i in range(len(socks)):
            os.close(100 + i)
    return done.stdout.splitlines()


@pytest.fixture
def listeners(tmp_path):
    """Two listening sockets."""
    made = []
    for name in "ab":
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / name))
        sock.listen()
        made.append(sock)
    yield made
    for sock in made:
        sock.close()


def test_activation(listeners, tmp_path):
    """A real child finds its sockets by name, and its own children do not inherit them."""
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert activate(listeners, "control:metrics") == [f'{{"control": ["{a}"], "metrics": ["{b}"]}}', "[false, false]"]
    assert activate(listeners, "control:control")[0] == f'{{"control": ["{a}", "{b}"]}}'
    assert activate(listeners, "")[0] == f'{{"unknown": ["{a}", "{b}"]}}'


def test_activation_of_another_process(listeners):
    """Sockets meant for another process are left alone."""
    assert activate(listeners, "control:x", whose="other")[0] == "{}"


def test_activation_with_the_wrong_thing(tmp_path):
    """A descriptor that is no listening Unix stream socket is refused."""
    with socket.socket(socket.AF_UNIX) as idle, socket.socket() as inet:
        inet.bind(("127.0.0.1", 0))
        inet.listen()
        for wrong in (idle, inet):
            assert activate([wrong], "control") == ['"bad_config" True']


def test_activation_with_less_than_was_said(listeners, tmp_path):
    """A number that is too large, or a file in a socket's place, is refused. Perhaps it is our own: it stays open."""
    assert activate(listeners, "control", count=3) == ['"bad_config" True']
    assert activate([], "control", count=1) == ['"bad_config" False']
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "file").open("wb") as file:
        for wrong in (ours, file):
            assert activate([wrong], "control") == ['"bad_config" True']


def test_no_activation():
    """Without systemd's variables there is nothing."""
    assert inherited_sockets({}) == {}
    assert inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"}) == {}


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_bind(tmp_path, mode):
    """A new socket has exactly the mode asked for, whatever the umask, which is left as it was."""
    path = str(tmp_path / "s")
    before = os.umask(0o027)
    try:
        with bind_socket(path, mode) as sock:
            assert stat.S_IMODE(os.stat(path).st_mode) == mode
            assert not sock.get_inheritable()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_bind_for_a_group(tmp_path):
    """The socket is given to the group before the mode lets anyone in."""
    path = str(tmp_path / "s")
    with bind_socket(path, 0o660, 4711):
        found = os.stat(path)
    assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (4711, 0o660)


def test_stale_socket_is_replaced(tmp_path):
    """A socket that nobody answers on is replaced."""
    path = str(tmp_path / "s")
    bind_socket(path, 0o600).close()
    assert os.path.exists(path)
    with bind_socket(path, 0o600), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_live_socket_is_left_alone(tmp_path):
    """A socket that answers is another daemon's: `exists`, and it goes on answering."""
    path = str(tmp_path / "s")
    with bind_socket(path, 0o600) as first:
        with pytest.raises(StateError, match="another daemon") as caught:
            bind_socket(path, 0o600)
        assert caught.value.code == "exists"
        first.accept()[0].close()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_something_else_is_left_alone(tmp_path, kind):
    """A file, a folder or a symbolic link in the way is never removed, nor followed."""
    path, aim = tmp_path / "s", tmp_path / "aim"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(aim))
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(aim)
    with pytest.raises(StateError, match="no socket"):
        bind_socket(str(path), 0o600)
    assert os.path.lexists(path)
    assert aim.exists()


def test_bind_where_there_is_no_folder(tmp_path):
    """A folder that does not exist is an error that names the path."""
    with pytest.raises(ResourceError, match=r"cannot bind .*/none/s"):
        bind_socket(str(tmp_path / "none" / "s"), 0o600)
