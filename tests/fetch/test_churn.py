"""Hundreds of connections that are opened, reset, half-closed and cancelled leave nothing behind in a fetch process."""

import os
import random
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import msgspec
import pytest
from faulty import Fault, Proxy, faulty
from fetch_link import Link, fetch_process
from gated_s3 import gated_s3
from servers import Served

from smp_proto.control import S3Config, SftpConfig
from smp_proto.errors import SmpError

SIZE = 300_000
LENGTH = 40_000
ROUNDS = 60  # of eight reads; each costs a connection or more


def sockets(pid: int) -> int:
    found = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found += os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
        except FileNotFoundError:
            continue
    return found


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def churn(link: Link, proxy: Proxy, pin: str, data: bytes, rounds: int) -> int:
    """Reads that are cancelled, reset, cut and half-closed at random; those that succeed are right. Returns how many."""
    rng = random.Random(rounds)
    right = 0

    async def one(slot: int, patience: float) -> None:
        nonlocal right
        start = rng.randrange(SIZE - LENGTH)
        with anyio.move_on_after(patience):
            try:
                got = await link.read("x", pin, start, LENGTH, slot)
            except SmpError as error:
                assert error.code == "remote_unreachable", error
            else:
                assert got == data[start : start + LENGTH], "bytes of another answer"
                right += 1

    for number in range(rounds):
        kind = rng.choice(("reset", "half-close", "truncate"))
        proxy.put(Fault(kind, rng.randrange(4 * LENGTH)))  # type: ignore[arg-type]
        async with anyio.create_task_group() as group:
            for slot in range(8):
                group.start_soon(one, slot, rng.choice((10.0, 10.0, 0.001, 0.003)))
            if number % 4 == 3:
                await anyio.to_thread.run_sync(proxy.drop)
    proxy.put(None)
    return right


async def flat(link: Link, proxy: Proxy, pin: str, data: bytes) -> None:
    """After many more of them there are no more sockets, and no more memory, than after some."""
    assert link.process
    pid = link.process.pid
    await churn(link, proxy, pin, data, 10)
    before = resident(pid)
    right = await churn(link, proxy, pin, data, ROUNDS)
    assert (right > 10, proxy.connections > ROUNDS) == (True, True), (right, proxy.connections)
    assert await link.read("x", pin, 7, LENGTH) == data[7 : 7 + LENGTH]
    with anyio.fail_after(20):
        while sockets(pid) > 1 + 4 + 2:  # the link, at most `connections`, and the loop's own pair
            await anyio.sleep(0.05)
    assert resident(pid) - before < 12 << 20


async def test_http_connections() -> None:
    """Over HTTP."""
    data = random.Random(1).randbytes(SIZE)
    with gated_s3({"x": data}) as (_, served):
        assert isinstance(served.config, S3Config)
        with faulty("127.0.0.1", urlsplit(served.config.endpoint).port or 0) as proxy:
            config = msgspec.structs.replace(served.config, endpoint=f"http://127.0.0.1:{proxy.port}")
            async with fetch_process(config, served.secret, slots=8) as link:
                await flat(link, proxy, (await link.stat("x")).pin, data)


async def test_ssh_connections(openssh: Served) -> None:
    """Over SSH."""
    data = random.Random(2).randbytes(SIZE)
    assert openssh.path
    assert isinstance(openssh.config, SftpConfig)
    (openssh.path / "x").write_bytes(data)
    with faulty("127.0.0.1", openssh.config.port) as proxy:
        known = openssh.config.known_hosts.replace(f":{openssh.config.port} ", f":{proxy.port} ")
        config = msgspec.structs.replace(openssh.config, port=proxy.port, known_hosts=known)
        async with fetch_process(config, openssh.secret, slots=8) as link:
            await flat(link, proxy, (await link.stat("x")).pin, data)


async def test_a_late_answer_is_nobody_elses() -> None:
    """What a server still sends to a request that was cancelled never becomes the answer to the next."""
    data = random.Random(3).randbytes(SIZE)
    with gated_s3({"x": data}) as (store, served):
        async with fetch_process(served.config, served.secret, connections=1) as link:
            pin = (await link.stat("x")).pin
            for start in range(0, 200_000, 20_000):
                store.hold_after(0)
                async with anyio.create_task_group() as group:
                    group.start_soon(link.read, "x", pin, start, LENGTH)
                    await anyio.to_thread.run_sync(store.until_held, 1)
                    group.cancel_scope.cancel()
                store.release()
                assert await link.read("x", pin, start + 1, LENGTH) == data[start + 1 : start + 1 + LENGTH]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "asyncio")
