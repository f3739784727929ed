"""A whole daemon inside this process: its real verbs behind its real socket, and callers of whom we choose.

The kernel's word on a peer is replaced by a name that the client's socket is bound to, so that one process can be
everybody. Nothing else is replaced.
"""

import contextlib
import itertools
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import msgspec

from smp_proto import control as c
from smp_proto.aio import Caller, Channel, decode, encode
from smp_proto.errors import DaemonError, SmpError
from smp_proto.wire import PROTOCOL_MAX, PROTOCOL_MIN, FrameType
from smpd.composing import compose
from smpd.config import Config, Permission
from smpd.configuring import load_config
from smpd.control.actor import Peer, RoleGroups
from smpd.control.permissions import Permissions
from smpd.control.roles import REQUESTS
from smpd.control.server import ControlServer
from smpd.host.folders import ensure_dir
from smpd.state import open_state
from smpd.verbs import handlers
from smpd.verbs.daemon import Daemon

VIEWERS, OPERATORS, ADMINS = 60_001, 60_002, 60_003  # gids that no user here has
_numbers = itertools.count()


class Numbered(Permissions):
    """Tables that name groups and users by number: what no user database need know."""

    def __init__(self, tables: Mapping[str, Permission]) -> None:
        super().__init__({})
        self.configured = bool(tables)
        self._tables = [(frozenset(map(int, t.groups)), frozenset(map(int, t.users)), t) for t in tables.values()]

    def become(self, other: Permissions) -> None:
        """Tables that were given in a test's file; where it has no file they stay as they are."""
        if other.configured:
            super().become(other)


class Whole:
    """A running daemon. Its scheduler does not run unless asked: jobs stay as they are submitted."""

    def __init__(self, daemon: Daemon, server: ControlServer, path: str) -> None:
        self.daemon = daemon
        self.server = server
        self.path = path

    def socket(self, uid: int, groups: Iterable[int] = ()) -> socket.socket:
        """A connection of this user, on which nothing was said yet."""
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(f"\0peer/{os.getpid()}/{next(_numbers)}/{uid}/{','.join(map(str, groups))}")
        sock.connect(self.path)
        return sock

    @contextlib.asynccontextmanager
    async def client(self, uid: int, groups: Iterable[int] = ()) -> AsyncIterator[Caller]:
        """A client of this user, who is in these groups, ready to ask."""
        channel = Channel(self.socket(uid, groups))
        try:
            with contextlib.suppress(anyio.BrokenResourceError):  # turned away already: the reason is there to be read
                await channel.send(FrameType.HELLO, 0, encode(c.Hello(PROTOCOL_MIN, PROTOCOL_MAX, "test")))
            greeting = decode((await channel.receive())[0].body, c.Hello)
            if greeting.error:
                raise SmpError.from_body(greeting.error)
        except BaseException:
            channel.close()
            raise
        async with Caller(channel, lost=lambda: DaemonError("daemon_down", "the daemon is gone")) as caller:
            yield caller


def _peer_of(sock: socket.socket) -> Peer:
    _, pid, _, uid, groups = bytes(sock.getpeername()).decode().split("/")
    return Peer(int(uid), 0 if uid == "0" else 65_000, int(pid), frozenset(map(int, filter(None, groups.split(",")))))


def configured(folder: Path, **sections: Mapping[str, Any]) -> Config:
    """The configuration of a box in a folder."""
    config = load_config(None, {"HOME": str(folder), "CONFIGURATION_DIRECTORY": str(folder)})
    sections = {"paths": {"state": str(folder / "state")}, **sections}
    changed = {
        name: msgspec.structs.replace(getattr(config, name), **values)
        for name, values in sections.items()
        if name != "permissions"
    }
    return msgspec.structs.replace(config, permissions=sections.get("permissions", {}), **changed)


@contextlib.asynccontextmanager
async def whole(folder: Path, *, scheduler: bool = False, **sections: Any) -> AsyncIterator[Whole]:
    """A daemon for the length of a block; ``permissions`` name groups and users by number."""
    config = configured(folder, **sections)
    for path in (folder, config.paths.state):
        ensure_dir(str(path))
    state = await anyio.to_thread.run_sync(open_state, config)
    groups = RoleGroups(ADMINS, OPERATORS, VIEWERS)
    with (
        tempfile.TemporaryDirectory(prefix="smpd-") as runtime,
        patch("smpd.control.server.peer_of", _peer_of),
        patch("smpd.control.accounts.Permissions", Numbered),
        patch("smpd.control.accounts.unknown_accounts", lambda _: []),
        patch("smpd.control.actor.RoleGroups.lookup", lambda _: groups),
    ):
        path = os.path.join(runtime, "s")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(64)
        try:
            async with anyio.create_task_group() as group:
                daemon = compose(config, state, group)
                server = ControlServer(
                    [listener],
                    handlers(daemon),
                    config.control,
                    version="0",
                    boot_id="b",
                    groups=groups,
                    permissions=daemon.accounts.permissions,
                    metrics=daemon.metrics,
                    handed=daemon.handed,
                )
                await group.start(daemon.syncs.run)
                group.start_soon(server.serve)
                if scheduler:
                    group.start_soon(daemon.scheduler.run)
                try:
                    yield Whole(daemon, server, path)
                finally:
                    with anyio.CancelScope(shield=True):
                        await daemon.pools.aclose()
                    group.cancel_scope.cancel()
        finally:
            daemon.box.vault.close()
            state.close()


def sample_requests() -> dict[type[c.Request], c.Request]:
    """One valid request of every type."""
    given: dict[type[c.Request], dict[str, Any]] = {
        c.Submit: {"job": c.GetSpec("a:b"), "key": "k"},
        c.JobRequest: {"id": "j"},
        c.JobControl: {"id": "j", "action": "pause"},
        c.RemoteAdd: {"name": "r", "config": c.LocalConfig("/x")},
        c.RemoteTest: {"name": "r"},
        c.RemoteRemove: {"name": "r"},
        c.ListObjects: {"location": "r:"},
        c.RemoveObject: {"location": "r:x"},
        c.VaultEntries: {"id": "v"},
        c.VaultOpen: {"id": "v"},
        c.VaultRemove: {"id": "v"},
        c.QuarantineShow: {"id": "q"},
        c.QuarantineRetry: {"id": "q"},
        c.QuarantineRemove: {"id": "q"},
        c.SyncAdd: {"sync": c.SyncSpec(name="s", source="r:")},
        c.SyncShow: {"name": "s"},
        c.SyncControl: {"name": "s", "action": "pause"},
        c.TrustAdd: {"name": "s", "key": "k"},
        c.TrustRemove: {"name": "s"},
    }
    return {kind: kind(**given.get(kind, {})) for kind in REQUESTS}
