"""SFTP, against rclone's server and OpenSSH's, through the real process."""

import asyncio
import contextlib
import itertools
import os
import random
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import asyncssh
import msgspec
import pytest
from fetch_link import fetch_in_process, fetch_process
from servers import Served, free_port, known_host, make_key, program, sshd

from smp_proto.control import SftpConfig, SftpSecret
from smp_proto.errors import RemoteError, SmpError
from smpd.fetch import sftp

MIB = 1 << 20


@pytest.fixture(params=["go_sftp", "openssh"])
def server(request: pytest.FixtureRequest) -> Served:
    """Both SFTP servers."""
    found: Served = request.getfixturevalue(request.param)
    return found


async def test_what_is_written_is_read(server: Served) -> None:
    """An upload comes back byte for byte in parallel ranges; listing, replacing and deleting work."""
    data = random.Random(3).randbytes(5 * MIB + 123)
    async with fetch_process(server.config, server.secret, slots=6) as link:
        await link.write("own/a b/é.bin", b"old")
        info = await link.write("own/a b/é.bin", data)
        assert len(data) == info.size == link.progress[-1]
        assert info == await link.stat("own/a b/é.bin")
        starts = list(range(0, len(data), MIB))
        random.Random(4).shuffle(starts)

        async def read(slot: int, start: int) -> None:
            count = min(MIB, len(data) - start)
            assert data[start : start + count] == await link.read("own/a b/é.bin", info.pin, start, count, slot)

        async with anyio.create_task_group() as group:
            for slot, start in enumerate(starts):
                group.start_soon(read, slot, start)
        assert await link.read("own/a b/é.bin", info.pin, 0, 0) == b""
        await link.write("own/empty", b"")
        assert [found.path for found in await link.list("own/")] == ["own/a b/é.bin", "own/empty"]
        assert [found.path for found in await link.list("own/", recursive=False)] == ["own/a b/", "own/empty"]
        assert await link.list("none/") == []
        facts = (await link.probe()).facts
        assert "gcm" in facts["cipher"]
        for path in ("own/a b/é.bin", "own/empty", "own/empty"):
            await link.delete(path)
        assert await link.list("own/") == []


async def test_a_change_is_seen(server: Served) -> None:
    """A pin of another size or time, and a range past the end, are not read."""
    async with fetch_process(server.config, server.secret) as link:
        info = await link.write("x", b"first")
        for pin, start, length in (("stat:5:1", 0, 5), (info.pin.replace("5", "4", 1), 0, 4), (info.pin, 3, 3)):
            with pytest.raises(SmpError) as caught:
                await link.read("x", pin, start, length)
            assert caught.value.code == "source_changed"
        assert await link.read("x", info.pin, 0, 5) == b"first"
        await link.delete("x")
        for act in (link.stat("x"), link.read("x", info.pin, 0, 5)):
            with pytest.raises(SmpError) as caught:
                await act
            assert caught.value.code == "no_such_object"


async def test_a_failed_write_leaves_nothing(server: Served) -> None:
    """A source that is too short, and a cancelled write, leave no temporary file."""
    assert server.path is not None
    async with fetch_process(server.config, server.secret) as link:
        with pytest.raises(SmpError) as caught:
            await link.write("short", b"12345", size=6)
        assert caught.value.code == "bad_request"
        await link.write_and_cancel("cancelled", bytes(16 * MIB))
    assert [name for name in os.listdir(server.path) if name.startswith(".smp-")] == []


async def refused(config: SftpConfig, served: Served) -> SmpError:
    """The error that every act ends in."""
    async with fetch_in_process(config, served.secret) as link:
        for act in (link.probe(), link.stat("x"), link.write("x", b"1")):
            with pytest.raises(SmpError) as caught:
                await act
            assert (caught.value.code, caught.value.retryable) == ("remote_untrusted", False)
    return caught.value


