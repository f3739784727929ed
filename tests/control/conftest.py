"""A control server over a real socket in a temporary folder, and a client speaking the codec."""

import contextlib
import functools
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from whole import sample_requests

from smp_proto import control as c
from smp_proto.aio import Caller, Channel, Exchange, decode, encode
from smp_proto.errors import DaemonError, SmpError
from smp_proto.wire import PROTOCOL_MAX, PROTOCOL_MIN, FrameType
from smpd.config import Control
from smpd.control.actor import Actor, RoleGroups
from smpd.control.roles import REQUESTS
from smpd.control.server import ControlServer


async def echo(actor: Actor, request: c.Request, exchange: Exchange) -> dict[str, Any]:
    """Answer with the operation and the actor."""
    return {"op": request.__struct_config__.tag, "label": actor.label, "role": actor.role}


class Daemon:
    """A running server."""

    def __init__(self, server: ControlServer, path: str) -> None:
        self.server = server
        self.path = path

    async def connect(self) -> Channel:
        """A connection on which nothing was said yet."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.path)
        return Channel(sock)

    async def hello(self, low: int = PROTOCOL_MIN, high: int = PROTOCOL_MAX) -> tuple[Channel, c.Hello]:
        """A connection after HELLO, and the daemon's."""
        channel = await self.connect()
        await channel.send(FrameType.HELLO, 0, encode(c.Hello(low, high, "test")))
        frame, _ = await channel.receive()
        return channel, decode(frame.body, c.Hello)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Caller]:
        """A client ready to ask."""
        channel, greeting = await self.hello()
        if greeting.error:
            channel.close()
            raise SmpError.from_body(greeting.error)
        async with Caller(channel, lost=lambda: DaemonError("daemon_down", "the daemon is gone")) as caller:
            yield caller


@contextlib.asynccontextmanager
async def _serving(tmp_path: Any, handlers: dict[Any, Any] | None = None, **options: Any) -> AsyncIterator[Daemon]:
    """A server for the length of a block; requests without a handler are echoed."""
    path = os.path.join(tmp_path, "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    config = options.pop("config", Control())
    groups = options.pop("groups", RoleGroups(None, None, None))
    server = ControlServer(
        [listener],
        dict.fromkeys(REQUESTS, echo) | (handlers or {}),
        config,
        version="0",
        boot_id="b",
        groups=groups,
        **options,
    )
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve)
        with anyio.fail_after(20):
            yield Daemon(server, path)
        group.cancel_scope.cancel()


@pytest.fixture
def samples() -> dict[type[c.Request], c.Request]:
    """One valid request of every type."""
    return sample_requests()


@pytest.fixture
def serving(tmp_path: Any) -> Any:
    """``async with serving(handlers, **options) as daemon``."""
    return functools.partial(_serving, tmp_path)
