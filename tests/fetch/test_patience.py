"""A peer is judged by what moves: a slow one is waited for, a silent one and a trickle are not, wherever they are."""

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from fetch_link import fetch_in_process
from hypothesis import example, given
from hypothesis import strategies as st
from scripted_http import DATA, ETAG, Asked, Peer, answer, scripted
from servers import Served, make_certificate

from smp_proto.control import S3Config, S3Secret, SftpConfig, SftpSecret
from smp_proto.errors import SmpError
from smpd.fetch.patience import Patience, Stalled, acknowledged_and_received, while_moving
from smpd.links.fetching import Deadlines

PIN = f"etag:{len(DATA)}:{ETAG}"
SECRET = S3Secret("key", "secret")
QUICK = Deadlines(connect_s=0.3, login_s=0.3, stall_s=0.3, answer_s=0.3, window_s=0.4, rate_min=2000)

EASY = Deadlines(stall_s=1.5, answer_s=1.5, window_s=1.5, rate_min=500)  # of tests in which nobody is to be given up

steps = st.lists(st.tuples(st.floats(0.01, 1.0), st.integers(0, 50)), max_size=60)


@given(steps)
def test_who_moves_enough_is_waited_for(found: list[tuple[float, int]]) -> None:
    """At the least rate, with no pause as long as the stall deadline, one is never given up; slower one is in the end."""
    deadlines = Deadlines(stall_s=2.0, window_s=5.0, rate_min=10)
    patience = Patience(deadlines)
    now = moved = 0.0
    patience.begin(now, 0)
    for pause, _ in found:
        now += pause
        moved += 10 * pause + 1
        assert not patience.look(now, int(moved))


@given(steps, st.integers(0, 9))
@example([(0.511858958054556, 0), (0.99999, 0), (0.25269776095961827, 0), (0.08232041359027094, 19)], 9)
def test_who_moves_too_little_is_given_up(found: list[tuple[float, int]], rate: int) -> None:
    """Whatever it did before, silence ends after the stall deadline, a trickle after two windows, each and a look."""
    deadlines = Deadlines(stall_s=2.0, window_s=5.0, rate_min=10)
    patience = Patience(deadlines)
    now, moved = 0.0, 0
    patience.begin(now, 0)
    for pause, count in found:
        now += pause
        moved += count
        patience.look(now, moved)
    since, tick = now, patience.tick_s
    while not patience.look(now, moved + int(rate * (now - since))):
        now += tick
    assert now - since <= (2.0 + tick if rate == 0 else 10.0 + 3 * tick)


async def test_a_block_ends_when_nothing_moves() -> None:
    """With the reason; and the scope around it is left alone."""
    with pytest.raises(Stalled, match=r"nothing for 0\.05 s"), while_moving(Deadlines(stall_s=0.05), lambda: 7):
        await anyio.sleep_forever()
    with while_moving(Deadlines(stall_s=0.05), time.monotonic_ns):
        await anyio.sleep(0.2)
    with pytest.raises(ValueError, match="mine"), while_moving(Deadlines(stall_s=0.05), lambda: 7):
        raise ValueError("mine")