async def test_an_unknown_host_key_is_refused(server: Served) -> None:
    """Nothing is trusted on first use; the error names the fingerprint and what to do."""
    config = server.config
    assert isinstance(config, SftpConfig)
    for text in ("", "# nothing\n", config.known_hosts.replace("127.0.0.1", "127.0.0.2")):
        error = await refused(msgspec.structs.replace(config, known_hosts=text), server)
        assert "is not known: it is ssh-ed25519 SHA256:" in error.message
        assert f"ssh-keyscan -p {config.port} 127.0.0.1" in error.hint


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
async def test_a_changed_host_key_is_refused(server: Served, tmp_path: Path, kind: str) -> None:
    """Another key than the known one is refused, also when it is of another kind."""
    config = server.config
    assert isinstance(config, SftpConfig)
    other = known_host(make_key(tmp_path / "other", kind), config.port)
    error = await refused(msgspec.structs.replace(config, known_hosts=other), server)
    assert "has changed: it is ssh-ed25519 SHA256:" in error.message


async def test_a_revoked_host_key_is_refused(server: Served) -> None:
    """A key that is known and revoked is refused."""
    config = server.config
    assert isinstance(config, SftpConfig)
    text = f"{config.known_hosts}@revoked {config.known_hosts}"
    await refused(msgspec.structs.replace(config, known_hosts=text), server)


async def test_odd_known_hosts_are_refused(go_sftp: Served) -> None:
    """Text that is no known_hosts file is bad_config at Setup."""
    config = msgspec.structs.replace(go_sftp.config, known_hosts="nonsense")
    with pytest.raises(SmpError) as caught:
        async with fetch_process(config, go_sftp.secret):
            pass
    assert caught.value.code == "bad_config"


async def test_refused_credentials(server: Served, tmp_path: Path) -> None:
    """A wrong password, another key, no secret at all and an unreadable key are remote_auth, and are not shown."""
    key = make_key(tmp_path / "key", passphrase="horse").read_text()
    secrets = [
        SftpSecret(password="wrongwrong"),
        SftpSecret(private_key=key, passphrase="horse"),
        SftpSecret(private_key=key, passphrase="wrongwrong"),
        SftpSecret(private_key="wrongwrong"),
        None,
    ]
    for secret in secrets:
        async with fetch_in_process(server.config, secret) as link:
            with pytest.raises(SmpError) as caught:
                await link.probe()
            assert caught.value.code == "remote_auth"
            assert "wrongwrong" not in repr(caught.value.body())


async def test_a_server_that_is_not_there() -> None:
    """A refused connection is unreachable."""
    config = SftpConfig("127.0.0.1", "u", "", free_port())
    async with fetch_process(config, SftpSecret(password="x")) as link:
        with pytest.raises(SmpError) as caught:
            await link.stat("x")
        assert (caught.value.code, caught.value.retryable) == ("remote_unreachable", True)


async def test_a_missing_root(openssh: Served) -> None:
    """A root that is not there is said so by the probe and by a listing."""
    async with fetch_process(msgspec.structs.replace(openssh.config, root="/none/at/all"), openssh.secret) as link:
        for act in (link.probe(), link.list()):
            with pytest.raises(SmpError) as caught:
                await act
            assert caught.value.code == "no_such_bucket"


