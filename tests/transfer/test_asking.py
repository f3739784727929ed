"""What is learnt from a remote's answers, and which process is asked: real fetch processes, and servers that answer as told."""

import contextlib
from collections.abc import AsyncIterator

import anyio
import pytest
from scripted_http import DATA, ETAG, Asked, Peer, Script, answer, refusal, scripted
from transfer.test_ranges import MIB, all_lanes_are_back, pools

from smp_proto.control import S3Config, S3Secret
from smp_proto.errors import RemoteError
from smpd.fetch.pins import etag_pin
from smpd.links.fetching import Whole
from smpd.metrics.counting import Metrics
from smpd.transfer.asking import BUSY_MOST, persist
from smpd.transfer.pool import FetchSettings, RemotePool
from smpd.transfer.pools import Pools
from smpd.vault.remotes import Remote

SIZE = len(DATA)


@contextlib.asynccontextmanager
async def bucket(scripts: dict[str, Script], metrics: Metrics | None = None) -> AsyncIterator[RemotePool]:
    """The pool of a bucket whose server answers by these scripts."""
    async with scripted(scripts) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path")
        remote = Remote("bucket", "zero-knowledge", config, None)
        settings = FetchSettings(1, 4, 24 * MIB, 64, 60.0, "auto")

        def load(_name: str) -> Remote:
            return Remote("bucket", "zero-knowledge", config, S3Secret("key", "secret"))

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                found = Pools(
                    lambda name: remote.view(), load, settings, group, lambda health: None, metrics or Metrics()
                )
                try:
                    yield await found.get("bucket")
                finally:
                    with anyio.CancelScope(shield=True):
                        await found.aclose()
                group.cancel_scope.cancel()


def objects(count: int) -> list[Whole]:
    """So many small objects, one behind the other in a slot."""
    return [Whole(str(number), etag_pin(SIZE, ETAG), SIZE, number * SIZE) for number in range(count)]


async def good(peer: Peer, asked: Asked) -> bool:
    await peer.send(answer(asked) + asked.body)
    return True


class Narrow:
    """A server that takes some requests at once and refuses the others; an answer begins late."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.inside = self.refused = 0
        self._full = refusal("503 Slow Down", "SlowDown")

    async def __call__(self, peer: Peer, asked: Asked) -> bool:
        if self.inside >= self.room:
            self.refused += 1
            return await self._full(peer, asked)
        self.inside += 1
        try:
            await anyio.sleep(0.03)  # the length of the way, which is what is tried
        finally:
            self.inside -= 1
        return await good(peer, asked)


async def test_a_server_that_takes_few_requests_is_not_asked_by_more() -> None:
    """It refuses less than it serves, every object comes, and it is asked by as many as it takes from then on."""
    wanted, narrow = objects(120), Narrow(5)
    async with bucket({each.path: narrow for each in wanted}) as pool:
        async with pool.lane() as lane:
            _, failed = await pool.read_many(lane, wanted)
            assert not failed
            assert narrow.refused < len(wanted)
            before = narrow.refused
            _, failed = await pool.read_many(lane, wanted[:40])
        assert not failed
        assert narrow.refused - before <= 5  # one more at once, now and then
        await all_lanes_are_back(pool)


async def test_a_batch_that_is_turned_away_has_not_tried() -> None:
    """A server that wants to be left alone for long costs no attempt, whether a range is asked for or a batch."""
    script = refusal("503 Slow Down", "SlowDown", "Retry-After: 60\r\n")
    wanted = objects(3)
    async with bucket({each.path: script for each in wanted}) as pool, pool.lane() as lane:
        asked, failed = await pool.read_many(lane, wanted)
        assert asked == 0
        assert {(error.code, "held" in error.details) for error in failed.values()} == {("remote_busy", True)}


@pytest.mark.parametrize(("missing", "came"), [((0, 1, 2), 0), ((1,), 2)])
async def test_what_did_not_come_is_not_counted(missing: tuple[int, ...], came: int) -> None:
    """Neither by the metrics, nor by what judges the throughput."""
    wanted, metrics = objects(3), Metrics()
    scripts: dict[str, Script] = {each.path: good for each in wanted}
    scripts |= {str(number): refusal("404 Not Found", "NoSuchKey") for number in missing}
    async with bucket(scripts, metrics) as pool, pool.lane() as lane:
        _, failed = await pool.read_many(lane, wanted)
        assert sorted(failed) == list(missing)
        assert pool.pacing.bytes == metrics.total("smp_fetched_bytes_total") == came * SIZE
        assert pool.pacing.ranges == bool(came)


async def test_a_question_starts_no_further_process(tmp_path) -> None:
    """What needs no lane is asked of a process that is there; an upload goes to each in turn."""
    (tmp_path / "object").write_bytes(b"1")
    async with pools(tmp_path, processes=3) as found:
        pool = await found.get("local")
        for _ in range(4):
            await pool.stat("object")
        assert sum(bool(host.pid) for host in pool.processes.hosts) == 1
        assert len({id(pool.processes.each()) for _ in range(3)}) == 3


async def test_one_object_that_is_always_refused_ends() -> None:
    """While the server does what others ask, one refusal after the other is a fault of what is asked for."""
    asked = 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        raise RemoteError("remote_busy", "slow down")

    with pytest.raises(RemoteError, match="slow down"):
        await persist(ask)
    assert asked == BUSY_MOST
