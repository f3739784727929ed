"""Connections to one SFTP server: shared, made one after the other, and done with when there are no more."""

import anyio
import asyncssh
import pytest
from fetch_link import fetch_process
from servers import Served

from smp_proto.control import SftpConfig, SftpSecret
from smp_proto.errors import RemoteError
from smpd.fetch import sftp_lines
from smpd.fetch.remote import unreachable
from smpd.fetch.sftp_login import Login
from smpd.links.fetching import Deadlines


class OnceLogin(Login):
    """A server that takes one connection and refuses others with ``error``."""

    error: RemoteError | None = None
    tries = 0

    async def connect(self) -> asyncssh.SSHClientConnection:
        self.tries += 1
        if self.tries > 1 and self.error is not None:
            raise self.error
        return await super().connect()


def make_login(served: Served) -> OnceLogin:
    assert isinstance(served.config, SftpConfig)
    assert isinstance(served.secret, SftpSecret)
    return OnceLogin(served.config, served.secret, Deadlines())


async def test_a_refused_connection_leaves_those_there_are(openssh: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses share what is connected, and the server is not asked again at once; an untrusted key is always told."""
    monkeypatch.setattr(sftp_lines, "GROW_S", -1.0)
    login = make_login(openssh)
    login.error = unreachable("it", "closed the connection")
    lines = sftp_lines.Lines(login, 4, 10.0)
    async with lines.use() as first:
        async with lines.use() as second, lines.use() as third:
            assert first is second is third
            assert login.tries == 2
            login.error = RemoteError("remote_untrusted", "another key")
            monkeypatch.setattr(sftp_lines, "_SETTLED_S", -1.0)
            lines._grow_at = 0.0
            with pytest.raises(RemoteError, match="another key"):
                async with lines.use():
                    pass
    lines.abort()


async def test_a_connection_that_brings_nothing_is_given_up(openssh: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one did not raise the rate, so it is closed once unused and no third is made."""
    monkeypatch.setattr(sftp_lines, "GROW_S", 0.0)
    login = make_login(openssh)
    lines = sftp_lines.Lines(login, 4, 10.0)
    async with lines.use() as first:
        lines._meter.received += 1 << 30
        async with lines.use() as second:
            assert first is not second
            async with lines.use() as third:
                assert third is first
                assert login.tries == 2
                assert second.spoiled
        with anyio.fail_after(10):
            await second.connection.wait_closed()
    lines.abort()


async def test_the_tail_is_of_the_object_that_its_pin_names(openssh: Served, go_sftp: Served) -> None:
    """The last bytes of a large object, all of a small one, none of an empty one; the pin is that of stat."""
    for served in (openssh, go_sftp):
        async with fetch_process(served.config, served.secret, connections=1) as link:
            for size in (0, 10, 100):
                data = bytes(range(size))
                await link.write("tail", data)
                assert await link.tail("tail", 64) == (await link.stat("tail"), data[-64:])
            await link.delete("tail")


async def test_a_cancelled_read_leaves_the_others_alone(openssh: Served) -> None:
    """Reads share a connection; of one that is cancelled nothing arrives any more."""
    data = bytes(range(256)) * 4096 * 8
    async with fetch_process(openssh.config, openssh.secret, slot_bytes=8 << 20, connections=1) as link:
        info = await link.write("x", data)
        async with anyio.create_task_group() as group:
            group.start_soon(link.read, "x", info.pin, 0, len(data), 1)
            group.cancel_scope.cancel()
        assert await link.read("x", info.pin, 0, len(data), 2) == data
        await link.delete("x")
