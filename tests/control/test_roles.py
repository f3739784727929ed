"""Who may do what: the whole matrix, over the socket, and who is who, as the kernel says."""

import grp
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import msgspec
import pytest

from smp_proto import control as c
from smp_proto.errors import DeniedError
from smpd.config import Control
from smpd.control.actor import Actor, Peer, RoleGroups, actor_of, is_worker, peer_of
from smpd.control.permissions import EVERYTHING, Permissions
from smpd.control.roles import LEAST_ROLE, RANK, REQUESTS, require

ROOT = Path(__file__).parents[2]
VIEWER = {
    "status",
    "jobs",
    "job",
    "watch",
    "remote-list",
    "processors",
    "doctor",
    "trust-list",
    "box-key",
    "audit-read",
    "sync-list",
    "sync-show",
    "metrics",
}
OPERATOR = {
    *("submit", "job-control", "ls", "rm", "remote-test"),
    *("vault-list", "vault-entries", "vault-open", "vault-remove"),
    *("sync-add", "sync-control"),
    *("quarantine-list", "quarantine-show", "quarantine-retry", "quarantine-remove"),
}
ADMIN = {
    "audit-renew",
    "box-rotate",
    "notify-test",
    "reload",
    "remote-add",
    "remote-remove",
    "trust-add",
    "trust-remove",
}
ALLOWED = {"viewer": VIEWER, "operator": VIEWER | OPERATOR, "admin": VIEWER | OPERATOR | ADMIN}


def tag(kind: type[c.Request]) -> str:
    return kind.__struct_config__.tag


def test_table_is_complete():
    """Each request of the protocol has a least role, and nothing else has one."""
    assert set(LEAST_ROLE) == REQUESTS
    assert {tag(kind) for kind in REQUESTS} == VIEWER | OPERATOR | ADMIN


def test_the_page_is_what_the_code_says():
    """docs/reference/roles.md holds the tables of the code; else run: python docs/render_roles.py."""
    render = runpy.run_path(str(ROOT / "docs" / "render_roles.py"))["render"]
    page = (ROOT / "docs" / "reference" / "roles.md").read_text()
    assert render(page) == page


@pytest.mark.parametrize("role", [None, "viewer", "operator", "admin"])
def test_matrix(samples, role):
    """Every role by every verb, exactly; the refusal names role and group."""
    config = Control(operator_group="ops", admin_group="")
    actor = Actor(1, 1, 1, role, "alice(1)", EVERYTHING)
    for kind, request in samples.items():
        if tag(kind) in ALLOWED.get(role, ()):
            require(actor, request, config)
            continue
        with pytest.raises(DeniedError) as caught:
            require(actor, request, config)
        error = caught.value
        assert error.code == "forbidden"
        assert tag(kind) in error.message
        assert LEAST_ROLE[kind] in error.message
        group = {"viewer": "smpd", "operator": "ops", "admin": ""}[LEAST_ROLE[kind]]
        assert (group or "no group") in error.hint


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
async def test_matrix_over_the_socket(serving, samples, monkeypatch, role):
    """The server asks the table for each request, and a refused one never reaches its handler."""
    monkeypatch.setattr("smpd.control.actor.RoleGroups.role_of", lambda *_: role)
    async with serving() as daemon, daemon.client() as client:
        for kind, request in samples.items():
            try:
                await client.call(request, dict)
                passed = True
            except DeniedError:
                passed = False
            assert passed == (RANK[role] >= RANK[LEAST_ROLE[kind]]), kind


@pytest.mark.parametrize(
    ("uid", "groups", "role"),
    [
        (0, (), "admin"),
        (os.geteuid(), (), "admin"),
        (5, (), None),
        (5, (30,), "viewer"),
        (5, (20, 30), "operator"),
        (5, (10, 20, 30), "admin"),
        (5, (99,), None),
    ],
)
def test_role_of(uid, groups, role):
    """Root and the daemon's own user are admin; otherwise the best of the groups counts."""
    assert RoleGroups(10, 20, 30).role_of(uid, groups) == role
    assert RoleGroups(None, None, None).role_of(5, groups) is None


