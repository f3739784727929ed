"""The process itself: what it holds, what it lets go of, when it ends."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import cast

import anyio
import msgspec
import pytest
from fetch_link import ANSWER_S, fetch_in_process, fetch_process
from scripted_http import Asked, Peer, answer, scripted
from servers import Served

from smp_proto.aio import Caller, Channel, Exchange
from smp_proto.control import LocalConfig, S3Config, S3Secret
from smp_proto.errors import ResourceError, SmpError
from smpd.fetch.service import _Reporter
from smpd.links import fetching
from smpd.links.ring import Ring


def lost() -> ResourceError:
    return ResourceError("worker_died", "gone")


async def test_it_is_hardened(tmp_path: Path) -> None:
    """It cannot gain privileges, and its secret is in neither argv nor environment."""
    secret = S3Secret("AKIA-IN-TEST", "secret-in-test")
    async with fetch_process(S3Config("b", endpoint="http://127.0.0.1:1"), secret) as link:
        assert link.process is not None
        proc = Path(f"/proc/{link.process.pid}")
        assert "NoNewPrivs:\t1" in (proc / "status").read_text()
        assert b"in-test" not in (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()


class Listener:
    """A fake: who is told of an upload's steps, and answers one when told to."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.noted = anyio.Semaphore(0)

    async def send(self, step: fetching.Progress) -> None:
        self.told.append(step.done)

    async def receive(self, _kind: object) -> None:
        await self.noted.acquire()


async def test_the_last_step_of_a_paced_upload_does_not_overtake() -> None:
    """Parts end at the same time, and each step is answered before the next: the last comes last, and waits for nothing."""
    listener = Listener()
    reporter = _Reporter(cast("Exchange", listener), 100)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for done in (40, 70, 100):
                group.start_soon(reporter, done)
            for told in ([40], [40, 70], [40, 70, 100]):
                await anyio.wait_all_tasks_blocked()
                assert listener.told == told
                listener.noted.release()


@pytest.mark.parametrize("role", ["fetch", "opening"])
def test_it_is_not_dumpable(role: str) -> None:
    """Neither a core dump nor a debugger of the same user gets at its memory, before it is told anything."""
    code = (
        f"import ctypes, socket, sys; from smpd.{role} import __main__ as worker; ours, theirs = socket.socketpair();"
        "sys.argv = ['', str(theirs.fileno())];"
        "worker.anyio.run = lambda *a, **k: print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)); worker.main()"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "0\n"


async def test_it_dies_with_its_parent() -> None:
    """When the starter is killed the process ends, although someone still holds the other end of the link."""
    ours, theirs = socket.socketpair()
    starter = (
        "import subprocess, sys; fd = int(sys.argv[1]);"
        "p = subprocess.Popen([sys.executable, '-m', 'smpd.fetch', sys.argv[1]], pass_fds=[fd]);"
        "print(p.pid, flush=True); p.wait()"
    )
    with ours, theirs:
        argv = [sys.executable, "-c", starter, str(theirs.fileno())]
        parent = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE)  # noqa: ASYNC220
        try:
            assert parent.stdout is not None
            child = os.pidfd_open(int(parent.stdout.readline()))
            theirs.close()
            async with Caller(Channel(ours), lost=lost) as caller:
                with pytest.raises(SmpError, match="Setup comes first"):
                    await caller.call(fetching.Probe(), fetching.Probed, timeout=ANSWER_S)
                parent.kill()
                with anyio.fail_after(ANSWER_S):
                    await anyio.wait_readable(child)
            os.close(child)
        finally:
            parent.kill()
            parent.communicate()


async def test_it_ends_cleanly_with_a_request_open() -> None:
    """Closing the link in the middle of a read ends the process with no word."""
    started = anyio.Event()

    async def hang(peer: Peer, asked: Asked) -> None:
        await peer.send(answer(asked) + b"x")
        started.set()
        await peer.gone()

    async with scripted({"hang": hang}) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path")
        async with fetch_process(config, S3Secret("k", "s")) as link, anyio.create_task_group() as group:
            group.start_soon(link.read, "hang", "etag:131072:0123456789abcdef", 0, 1000)
            with anyio.fail_after(ANSWER_S):
                await started.wait()
            group.cancel_scope.cancel()