async def test_the_kernel_counts_what_moves() -> None:
    """What the peer has acknowledged, and what came, on a TCP socket; nothing of what is none."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert acknowledged_and_received(ours) == (0, 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as one, server.accept()[0] as other:
            other.sendall(b"x" * 77)
            one.sendall(b"y" * 1000)
            while acknowledged_and_received(one)[1] < 77 or acknowledged_and_received(one)[0] < 1000:
                await anyio.sleep(0.001)
            assert acknowledged_and_received(one) == (1001, 77)  # with the SYN


def config_of(endpoint: str, ca_pem: str = "") -> S3Config:
    return S3Config("b", endpoint=endpoint, addressing="path", ca_pem=ca_pem)


LISTING = (
    "<ListBucketResult><IsTruncated>false</IsTruncated>"
    + "".join(f'<Contents><Key>o{i}</Key><Size>1</Size><ETag>"e"</ETag></Contents>' for i in range(30))
    + "</ListBucketResult>"
).encode()


def dripping(data: Callable[[Asked], bytes], fast: int, pause_s: float, count: int = 1) -> object:
    """Sends the first bytes at once and the others in drops, until the client goes."""

    async def script(peer: Peer, asked: Asked) -> bool:
        whole = data(asked)
        await peer.send(whole[:fast])
        for at in range(fast, len(whole), count):
            await anyio.sleep(pause_s)
            await peer.send(whole[at : at + count])
        return True

    return script


def whole(asked: Asked) -> bytes:
    return answer(asked) + asked.body


def listing(asked: Asked) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LISTING) + LISTING


@pytest.mark.parametrize("fast", [0, 20, 5000], ids=["status", "head", "body"])
async def test_a_trickle_is_given_up(fast: int) -> None:
    """A byte now and then is no silence, and still not worth the wait: in the head as in the body."""
    async with scripted({"x": dripping(whole, fast, 0.02)}) as endpoint:
        async with fetch_in_process(config_of(endpoint), SECRET, deadlines=QUICK) as link:
            with pytest.raises(SmpError, match="moved only") as caught:
                await link.read("x", PIN, 0, 65536)
    assert caught.value.code == "remote_unreachable"


@pytest.mark.parametrize("fast", [0, 300])
async def test_a_listing_that_trickles_or_stops_is_given_up(fast: int) -> None:
    """Pages of a listing are judged as bodies are."""

    async def stop(peer: Peer, asked: Asked) -> None:
        await peer.send(listing(asked)[:fast])
        await peer.gone()

    for script, why in ((dripping(listing, fast, 0.02), "moved only"), (stop, "moved nothing")):
        async with scripted({"b": script}) as endpoint:
            async with fetch_in_process(config_of(endpoint), SECRET, deadlines=QUICK) as link:
                with pytest.raises(SmpError, match=why) as caught:
                    await link.list()
        assert caught.value.code == "remote_unreachable"


async def test_a_listing_may_take_longer_than_any_deadline() -> None:
    """As long as it comes at the least rate."""
    async with scripted({"b": dripping(listing, 10, 0.05, 60)}) as endpoint:
        async with fetch_in_process(config_of(endpoint), SECRET, deadlines=EASY) as link:
            assert len(await link.list()) == 30


async def test_a_slow_upload_may_take_longer_than_any_deadline() -> None:
    """A server that reads slowly is judged by what it takes, also where nothing can be written for a while."""
    body = hashlib.shake_256(b"slow").digest(8 << 20)
    kept = bytearray()

    async def slow(peer: Peer, asked: Asked) -> bool:
        if asked.method == "HEAD":
            await peer.send(b'HTTP/1.1 200 OK\r\nETag: "0f"\r\nContent-Length: %d\r\n\r\n' % len(body))
            return True
        while len(kept) < len(body):
            kept.extend(await peer.reader.readexactly(128 << 10))
            await anyio.sleep(0.03)
        await peer.send(b'HTTP/1.1 200 OK\r\nETag: "0f"\r\nContent-Length: 0\r\n\r\n')
        return True

    async with scripted({"x": slow}) as endpoint:
        async with fetch_in_process(config_of(endpoint), SECRET, deadlines=EASY) as link:
            assert (await link.write("x", body)).size == len(body)
    assert bytes(kept) == body


@asynccontextmanager
async def between(port: int, forward: Callable[[bytes], bytes | None]) -> AsyncIterator[int]:
    """A port before another; ``forward`` says what of the server's bytes goes on, and None that nothing ever will."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)

        async def up() -> None:
            while data := await reader.read(1 << 16):
                back.write(data)
            back.close()

        async def down() -> None:
            while data := await there.read(1 << 16):
                if (data := forward(data)) is None:
                    return
                writer.write(data)
                await writer.drain()
            writer.close()

        try:
            await asyncio.gather(up(), down(), return_exceptions=True)
        finally:
            writer.close()
            back.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("after", [0, 1, 3, 6, 9])
async def test_a_black_hole_on_the_way_to_sftp(openssh: Served, after: int) -> None:
    """Nothing comes back from some moment on: in the key exchange, in the login, in the session, in a file."""
    assert openssh.path
    assert isinstance(openssh.config, SftpConfig)
    (openssh.path / "hole").write_bytes(DATA)
    left = after

    def forward(data: bytes) -> bytes | None:
        nonlocal left
        left -= 1
        return data if left >= 0 else None

    async with between(openssh.config.port, forward) as port:
        known = openssh.config.known_hosts.replace(str(openssh.config.port), str(port))
        config = SftpConfig("127.0.0.1", openssh.config.user, known, port, openssh.config.root)
        assert isinstance(openssh.secret, SftpSecret)
        async with fetch_in_process(config, openssh.secret, deadlines=QUICK, connections=1) as link:
            with pytest.raises(SmpError) as caught, anyio.fail_after(20):
                for _ in range(20):
                    info = await link.stat("hole")
                    await link.read("hole", info.pin, 0, info.size)
            assert caught.value.code == "remote_unreachable"


async def test_a_tls_handshake_that_never_ends(tmp_path) -> None:
    """A port that takes connections and says nothing."""
    cert, _ = make_certificate(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"https://127.0.0.1:{server.getsockname()[1]}"
        async with fetch_in_process(config_of(endpoint, cert.read_text()), SECRET, deadlines=QUICK) as link:
            with pytest.raises(SmpError) as caught:
                await link.stat("x")
            assert caught.value.code == "remote_unreachable"