async def test_the_agent_is_used_when_asked_for(openssh: Served, tmp_path: Path) -> None:
    """With use_agent the agent's keys serve; without it the agent is not even looked for."""
    assert isinstance(openssh.secret, SftpSecret)
    (tmp_path / "key").write_text(openssh.secret.private_key)
    (tmp_path / "key").chmod(0o600)
    env = {"SSH_AUTH_SOCK": str(tmp_path / "agent")}
    agent = subprocess.Popen(  # noqa: ASYNC220
        [program("ssh-agent"), "-D", "-a", env["SSH_AUTH_SOCK"]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline()  # it listens
        subprocess.run(  # noqa: ASYNC221
            [program("ssh-add"), str(tmp_path / "key")], env={**os.environ, **env}, check=True, capture_output=True
        )
        config = msgspec.structs.replace(openssh.config, use_agent=True)
        async with fetch_process(config, env=env) as link:
            assert (await link.write("x", b"1234")).size == 4
            await link.delete("x")
        async with fetch_process(openssh.config, env=env) as link:
            with pytest.raises(SmpError) as caught:
                await link.probe()
            assert caught.value.code == "remote_auth"
    finally:
        agent.kill()
        agent.communicate()


async def test_the_home_folder_is_not_consulted(openssh: Served, tmp_path: Path) -> None:
    """Neither known_hosts nor keys of the daemon's user are used, only what the remote was given."""
    assert isinstance(openssh.secret, SftpSecret)
    assert isinstance(openssh.config, SftpConfig)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/id_ed25519").write_text(openssh.secret.private_key)
    (tmp_path / ".ssh/known_hosts").write_text(openssh.config.known_hosts)
    env = {"HOME": str(tmp_path)}
    async with fetch_process(openssh.config, env=env) as link:
        with pytest.raises(SmpError) as caught:
            await link.probe()
        assert caught.value.code == "remote_auth"
    async with fetch_process(msgspec.structs.replace(openssh.config, known_hosts=""), openssh.secret, env=env) as link:
        with pytest.raises(SmpError) as caught:
            await link.probe()
        assert caught.value.code == "remote_untrusted"


async def test_a_lost_connection_is_made_again(tmp_path: Path) -> None:
    """When the server's side of a connection dies, the next request makes a new one."""
    with sshd(tmp_path / "data", tmp_path) as served:
        assert served.process is not None
        async with fetch_process(served.config, served.secret, connections=1) as link:
            info = await link.write("x", b"here")
            # The children serve the connections; the listener stays.
            subprocess.run(["pkill", "-KILL", "-P", str(served.process.pid)], check=True)  # noqa: ASYNC221
            with contextlib.suppress(RemoteError):  # the loss may be noticed only now
                await link.read("x", info.pin, 0, 4)
            assert await link.read("x", info.pin, 0, 4) == b"here"


async def test_a_name_that_is_not_utf_8_is_told(openssh: Served) -> None:
    """It is listed, escaped, and refused when it is asked for; what lies beside it is as ever."""
    assert openssh.path is not None
    folder = os.fsencode(openssh.path) + b"/odd"
    os.mkdir(folder)
    for name, data in ((b"good", b"1"), (b"bad\xff.smp", b"22")):
        with open(folder + b"/" + name, "wb") as file:
            file.write(data)
    os.mkdir(folder + b"/in\xe4")
    with open(folder + b"/in\xe4/below", "wb"):
        pass
    async with fetch_process(openssh.config, openssh.secret) as link:
        found = {info.path: info for info in await link.list("odd/")}
        assert list(found) == ["odd/bad\\xff.smp", "odd/good", "odd/in\\xe4"]
        assert found["odd/bad\\xff.smp"].size == 2
        for path in ("odd/bad\\xff.smp", "odd/in\\xe4"):
            for act in (link.stat(path), link.read(path, found[path].pin, 0, 1)):
                with pytest.raises(SmpError, match="is not UTF-8") as caught:
                    await act
                assert (caught.value.code, caught.value.retryable) == ("bad_name", False)
        assert await link.read("odd/good", found["odd/good"].pin, 0, 1) == b"1"
        with pytest.raises(SmpError, match="has no object"):  # this one may be written: it is not there
            await link.stat("odd/new\\xff.smp")
        written = await link.write("odd/new\\xff.smp", b"3")
        assert await link.read("odd/new\\xff.smp", written.pin, 0, 1) == b"3"


async def test_a_link_to_what_no_file_can_be_called(openssh: Served) -> None:
    """It leads nowhere, and is left out; what lies beside it is as ever."""
    assert openssh.path is not None
    folder = openssh.path / "links"
    folder.mkdir()
    (folder / "good").write_bytes(b"1")
    (folder / "long").symlink_to("a" * 300)
    (folder / "round").symlink_to("round")
    async with fetch_process(openssh.config, openssh.secret) as link:
        assert [info.path for info in await link.list("links/")] == ["links/good"]


class Sparing(asyncssh.SFTPServer):
    """Tells little in listings, and no end of ``endless``, makes no folders, and lets nobody look where ``denied`` leads."""

    def __init__(self, chan: asyncssh.SSHServerChannel[bytes], root: Path) -> None:
        super().__init__(chan, chroot=os.fsencode(root))

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        if path.rstrip(b"/").endswith(b"endless"):
            for number in itertools.count():
                yield asyncssh.SFTPName(b"%d" % number, attrs=asyncssh.SFTPAttrs(size=1, mtime=1, permissions=0o100644))
        async for entry in super().scandir(path):
            entry.attrs = asyncssh.SFTPAttrs()
            yield entry

    def stat(self, path: bytes) -> os.stat_result:
        if path.endswith(b"denied"):
            raise PermissionError(13, "denied")
        return super().stat(path)  # type: ignore[return-value]

    def mkdir(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        raise asyncssh.SFTPPermissionDenied("there are the folders that there are")


@contextlib.asynccontextmanager
async def sparing(root: Path) -> AsyncIterator[Served]:
    """An SFTP server that gives as little as it may."""
    before = asyncio.all_tasks()
    host, user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[host],
        authorized_client_keys=asyncssh.import_authorized_keys(user.export_public_key().decode()),
        sftp_factory=lambda chan: Sparing(chan, root),
    )
    port = server.get_port()
    known = f"[127.0.0.1]:{port} {host.export_public_key().decode()}"
    yield Served(SftpConfig("127.0.0.1", "u", known, port), SftpSecret(private_key=user.export_private_key().decode()))
    server.close()
    for task in asyncio.all_tasks() - before:  # each ends when its client has closed
        await asyncio.wait([task], timeout=10)


async def test_what_a_listing_leaves_out_is_asked_for(tmp_path: Path) -> None:
    """Else the files of such a server would go unseen. A link to where nobody may look is left out, and no more."""
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "x").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("inbox/x")
    (tmp_path / "denied").symlink_to("inbox/x")
    async with sparing(tmp_path) as served, fetch_in_process(served.config, served.secret) as link:
        assert [(info.path, info.size) for info in await link.list()] == [("inbox/x", 5), ("link", 5)]
        assert (await link.list())[0] == await link.stat("inbox/x")


async def test_who_may_make_no_folders_writes_into_those_there_are(tmp_path: Path) -> None:
    """Also where the server refuses to make one that is there already (OpenSSH with ``-P mkdir``)."""
    (tmp_path / "inbox").mkdir()
    async with sparing(tmp_path) as served:
        async with fetch_in_process(msgspec.structs.replace(served.config, root="inbox"), served.secret) as link:
            assert (await link.write("x", b"1234")).size == 4
            with pytest.raises(SmpError) as caught:
                await link.write("none/x", b"1234")
        assert caught.value.code == "remote_forbidden"


async def test_a_folder_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up at so many entries, before it fills the memory; the others are listed."""
    monkeypatch.setattr(sftp, "_FOLDER_MAX", 500)
    for name in ("endless", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "x").write_bytes(b"1")
    async with sparing(tmp_path) as served, fetch_in_process(served.config, served.secret) as link:
        with pytest.raises(RemoteError, match="'endless/' at .* more than 500 entries") as caught:
            await link.list("endless/")
        assert not caught.value.retryable
        assert [info.path for info in await link.list("other/")] == ["other/x"]
