"""Ranges of an object through the pipeline, with a real fetch process: what fails or is cancelled gives all back."""

import contextlib
import os
import random
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from smp_proto.aio import Caller
from smp_proto.control import LocalConfig, ObjectInfo
from smp_proto.errors import IntegrityError, NotFoundError, ResourceError, one_error
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity
from smpd.host.space import Space
from smpd.links import fetching
from smpd.links.computing import InputObject
from smpd.links.fetching import Whole
from smpd.links.ring import Ring
from smpd.transfer.arriving import find_objects, seal_arriving
from smpd.transfer.cutting import Cutting
from smpd.transfer.lanes import Lane, rank
from smpd.transfer.openers import Target
from smpd.transfer.pipeline import bring_object
from smpd.transfer.pool import FetchSettings, RemotePool
from smpd.transfer.pools import Pools
from smpd.transfer.sealing import sealed_file
from smpd.transfer.source import Source, open_source
from smpd.transfer.spool import Mark, Spool
from smpd.transfer.workers import WorkerHost
from smpd.vault.remotes import Remote

MIB = 1 << 20
RANGES = 7
ME = Identity.generate("box")


@dataclass
class Count:
    """The tally, and a place to stop at."""

    fetched_bytes: int = 0
    resumed_bytes: int = 0
    done_bytes: int = 0
    at: Callable[[int], None] = field(default=lambda done: None)

    def fetched(self, count: int) -> None:
        self.fetched_bytes += count

    def resumed(self, count: int) -> None:
        self.resumed_bytes += count

    def advanced(self, count: int) -> None:
        self.done_bytes += count
        self.at(self.done_bytes)


class Plain:
    """Takes plaintext as a compute process would, from two slots."""

    def __init__(self, fail_at: int = -1, slot_bytes: int = MIB) -> None:
        self.data = bytearray()
        self.names: list[str] = []
        self._slots = [bytearray(slot_bytes), bytearray(slot_bytes)]
        self._free = anyio.Semaphore(2)
        self._ready = [0, 1]
        self._fail_at = fail_at

    async def take(self) -> int:
        await self._free.acquire()
        return self._ready.pop()

    def target(self, slot: int) -> Target:
        return Target(None, slot, memoryview(self._slots[slot]))  # only who opens in a process needs the ring

    async def announce(self, objects: Sequence[InputObject]) -> None:
        assert not self.data, "announced late"
        self.names += [entry.name for item in objects for entry in item.entries]

    async def deliver(self, slot: int, length: int) -> None:
        await anyio.lowlevel.checkpoint()
        if len(self.data) >= self._fail_at * MIB >= 0:
            raise ResourceError("worker_died", "the compute process is gone")
        self.data += self._slots[slot][:length]
        self._ready.append(slot)
        self._free.release()


@pytest.fixture(scope="module")
def plaintext() -> bytes:
    return os.urandom(RANGES * MIB - 4321)


