"""Who is on the other end of a connection, as the kernel attests it, and the role and the rights that gives them."""

import contextlib
import grp
import os
import pwd
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from smp_proto.control import Role
from smpd.config import Config, Control
from smpd.control.permissions import NOTHING, Permissions, Rights, owner_uid
from smpd.host.orphans import parent_of

_UCRED = struct.Struct("=iII")
_SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h; Python has no name for it
_GROUPS_BYTES = 1024  # the most that socket.getsockopt takes
_UNNAMED = "uid"
_LOOKS = 100  # at the parents of a process


class Actor(NamedTuple):
    """A caller. ``role`` is empty when they have none; ``label`` is for people and the audit log."""

    uid: int
    gid: int
    pid: int
    role: Role | None
    label: str
    rights: Rights = NOTHING

    @property
    def named(self) -> bool:
        """Whether the user database knew them: see :func:`actor_of`."""
        return not self.label.startswith(f"{_UNNAMED}(")

    def sees(self, owner: str, remotes: Iterable[str]) -> bool:
        """Whether they may see a job of this owner that touches these remotes, and act on it."""
        return self.rights.see(own=owner_uid(owner) == self.uid, remotes=remotes)


class Peer(NamedTuple):
    """What the kernel noted of a peer when it connected: a later setuid or exec does not change it.

    ``groups`` is None where the kernel does not tell (before 4.13, or more than 256 groups).
    """

    uid: int
    gid: int
    pid: int
    groups: frozenset[int] | None


class RoleGroups(NamedTuple):
    """The numeric groups behind the roles, looked up once at start; None for a group that does not exist."""

    admin: int | None
    operator: int | None
    viewer: int | None

    @classmethod
    def lookup(cls, config: Control) -> "RoleGroups":
        """Find the configured groups."""
        return cls(_gid(config.admin_group), _gid(config.operator_group), _gid(config.viewer_group))

    def role_of(self, uid: int, groups: Iterable[int]) -> Role | None:
        """The highest role: root and the daemon's own user are admin, others by group."""
        held = frozenset(groups)
        if uid in (0, os.geteuid()) or self.admin in held:
            return "admin"
        if self.operator in held:
            return "operator"
        return "viewer" if self.viewer in held else None


def unknown_accounts(config: Config) -> list[str]:
    """Groups and users that somebody wrote into the configuration and that this machine does not know."""
    found = []
    for key in ("viewer_group", "operator_group", "admin_group"):
        name = getattr(config.control, key)
        if name and _gid(name) is None and config.origins[f"control.{key}"] != "default":
            found.append(f"control.{key} names the group {name}, which does not exist here")
    return found + Permissions(config.permissions).unknown


def peer_of(sock: socket.socket) -> Peer:
    """Credentials (SO_PEERCRED) and supplementary groups (SO_PEERGROUPS) of a connection, see unix(7).

    Both are those of the moment of connect(2), so no process can slip in under a reused pid.
    """
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:
        return Peer(uid, gid, pid, None)
    return Peer(uid, gid, pid, frozenset(number for (number,) in struct.iter_unpack("=I", raw)))


def is_worker(peer: Peer) -> bool:
    """Whether a connection comes from a process that this one started, or from what such a process started.

    They run as our own user, who is an administrator, and have no business at this socket. A process of our user that
    is gone already is taken for one of them: it waits for no answer. One whose parent has ended is ours by now (see
    :mod:`smpd.host.orphans`), so where a parent is gone it is looked up anew.

    Raises:
        OSError: it cannot be told now, for want of descriptors above all.
    """
    if peer.uid != os.geteuid() or peer.pid == os.getpid():
        return False
    for _ in range(_LOOKS):
        ours = _descends(peer.pid)
        if ours is not None:
            return ours
    return True  # whose parents end all the time means them to


def _descends(pid: int) -> bool | None:
    """Whether a process is gone, or a descendant of this one; None where a parent has just ended, so another is its."""
    child = 0
    while pid > 0:
        try:
            parent = parent_of(pid)
        except (FileNotFoundError, ProcessLookupError):
            return _hides(child, pid) if child else True
        if parent == os.getpid():
            return True
        child, pid = pid, parent
    return False


def _hides(child: int, parent: int) -> bool | None:
    """False where a parent that cannot be seen is one all the same: another user's, with ``hidepid`` of proc(5)."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if parent_of(child) == parent:
            return False
    return None


def owner_of(label: str, groups: RoleGroups, permissions: Permissions) -> Actor:
    """The owner of a job by their label, with the role and the rights that the user database gives them now.

    It may ask a directory service, so call it in a thread. An owner whom this machine does not know has neither.
    """
    uid = owner_uid(label)
    if uid is None:
        return Actor(-1, -1, 0, None, label)
    try:
        gid = pwd.getpwuid(uid).pw_gid
    except KeyError:
        gid = -1
    return actor_of(Peer(uid, gid, 0, None), groups, permissions)


def actor_of(peer: Peer, groups: RoleGroups, permissions: Permissions) -> Actor:
    """Name the peer and give it its role and rights. It may ask a directory service, so call it in a thread."""
    name = ""
    with contextlib.suppress(KeyError):
        name = pwd.getpwuid(peer.uid).pw_name
    held = peer.groups
    if held is None:
        held = frozenset(os.getgrouplist(name, peer.gid)) if name else frozenset()
    held |= {peer.gid}
    role = groups.role_of(peer.uid, held)
    rights = permissions.of(peer.uid, held, role)
    return Actor(peer.uid, peer.gid, peer.pid, role, f"{name or _UNNAMED}({peer.uid})", rights)


def _gid(name: str) -> int | None:
    with contextlib.suppress(KeyError):
        return grp.getgrnam(name).gr_gid if name else None
    return None