async def test_the_environment_is_forgotten(moto: Served) -> None:
    """Proxies and credentials of the environment are not used unless a profile is asked for."""
    env = {
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "other",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_PROFILE": "none",
    }
    async with fetch_process(moto.config, moto.secret, env=env) as link:
        info = await link.write("x", b"1234")
        assert await link.read("x", info.pin, 0, 4) == b"1234"
        await link.delete("x")


async def test_a_profile_brings_its_credentials_and_proxies(moto: Served, tmp_path: Path) -> None:
    """With a profile the AWS files count, and a proxy is used, through aiohttp."""
    (tmp_path / "credentials").write_text("[ward]\naws_access_key_id = a\naws_secret_access_key = b\n")
    env = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"), "AWS_CONFIG_FILE": str(tmp_path / "none")}
    config = msgspec.structs.replace(moto.config, profile="ward")
    async with fetch_process(config, env=env) as link:
        info = await link.write("x", b"1234")
        assert await link.read("x", info.pin, 1, 2) == b"23"
    # moto, as a proxy, is asked for the absolute URL of a host that does not exist.
    assert isinstance(config, S3Config)
    proxied = msgspec.structs.replace(config, endpoint="http://bucket.invalid")
    async with fetch_process(proxied, env={**env, "http_proxy": config.endpoint, "no_proxy": ""}) as link:
        with pytest.raises(SmpError) as caught:
            await link.read("x", info.pin, 1, 2)
        assert "host name" not in caught.value.message
    async with fetch_process(msgspec.structs.replace(config, profile="other"), env=env) as link:
        with pytest.raises(SmpError) as caught:
            await link.stat("x")
        assert caught.value.code == "remote_auth"


async def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    """Ranges outside the slot, slots outside the ring and paths outside the root are refused before any act."""
    (tmp_path / "x").write_bytes(bytes(100))
    async with fetch_in_process(LocalConfig(str(tmp_path))) as link:
        pin = (await link.stat("x")).pin
        for offset, length, slot, at in ((0, 10, 4, 0), (0, 10, -1, 0), (0, 10, 0, -1), (-1, 5, 0, 0), (0, -1, 0, 0)):
            with pytest.raises(SmpError) as caught:
                await link.read("x", pin, offset, length, slot, at)
            assert caught.value.code == "bad_request"
        with pytest.raises(SmpError) as caught:
            await link.read("x", pin, 0, 2, 0, (1 << 20) - 1)
        assert caught.value.code == "bad_request"
        for path in ("", "/x", "../x", "a/../x", "./x", "x\0", "x" * 1025):
            for act in (link.stat(path), link.read(path, pin, 0, 1), link.delete(path), link.write(path, b"1")):
                with pytest.raises(SmpError) as caught:
                    await act
                assert (path, "bad_name") == (path, caught.value.code)
        with pytest.raises(SmpError) as caught:
            await link.list("../")
        assert caught.value.code == "bad_name"
        assert os.listdir(tmp_path) == ["x"]


async def test_setup_comes_once_and_with_its_ring(tmp_path: Path) -> None:
    """A second Setup, one without a descriptor, and one with a ring of another size are refused."""
    ring = Ring.create("other", 1, 4096)
    try:
        async with fetch_in_process(LocalConfig(str(tmp_path))) as link:
            for fds in ([ring.fd], []):
                setup = fetching.Setup(LocalConfig("/"), 1, 4096)
                with pytest.raises(SmpError) as caught:
                    await link.caller.call(setup, type(None), timeout=ANSWER_S, fds=fds)
                assert caught.value.code == "protocol"
            with pytest.raises(SmpError) as caught:
                await link.caller.call(fetching.Probe(), fetching.Probed, timeout=ANSWER_S, fds=[ring.fd])
            assert caught.value.code == "protocol"
            with pytest.raises(SmpError) as caught:
                await link.caller.call({"op": "none"}, type(None), timeout=ANSWER_S)
            assert caught.value.code == "protocol"
    finally:
        ring.close()