def test_groups_are_looked_up_by_name():
    """A group that exists gives its number, one that does not or is empty gives none."""
    first = grp.getgrall()[0]
    found = RoleGroups.lookup(Control(viewer_group=first.gr_name, operator_group="no-such-group-1", admin_group=""))
    assert RoleGroups(None, None, first.gr_gid) == found


def test_actor_without_kernel_groups_or_name(monkeypatch):
    """Where the kernel does not tell groups the user database does; an unknown uid has no groups and a plain label."""
    actor = actor_of(Peer(os.geteuid(), os.getegid(), 7, None), RoleGroups(None, None, None), Permissions({}))
    assert actor.role == "admin"
    stranger = actor_of(Peer(4_000_000_001, 5, 7, None), RoleGroups(None, None, 5), Permissions({}))
    assert stranger == Actor(4_000_000_001, 5, 7, "viewer", "uid(4000000001)", EVERYTHING)


CHILD = """
import os, socket, sys
path, uid, gid, *groups = sys.argv[1:]
os.setgroups([int(g) for g in groups]); os.setgid(int(gid)); os.setuid(int(uid))
s = socket.socket(socket.AF_UNIX); s.connect(path); sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")
def test_peer_of_another_user(tmp_path):
    """The kernel's word for a real process of another user: uid, gid, pid and supplementary groups."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        os.chmod(path, 0o666)
        for folder in (tmp_path, *tmp_path.parents[:-2]):
            os.chmod(folder, 0o755)
        listener.listen()
        child = subprocess.Popen([sys.executable, "-c", CHILD, path, "4711", "4712", "30", "31"], stdin=subprocess.PIPE)
        sock, _ = listener.accept()
        with sock:
            peer = peer_of(sock)
        assert Peer(4711, 4712, child.pid, frozenset({30, 31})) == peer
        assert actor_of(peer, RoleGroups(None, 31, 30), Permissions({})).role == "operator"
        child.communicate()
        assert child.returncode == 0


async def test_hello_shows_the_role_to_every_role(serving, monkeypatch):
    """The role granted is in HELLO."""
    for role in ("viewer", "operator"):
        monkeypatch.setattr("smpd.control.actor.RoleGroups.role_of", lambda *_, role=role: role)
        async with serving() as daemon:
            channel, hello = await daemon.hello()
            assert hello.role == role
            channel.close()
        os.unlink(daemon.path)


def test_samples_encode(samples):
    """Each request survives encoding and decoding as the union."""
    for request in samples.values():
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=c.AnyRequest) == request


ASKING = """
import os, sys, subprocess, socket
path, depth = sys.argv[1], int(sys.argv[2])
if depth:
    sys.exit(subprocess.run([sys.executable, "-c", os.environ["ASKING"], path, str(depth - 1)]).returncode)
from smp_proto.errors import SmpError
from smpctl import Client
try:
    Client(path).connect()
    print("admitted")
except SmpError as error:
    print(error.code, error.message)
"""


@pytest.mark.parametrize("depth", [0, 1])
async def test_what_the_daemon_started_is_turned_away(serving, depth):
    """A process started by the daemon, or by one of those, runs as its user and gets no role all the same."""
    async with serving() as daemon:
        async with daemon.client() as caller:  # the daemon's user, but not started by it
            assert (await caller.call(c.StatusRequest(), dict))["role"] == "admin"
        argv = [sys.executable, "-c", ASKING, daemon.path, str(depth)]
        done = await anyio.run_process(argv, env={**os.environ, "ASKING": ASKING})
    assert done.stdout.decode().startswith("forbidden processes that smpd started")


def test_who_is_gone_is_turned_away_if_it_was_our_user():
    """A worker that ended right after asking cannot be told from another process, so neither is served."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert is_worker(Peer(os.geteuid(), os.getegid(), child.pid, frozenset()))
    assert not is_worker(Peer(os.geteuid() + 1, os.getegid(), child.pid, frozenset()))
    assert not is_worker(Peer(os.geteuid(), os.getegid(), os.getppid(), frozenset()))