@pytest.fixture(scope="module")
def sealed(plaintext: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sealed object, and loose ones."""
    folder = tmp_path_factory.mktemp("remote")
    with (folder / "object.smp").open("wb") as file:
        writer = BundleWriter(file.write, sender=ME, recipients=[ME.public])
        writer.begin("scan.bin")
        writer.write(plaintext)
        writer.end()
        writer.finish()
    (folder / "loose").mkdir()
    for number in range(RANGES):
        (folder / "loose" / str(number)).write_bytes(plaintext[number * MIB : (number + 1) * MIB])
    return folder


@contextlib.asynccontextmanager
async def pools(folder: Path, *, slots: int = 2, processes: int = 2, slot_bytes: int = MIB) -> AsyncIterator[Pools]:
    """The pools of one local remote, with few slots."""
    remote = Remote("local", "zero-knowledge", LocalConfig(str(folder)), None)
    settings = FetchSettings(processes, slots, slot_bytes, 4, 60.0, "auto")
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            found = Pools(lambda name: remote.view(), lambda name: remote, settings, group, lambda health: None)
            try:
                yield found
            finally:
                with anyio.CancelScope(shield=True):
                    await found.aclose()
            group.cancel_scope.cancel()


async def unchecked(_info: ObjectInfo, act: Callable[[], Any]) -> Any:
    """It may be opened."""
    return act()


@contextlib.asynccontextmanager
async def opened(folder: Path, **options: int) -> AsyncIterator[tuple[RemotePool, Source]]:
    async with pools(folder, **options) as found:
        pool = await found.get("local")
        source = await open_source(pool, "object.smp", [ME], lambda key_id: ME.public, unchecked)
        try:
            yield pool, source
        finally:
            source.close()


@contextlib.asynccontextmanager
async def spooling(path: Path, size: int, mark: Mark) -> AsyncIterator[Spool]:
    with closing(Space(str(path.parent), MIB)) as space:
        spool = await Spool.open(space, str(path), size, mark)
        try:
            async with spool.flushing():
                yield spool
        finally:
            spool.close()


async def all_lanes_are_back(pool: RemotePool) -> None:
    """Take every lane at once, which hangs when one is lost, and find each once."""
    pool.pacing.window = pool.lanes
    lanes = [await pool.take() for _ in range(pool.lanes)]
    assert len(set(lanes)) == pool.lanes
    for lane in lanes:
        pool.give(lane)
    assert (pool.lanes_in_use, pool._lanes.under_way) == (0, 0)


async def stream(
    pool: RemotePool,
    source: Source,
    path: Path,
    *,
    plain: Plain | None = None,
    have: Mapping[int, bytes] | None = None,
    count: Count | None = None,
    marks: dict[int, bytes] | None = None,
) -> Count:
    count = count or Count()
    marks = {} if marks is None else marks
    with one_error():
        async with spooling(path, source.info.size, marks.update) as spool:
            await bring_object(pool, source, spool=spool, marks=have or {}, plain=plain, tally=count)
    return count


async def test_a_disk_that_syncs_slowly_holds_no_lane(sealed, tmp_path):
    """Ranges that are not yet marked do not keep others from coming: here the first mark waits for the last range."""
    count, all_came = Count(), threading.Event()

    def mark(ranges: Mapping[int, bytes]) -> None:
        assert all_came.wait(30), "the lanes wait for the disk"
        marks.update(ranges)

    def fetched(size: int) -> None:
        count.fetched_bytes += size
        if count.fetched_bytes == source.trailer.payload_bytes:
            all_came.set()

    marks: dict[int, bytes] = {}
    async with opened(sealed, slots=1) as (pool, source):
        assert pool.lanes < RANGES
        count.fetched = fetched  # type: ignore[method-assign]
        with one_error():
            async with spooling(tmp_path / "s", source.info.size, mark) as spool:
                await bring_object(pool, source, spool=spool, marks={}, plain=Plain(), tally=count)
    assert sorted(marks) == list(range(RANGES))


@pytest.mark.parametrize("slots", [2, 5])
async def test_every_range_comes_once(sealed, plaintext, tmp_path, slots):
    """Plaintext is delivered in order, ciphertext lies in the spool, all ranges are marked, all lanes are back."""
    async with opened(sealed, slots=slots) as (pool, source):
        plain, marks, came = Plain(), dict[int, bytes](), list[int]()
        pool.sizing.came = lambda seconds, size: came.append(size)  # type: ignore[method-assign]
        count = await stream(pool, source, tmp_path / "s", plain=plain, marks=marks)
        await all_lanes_are_back(pool)
    size = source.trailer.payload_bytes
    assert sum(came) == size
    assert plain.data == plaintext
    assert plain.names == ["scan.bin"]
    assert (count.fetched_bytes, count.resumed_bytes, count.done_bytes) == (size, 0, size)
    assert sorted(marks) == list(range(RANGES))
    assert (tmp_path / "s").read_bytes()[:size] == (sealed / "object.smp").read_bytes()[:size]


async def test_an_object_of_one_range_is_not_marked(tmp_path):
    """It is whole or it is not: nothing would be saved by a mark that has to be on the disk first."""
    (tmp_path / "remote").mkdir()
    with (tmp_path / "remote" / "object.smp").open("wb") as file:
        writer = BundleWriter(file.write, sender=ME, recipients=[ME.public])
        writer.begin("scan.bin")
        writer.write(b"x" * 1000)
        writer.end()
        writer.finish()
    async with opened(tmp_path / "remote") as (pool, source):
        plain, marks = Plain(), dict[int, bytes]()
        await stream(pool, source, tmp_path / "s", plain=plain, marks=marks)
    assert plain.data == b"x" * 1000
    assert not marks
    payload = (tmp_path / "remote" / "object.smp").read_bytes()[: source.trailer.payload_bytes]
    assert (tmp_path / "s").read_bytes()[: source.trailer.payload_bytes] == payload


@pytest.mark.parametrize("wanted", [True, False])
async def test_what_the_spool_has_is_not_fetched(sealed, plaintext, tmp_path, wanted):
    """Ranges that are marked come from the spool, opened where that is wanted; one that the disk changed is fetched again."""
    async with opened(sealed) as (pool, source):
        marks: dict[int, bytes] = {}
        await stream(pool, source, tmp_path / "s", marks=marks)
        with (tmp_path / "s").open("r+b") as file:
            file.seek(3 * MIB + 5)
            file.write(b"\0\0\0\0")
        del marks[1]
        plain = Plain() if wanted else None
        count = await stream(pool, source, tmp_path / "s", plain=plain, have=dict(marks), marks={})
        await all_lanes_are_back(pool)
        payload = (sealed / "object.smp").read_bytes()[: source.trailer.payload_bytes]
    assert (tmp_path / "s").read_bytes()[: len(payload)] == payload
    if plain:
        assert plain.data == plaintext
        assert plain.names == ["scan.bin"]
    assert count.fetched_bytes == 2 * MIB


@pytest.mark.parametrize("ranges", range(RANGES))
async def test_cancelled_anywhere(sealed, tmp_path, ranges):
    """Cancelled after any range, all lanes come back, what was marked is right, and the next run needs only the rest."""
    async with opened(sealed) as (pool, source):
        marks: dict[int, bytes] = {}
        with anyio.CancelScope() as scope:
            stop = Count(at=lambda done: scope.cancel() if done > ranges * MIB else None)
            await stream(pool, source, tmp_path / "s", plain=Plain(), count=stop, marks=marks)
        assert scope.cancelled_caught
        await all_lanes_are_back(pool)
        plain = Plain()
        count = await stream(pool, source, tmp_path / "s", plain=plain, have=dict(marks))
        assert count.resumed_bytes >= len(marks) * MIB - MIB
        assert count.fetched_bytes + count.resumed_bytes == source.trailer.payload_bytes


@pytest.mark.parametrize("seed", range(6))
async def test_ranges_of_any_size(sealed, plaintext, tmp_path, seed):
    """Each range of another size, cut off again and again: what is marked is taken up however it was cut before."""
    rng, marks, attempts = random.Random(seed), dict[int, bytes](), 0
    async with opened(sealed, slot_bytes=3 * MIB) as (pool, source):
        size = source.trailer.payload_bytes
        while True:
            source.cutting = Cutting(source.opener.layout, 3 * MIB, lambda: rng.randint(0, 4 * MIB))
            plain, known = Plain(slot_bytes=3 * MIB), sum(len(each) for each in marks.values()) // 32
            least = known * MIB + 2 * MIB  # done before it is cut off
            with anyio.CancelScope() as scope:
                count = Count(at=lambda done, least=least, scope=scope: scope.cancel() if done > least else None)
                await stream(pool, source, tmp_path / "s", plain=plain, have=dict(marks), count=count, marks=marks)
            await all_lanes_are_back(pool)
            attempts += 1
            if not scope.cancelled_caught:
                break
        last = Plain(slot_bytes=3 * MIB)
        whole = await stream(pool, source, tmp_path / "s", plain=last, have=dict(marks))
    assert attempts > 1
    assert plain.data == last.data == plaintext
    assert count.fetched_bytes + count.resumed_bytes == size
    assert (whole.fetched_bytes, whole.resumed_bytes) == (0, size)
    assert (tmp_path / "s").read_bytes()[:size] == (sealed / "object.smp").read_bytes()[:size]


async def test_marks_that_do_not_fit(sealed, plaintext, tmp_path):
    """Marks of another object, or cut off, cost their ranges and nothing else."""
    async with opened(sealed, slot_bytes=2 * MIB) as (pool, source):
        good: dict[int, bytes] = {}
        await stream(pool, source, tmp_path / "s", marks=good)
        odd = {0: good[0][:-1], 2: bytes(64), 6: bytes(64), 9: bytes(32)}
        plain = Plain(slot_bytes=2 * MIB)
        count = await stream(pool, source, tmp_path / "s", plain=plain, have=odd)
    assert plain.data == plaintext
    assert (count.fetched_bytes, count.resumed_bytes) == (source.trailer.payload_bytes, 0)


async def test_batches_tell_of_the_line_too(sealed, plaintext):
    """What came at once counts as one range; what did not come whole says nothing."""
    async with pools(sealed, slot_bytes=3 * MIB) as found:
        pool = await found.get("local")
        objects = [info async for infos in pool.list("loose/") for info in infos][:2]
        came = list[int]()
        pool.sizing.came = lambda seconds, size: came.append(size)  # type: ignore[method-assign]
        wanted = [Whole(info.path, info.pin, info.size, at * MIB) for at, info in enumerate(objects)]
        async with pool.lane() as lane:
            assert await pool.read_many(lane, wanted) == (2 * MIB, {})
            _, failed = await pool.read_many(lane, [wanted[0], Whole("loose/none", "pin", MIB, MIB)])
    assert set(failed) == {1}
    assert came == [2 * MIB]


async def test_the_end_of_an_object_tells_how_late_answers_begin(sealed):
    """It is asked for first, so it is known before a range is cut."""
    async with pools(sealed) as found:
        pool, answered = await found.get("local"), list[float]()
        pool.sizing.answered = answered.append  # type: ignore[method-assign]
        info, _ = await pool.tail("object.smp", 1000)
        assert len(answered) == 1
        async with pool.lane() as lane:
            await pool.read(lane, "object.smp", info.pin, 0, MIB)
    assert len(answered) == 1


async def test_a_slow_remote_has_small_ranges(sealed, plaintext, tmp_path):
    """What is begun now is as long as a lane brings in a second, and the slot is no longer filled."""
    async with opened(sealed, slot_bytes=4 * MIB) as (pool, source):
        pool.sizing.came(4.0, 4 * MIB)
        asked, read = [], pool.read

        def spy(lane: Any, path: str, pin: str, offset: int, length: int) -> Any:
            pool.sizing.came(4.0, 4 * MIB)  # what really comes is quicker
            asked.append(length)
            return read(lane, path, pin, offset, length)

        pool.read = spy  # type: ignore[method-assign]
        plain = Plain(slot_bytes=4 * MIB)
        await stream(pool, source, tmp_path / "s", plain=plain)
    assert plain.data == plaintext
    assert asked[:2] == [MIB, MIB]


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.003, 0.01, 0.02])
async def test_cancelled_at_any_instant(sealed, tmp_path, delay):
    """The same at instants that have nothing to do with ranges, many jobs at once over the same lanes."""
    async with opened(sealed) as (pool, source):

        async def one(number: int) -> None:
            with anyio.move_on_after(delay * number):
                await stream(pool, source, tmp_path / str(number), plain=Plain())

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(one, number)
        await all_lanes_are_back(pool)
        plain = Plain()
        await stream(pool, source, tmp_path / "whole", plain=plain)


async def test_a_cancelled_read_has_let_go_of_its_slot(fake_program):
    """When a cancelled read returns, the fetch process is done with the slot: the next range cannot be overwritten."""
    fake_program("fake_worker.py")
    async with pools(Path("/"), processes=1) as found:
        pool = await found.get("local")
        async with (
            pool.processes.hosts[0].use(),
            pool.lane() as lane,
        ):  # it runs already: starting it may take longer than that
            with anyio.move_on_after(1) as scope:
                await pool.read(lane, "path", "pin", 0, 4)
            assert scope.cancelled_caught
            ring = pool.processes.ring(lane)
            assert os.pread(ring.fd, 4, lane.slot * ring.slot_bytes) == b"late"


async def test_a_process_is_told_how_urgent_a_request_is(sealed, monkeypatch):
    """It has a queue of its own, and the rank of the job goes by there, too."""
    asked: list[Any] = []
    call = Caller.open

    def spy(caller: Caller, request: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(request)
        return call(caller, request, *arguments, **options)

    async with pools(sealed) as found:
        pool = await found.get("local")
        await pool.probe()
        monkeypatch.setattr(Caller, "open", spy)
        for urgency in (0, 3):
            rank.set(urgency)
            info, _ = await pool.tail("object.smp", 1000)
            async with pool.lane() as lane:
                await pool.read(lane, "object.smp", info.pin, 0, 1000)
                await pool.read_many(lane, [fetching.Whole("object.smp", info.pin, info.size, 0)])
    kinds = fetching.Tail | fetching.Read | fetching.ReadMany
    assert [each.rank for each in asked if isinstance(each, kinds)] == [0, 0, 0, 3, 3, 3]


async def test_an_object_that_changes(sealed, plaintext, tmp_path):
    """A pin that no longer holds ends the stream with that reason, whatever other ranges do."""
    folder = tmp_path / "remote"
    folder.mkdir()
    (folder / "object.smp").write_bytes((sealed / "object.smp").read_bytes())
    async with opened(folder) as (pool, source):
        (folder / "object.smp").write_bytes((sealed / "object.smp").read_bytes())
        with pytest.raises(IntegrityError) as caught:
            await stream(pool, source, tmp_path / "s", plain=Plain())
        assert caught.value.code == "source_changed"
        await all_lanes_are_back(pool)


@pytest.mark.parametrize("bad", [0, 3, RANGES - 1])
async def test_a_flipped_bit(sealed, tmp_path, bad):
    """A range that does not open is an error, and it is neither marked nor delivered."""
    data = bytearray((sealed / "object.smp").read_bytes())
    data[bad * MIB + 100] ^= 1
    folder = tmp_path / "remote"
    folder.mkdir()
    (folder / "object.smp").write_bytes(data)
    async with opened(folder) as (pool, source):
        plain, marks = Plain(), dict[int, bytes]()
        with pytest.raises(IntegrityError) as caught:
            await stream(pool, source, tmp_path / "s", plain=plain, marks=marks)
        assert caught.value.code == "corrupt"
        assert bad not in marks
        assert len(plain.data) <= bad * MIB
        await all_lanes_are_back(pool)


@pytest.mark.parametrize("at", [0, 2, RANGES - 2])
async def test_a_receiver_that_fails(sealed, tmp_path, at):
    """When the compute process dies at any range the stream ends with that reason, and all lanes come back."""
    async with opened(sealed) as (pool, source):
        with pytest.raises(ResourceError, match="compute process is gone"):
            await stream(pool, source, tmp_path / "s", plain=Plain(fail_at=at))
        await all_lanes_are_back(pool)


async def test_a_journal_that_fails(sealed, tmp_path, space):
    """A range that cannot be marked ends the stream with that reason: it is never counted as kept."""

    def mark(batch: Mapping[int, bytes]) -> None:
        raise ResourceError("disk_full", "no space is left for the journal")

    async with opened(sealed) as (pool, source):
        spool = await Spool.open(space, str(tmp_path / "s"), source.info.size, mark)
        count = Count()
        with pytest.raises(ResourceError, match="the journal"), one_error():
            async with spool.flushing():
                await bring_object(pool, source, spool=spool, marks={}, plain=None, tally=count)
        spool.close()
        assert count.done_bytes == 0
        await all_lanes_are_back(pool)


async def test_a_spool_that_cannot_be_written(sealed, tmp_path, space):
    """A disk that refuses a range's bytes ends the stream as the spool's fault, not as damage of the object."""
    async with opened(sealed) as (pool, source):
        spool = await Spool.open(space, str(tmp_path / "s"), source.info.size, lambda batch: None)
        kept, spool.fd = spool.fd, os.open(tmp_path / "s", os.O_RDONLY)
        with pytest.raises(ResourceError, match="the spool") as caught, one_error():
            async with spool.flushing():
                await bring_object(pool, source, spool=spool, marks={}, plain=None, tally=Count())
        assert caught.value.code == "disk_failed"
        spool.close()
        os.close(kept)
        await all_lanes_are_back(pool)


async def test_a_fetch_process_that_is_killed(sealed, plaintext, tmp_path):
    """Ranges under way when a fetch process dies are fetched again; nothing else is."""
    async with opened(sealed) as (pool, source), anyio.create_task_group() as group:
        plain, lost, bring, killed = Plain(), [], pool._bring, []

        async def kill(host: WorkerHost) -> None:
            await anyio.wait_all_tasks_blocked()
            host.worker.process.kill()

        async def stop_and_ask(lane: Lane, *rest: Any) -> Any:
            host = pool.processes.of(lane)
            if plain.data and not killed and host.worker:
                killed.append(host)
                host.worker.process.send_signal(signal.SIGSTOP)  # before it is asked, so that it cannot have answered
                group.start_soon(kill, host)
            return await bring(lane, *rest)

        pool._bring = stop_and_ask  # type: ignore[method-assign, assignment]
        pool.sizing.lost = lambda: lost.append(1)  # type: ignore[method-assign]
        count = await stream(pool, source, tmp_path / "s", plain=plain)
        await all_lanes_are_back(pool)
        assert plain.data == plaintext
        assert lost
        assert count.fetched_bytes <= source.trailer.payload_bytes + pool.lanes * MIB
        assert any(host.restarts for host in pool.processes.hosts)


async def test_a_remote_that_is_removed_meanwhile(sealed, tmp_path):
    """Forgetting a remote ends what runs over it with a reason, waits for its lanes, and closes its rings."""
    async with pools(sealed) as found, anyio.create_task_group() as group:
        pool = await found.get("local")
        source = await open_source(pool, "object.smp", [ME], lambda key_id: ME.public, unchecked)
        count = Count(at=lambda done: group.start_soon(found.forget, "local") if done == MIB else None)
        with pytest.raises(NotFoundError, match="was removed"):
            await stream(pool, source, tmp_path / "s", count=count)
        source.close()
        again = await found.get("local")
        assert again is not pool
        assert (await again.stat("object.smp")).size == source.info.size


async def test_loose_objects_are_sealed_in_order(sealed, plaintext, tmp_path, space):
    """Pieces that arrive in any order are sealed in order, and no slot keeps plaintext."""
    async with pools(sealed) as found:
        pool = await found.get("local")
        objects = await find_objects(pool, "loose/")
        count = Count()
        async with sealed_file(space, str(tmp_path / "s"), [ME], [ME.public]) as writer:
            info = await seal_arriving(pool, "loose/", objects, writer, count)
        await all_lanes_are_back(pool)
        assert [entry.name for entry in info.entries] == [str(number) for number in range(RANGES)]
        assert count.done_bytes == len(plaintext)
        assert no_plaintext(pool, plaintext)


@pytest.mark.parametrize("pieces", range(0, RANGES, 2))
async def test_a_cancelled_arrival_keeps_no_plaintext(sealed, plaintext, tmp_path, space, pieces):
    """Cancelled in the middle of sealing on arrival: no file, all lanes back, and no plaintext in any slot."""
    async with pools(sealed, slots=3) as found:
        pool = await found.get("local")
        objects = await find_objects(pool, "loose/")
        with anyio.CancelScope() as scope:
            count = Count(at=lambda done: scope.cancel() if done > pieces * MIB else None)
            async with sealed_file(space, str(tmp_path / "s"), [ME], [ME.public]) as writer:
                await seal_arriving(pool, "loose/", objects, writer, count)
        assert scope.cancelled_caught
        await all_lanes_are_back(pool)
        assert not (tmp_path / "s").exists()
        assert no_plaintext(pool, plaintext)


def no_plaintext(pool: RemotePool, plaintext: bytes) -> bool:
    rings = [ring for ring in pool.processes._rings if ring]
    parts = [plaintext[at : at + 32] for at in range(0, len(plaintext) - 32, MIB // 4)]
    held = [os.pread(ring.fd, ring.slots * ring.slot_bytes, 0) for ring in rings]
    return bool(held) and not any(part in each for part in parts for each in held)


async def test_a_pool_that_is_closed_while_its_ring_is_made(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing waits for the process that is just starting, and the ring goes, too."""
    making, go_on = threading.Event(), threading.Event()
    create, made = Ring.create, []

    def slowly(*arguments: Any) -> Ring:
        making.set()
        assert go_on.wait(30)
        made.append(create(*arguments))
        return made[-1]

    monkeypatch.setattr(Ring, "create", slowly)
    async with pools(sealed) as found:
        pool = await found.get("local")
        async with anyio.create_task_group() as group:

            async def ask() -> None:
                with pytest.raises(NotFoundError):
                    await pool.stat("object.smp")

            group.start_soon(ask)
            await anyio.to_thread.run_sync(making.wait, 30)
            group.start_soon(found.aclose)
            await anyio.wait_all_tasks_blocked()
            go_on.set()
    (ring,) = made
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ring.fd)
