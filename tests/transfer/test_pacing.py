"""The window of a remote, against servers in virtual time; and the lanes that it lets out."""

import heapq
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smp_proto.control import GetSpec
from smp_proto.errors import NotFoundError
from smpd.jobs.job import Job, Progress
from smpd.jobs.queue import RANKS
from smpd.transfer.lanes import Lane, Lanes, rank
from smpd.transfer.pacing import Pacing
from smpd.transfer.packing import Packing
from smpd.transfer.pool import RemotePool
from smpd.transfer.runner import Runner

SIZE = 8 << 20


class Server:
    """Answers after a latency, with a bandwidth shared by all that is under way; says 503 above a number at once.

    Args:
        pacing: what is tried.
        latency_s: of one range alone, without its bytes.
        bandwidth: bytes per second of the line.
        each: bytes per second that one range gets at most.
        jitter: the share by which each answer's time varies.
    """

    def __init__(
        self, pacing: Pacing, *, latency_s: float, bandwidth: float, each: float, jitter: float = 0.0, seed: int = 1
    ) -> None:
        self.pacing = pacing
        self.latency_s, self.bandwidth, self.each, self.jitter = latency_s, bandwidth, each, jitter
        self.most = 10_000
        self.rng = random.Random(seed)
        self.now = 0.0
        self.line = 0.0  # when the line is free again
        self.running: list[tuple[float, float, bool]] = []

    @property
    def knee(self) -> float:
        """How many ranges fill the line."""
        return self.bandwidth * (self.latency_s / SIZE + 1 / self.each)

    def run(self, seconds: float) -> float:
        """Keep the window full for so long; bytes per second over the second half."""
        begin, moved = self.now, 0
        while self.now < begin + seconds:
            while len(self.running) < self.pacing.window:
                self.begin()
            at, started, refused = heapq.heappop(self.running)
            self.now = max(self.now, at)
            if refused:
                self.pacing.busy(self.now)
                continue
            self.pacing.done(self.now, self.now - started, SIZE)
            assert 1 <= self.pacing.window <= self.pacing.lanes
            moved += SIZE if self.now >= begin + seconds / 2 else 0
        return moved / (self.now - begin - seconds / 2)

    def begin(self) -> None:
        """Start one range."""
        self.pacing.started(self.now, len(self.running) + 1)
        wobble = 1 + self.rng.uniform(-self.jitter, self.jitter)
        refused = len(self.running) >= self.most
        self.line = max(self.line, self.now) + (0 if refused else SIZE / self.bandwidth)
        alone = self.now + (self.latency_s + SIZE / self.each) * wobble
        at = self.now + self.latency_s if refused else max(alone, self.line)
        heapq.heappush(self.running, (at, self.now, refused))


servers = st.fixed_dictionaries(
    {
        "latency_s": st.floats(0.005, 0.3),
        "bandwidth": st.floats(5e6, 2e9),
        "each": st.floats(5e6, 5e8),
        "jitter": st.floats(0.0, 0.4),
        "seed": st.integers(0, 99),
    }
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(servers, st.sampled_from([2, 8, 32, 128]))
def test_throughput_is_what_all_lanes_would_bring(server: dict[str, float], lanes: int) -> None:
    """Whatever the line, with jitter or without: near the knee, or with all lanes when they do not reach it."""
    sim = Server(Pacing(lanes, 8), **server)
    sim.run(100)
    best = sim.bandwidth * min(1.0, lanes / sim.knee)
    assert sim.run(60) > 0.7 * best


def test_a_slow_line_is_not_queued_up() -> None:
    """Where ranges wait for the line only, a part of the lanes is as fast, and each range comes sooner."""
    sim = Server(Pacing(32, 8), latency_s=0.05, bandwidth=25e6, each=1e9)
    assert sim.run(300) > 0.95 * 25e6
    assert sim.pacing.window <= 8


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_a_quick_remote_has_few_lanes(jitter: float) -> None:
    """On a loopback or a LAN few slots bring as much as many, and stay in the cache; chance does not add to them."""
    sim = Server(Pacing(32, 8), latency_s=0.001, bandwidth=1.5e9, each=1e9, jitter=jitter)
    assert sim.run(1) > 0.9 * 1.5e9
    windows = []
    for _ in range(200):
        sim.run(5)
        windows.append(sim.pacing.window)
    assert sum(windows) / len(windows) <= 12


def test_a_long_line_has_its_lanes_after_some_round_trips() -> None:
    """Where each range is slow for its own reasons, the window doubles as fast as ranges come."""
    sim = Server(Pacing(64, 8), latency_s=0.1, bandwidth=4e9, each=1e8)
    begun = 0
    while sim.pacing.window < 64:
        sim.run(0.05)
        begun = sim.pacing.ranges
    assert begun <= 2 * (8 + 8 + 16 + 32)
    sim.run(20)
    assert sim.pacing.window == 64


def test_a_remote_that_became_quick_has_few_lanes_again() -> None:
    """What was needed on the long line is given back where it brings no more."""
    sim = Server(Pacing(32, 8), latency_s=0.1, bandwidth=1.5e9, each=1e8)
    sim.run(20)
    assert sim.pacing.window == 32
    sim.latency_s, sim.each = 0.001, 1e9
    sim.run(120)
    assert sim.pacing.window <= 12


def test_a_window_that_nobody_fills_is_taken_back() -> None:
    """Sixteen slots for the plaintext are what the window is worth, however much it grew while all was cold."""
    pacing = Pacing(32, 8)
    sim = Server(pacing, latency_s=0.02, bandwidth=1e10, each=4e8)  # each lane brings as much as the first
    while pacing.window < 32:
        sim.run(0.01)
    now = sim.now + 1.0
    pacing.started(now, 1)  # a pause, and then no more than 16 at once
    for _ in range(100):
        pacing.started(now, 16)
        now += 0.01
        pacing.done(now, 0.02, SIZE)
    assert pacing.window == 16


def test_few_ranges_at_once_do_not_end_the_growth() -> None:
    """Small jobs say nothing of what a large one could use."""
    pacing, now = Pacing(32, 8), 1.0
    for ranges, at_once, window in ((80, 2, 8), (8, 8, 16), (80, 2, 16)):
        for _ in range(ranges):
            pacing.started(now, at_once)
            now += 0.05
            pacing.done(now, 0.1, SIZE)
        assert pacing.window == window


def test_a_pause_within_an_epoch_is_not_judged() -> None:
    """A job's end and the next one's start lie in one epoch: the time between is not the window's fault."""
    pacing, now = Pacing(32, 4), 0.0

    def bring(ranges: int) -> None:
        nonlocal now
        for number in range(ranges):
            pacing.started(now, 1 if not number else pacing.window)
            now += 0.1 / pacing.window
            pacing.done(now, 0.1, SIZE)

    bring(8)
    assert pacing.window == 8
    bring(8)
    now += 60.0
    bring(8)
    assert pacing.window == 16


def test_a_pause_is_seen_however_many_lanes_were_handed_out_before_the_first_request() -> None:
    """A job takes all of its lanes before it asks for anything, so the first request is not the first lane."""
    pacing, now = Pacing(32, 8), 0.0
    for rounds, window in ((2, 16), (1, 16), (2, 32)):
        for _ in range(rounds):
            ranges = pacing.window
            for _ in range(ranges):
                pacing.started(now, ranges)
            now += 1.0  # they come together, as those do that share a line
            for _ in range(ranges):
                pacing.done(now, 1.0, SIZE)
        assert pacing.window == window
        now += 60.0


def test_a_range_that_failed_is_not_under_way() -> None:
    """Else no pause would be seen any more."""
    pacing, now = Pacing(32, 4), 10.0
    pacing.started(now, 1)
    pacing.failed()
    for pause_s in (1.0, 1.0, 1.0, 60.0):
        now += pause_s
        ranges = pacing.window
        for _ in range(ranges):
            pacing.started(now, ranges)
        now += 1.0
        for _ in range(ranges):
            pacing.done(now, 1.0, SIZE)
    assert pacing.window == 16


def test_a_burst_of_refusals_halves_once_and_is_made_good() -> None:
    """A 503 burst costs half of the window, not all of it; afterwards the throughput comes back."""
    sim = Server(Pacing(32, 8), latency_s=0.2, bandwidth=5e8, each=3e7)
    before = sim.run(30)
    for _ in range(20):
        sim.pacing.busy(sim.now)
    assert sim.pacing.window == 16
    sim.run(60)
    assert sim.run(30) > 0.9 * before


def test_a_server_that_takes_few_at_once_is_given_few() -> None:
    """Refused again and again the window goes down, never below one, and does not collapse."""
    sim = Server(Pacing(32, 8), latency_s=0.02, bandwidth=1e9, each=5e7)
    sim.most = 4
    sim.run(60)
    assert 1 <= sim.pacing.window <= 10
    assert sim.run(30) > 0.4 * min(1.0, 4 / sim.knee) * sim.bandwidth


def test_a_pause_and_a_lack_of_work_are_not_judged() -> None:
    """When fewer ranges are asked for than the window allows, it stays."""
    pacing, now = Pacing(32, 32), 0.0
    for _ in range(200):
        pacing.started(now, 3)
        now += 5.0
        pacing.done(now, 5.0, SIZE)
    assert (pacing.window, pacing.ranges, pacing.bytes) == (32, 200, 200 * SIZE)


def _lanes(count: int = 2) -> tuple[Lanes, Pacing]:
    pacing = Pacing(count, count)
    return Lanes([Lane(slot % 2, slot) for slot in range(count)], pacing), pacing


def _taker(lanes: Lanes, got: list[str]) -> Callable[[str, int], object]:
    async def take(name: str, urgency: int) -> None:
        rank.set(urgency)
        lane = await lanes.take()
        got.append(name)
        lanes.give(lane)

    return take


async def test_lanes_go_by_rank_then_in_order() -> None:
    """A critical job's range gets the next lane, whoever has waited; alike ones keep their order."""
    lanes, _ = _lanes()
    held = [await lanes.take(), await lanes.take()]
    got: list[str] = []
    async with anyio.create_task_group() as group:
        for name, urgency in (("low", 3), ("a", 2), ("b", 2), ("critical", 0), ("high", 1)):
            group.start_soon(_taker(lanes, got), name, urgency)
            await anyio.wait_all_tasks_blocked()
        lanes.give(held.pop())
    assert got == ["critical", "high", "a", "b", "low"]
    assert lanes.in_use == 1


async def test_the_window_limits_what_is_handed_out() -> None:
    """With a window of one a free lane stays; when it grows, the next return hands out both."""
    lanes, pacing = _lanes()
    pacing.window = 1
    held = await lanes.take()
    got: list[str] = []
    async with anyio.create_task_group() as group:
        group.start_soon(_taker(lanes, got), "a", 2)
        await anyio.wait_all_tasks_blocked()
        assert (got, lanes.in_use, lanes.used_by(held.worker), lanes.used_by(1 - held.worker)) == ([], 1, True, False)
        lanes.give(held)
    assert (got, lanes.in_use) == (["a"], 0)
    await lanes.until_idle()


async def test_the_lane_used_last_is_used_next_and_processes_share_the_load() -> None:
    """A slot that is still in the cache is taken before one that is not, and no process gets two before another one."""
    lanes = Lanes([Lane(worker, slot) for worker in range(2) for slot in range(4)], Pacing(8, 8))
    held = [await lanes.take() for _ in range(4)]
    assert sorted(lane.worker for lane in held) == [0, 0, 1, 1]
    for lane in held[:2]:
        lanes.give(lane)
    again = [await lanes.take() for _ in range(2)]
    assert sorted(again) == sorted(held[:2])


async def test_processes_that_do_not_take_part_get_no_lanes() -> None:
    """Until they join, or the work is more than receiving."""
    pacing, packing = Pacing(16, 4), Packing(2)
    lanes = Lanes([Lane(worker, slot) for worker in range(2) for slot in range(8)], pacing, packing)
    held = [await lanes.take() for _ in range(3)]
    assert [lane.worker for lane in held] == [0, 0, 0]
    held.append(await lanes.take(spread=True))
    assert held[-1].worker == 1
    while held:
        lanes.give(held.pop())
    packing.joined(there=True)
    assert sorted([(await lanes.take()).worker for _ in range(4)]) == [0, 0, 1, 1]


async def test_a_brief_request_is_not_held_back_by_the_window() -> None:
    """It takes a free lane, also past those who wait for the window, and takes nothing of the window."""
    lanes, pacing = _lanes(4)
    pacing.window = 1
    held = await lanes.take()
    got: list[str] = []
    async with anyio.create_task_group() as group:
        group.start_soon(_taker(lanes, got), "range", 2)
        await anyio.wait_all_tasks_blocked()
        brief = [await lanes.take(brief=True) for _ in range(3)]
        assert (got, lanes.in_use, lanes.under_way) == ([], 4, 1)
        lanes.give(held)
        await anyio.wait_all_tasks_blocked()
        assert got == ["range"]
    lanes.give(brief.pop())
    assert (lanes.in_use, lanes.under_way) == (2, 0)
    for lane in brief:
        lanes.give(lane)
    ordinary = [await lanes.take() for _ in range(pacing.window)]
    assert lanes.under_way == len(ordinary)  # a lane that was brief is not for ever


async def test_a_brief_request_that_waits_for_a_lane_is_brief_then() -> None:
    """All lanes are in use; it gets the next one, and the window has as much room as before."""
    lanes, pacing = _lanes(2)
    held = [await lanes.take(), await lanes.take()]
    found: list[Lane] = []

    async def take() -> None:
        found.append(await lanes.take(brief=True))

    async with anyio.create_task_group() as group:
        group.start_soon(take)
        await anyio.wait_all_tasks_blocked()
        pacing.window = 1
        lanes.give(held.pop())
    assert (lanes.in_use, lanes.under_way) == (2, 1)
    assert found


async def test_who_waits_for_a_process_that_takes_part_gets_its_lane() -> None:
    """Its lanes are all in use, and the window has room: the next one given back goes to who waits."""
    lanes = Lanes([Lane(worker, slot) for worker in range(2) for slot in range(2)], Pacing(4, 4), Packing(2))
    held = [await lanes.take(), await lanes.take()]
    got: list[str] = []
    async with anyio.create_task_group() as group:
        group.start_soon(_taker(lanes, got), "a", 2)
        await anyio.wait_all_tasks_blocked()
        assert got == []
        lanes.give(held[0])
    assert got == ["a"]


@pytest.mark.parametrize("handed", [False, True])
async def test_a_waiter_that_leaves_takes_no_lane_along(handed: bool) -> None:
    """Cancelled while it waits, or just as it got its lane: the lane goes to the next."""
    lanes, _ = _lanes()
    held = [await lanes.take(), await lanes.take()]
    got: list[str] = []
    async with anyio.create_task_group() as group:
        leaving = anyio.CancelScope()

        async def leave() -> None:
            with leaving:
                lane = await lanes.take()
                try:
                    await anyio.lowlevel.checkpoint()
                    got.append("left")
                finally:
                    lanes.give(lane)

        group.start_soon(leave)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(_taker(lanes, got), "next", 2)
        await anyio.wait_all_tasks_blocked()
        if handed:
            lanes.give(held.pop())
        leaving.cancel()
        await anyio.wait_all_tasks_blocked()
        while held:
            lanes.give(held.pop())
    assert got == ["next"]
    assert lanes.in_use == 0


async def test_what_a_job_does_has_its_priority() -> None:
    """The runner gives the rank of its job to all that the attempt does."""
    seen: list[int] = []

    async def remote(name: str) -> RemotePool:
        seen.append(rank.get())
        raise NotFoundError("no_such_remote", name)

    nothing = SimpleNamespace(source=lambda job: None, list=lambda job, limit: [])
    box: Any = SimpleNamespace(remote=remote, journal=nothing, quarantine=nothing, spool_dir="/nonexistent")
    for priority in ("critical", "low"):
        job = Job(
            id="j", number=1, spec=GetSpec("a:b"), state="running", priority=priority, owner="1:x", created=0, updated=0
        )
        async with anyio.create_task_group() as group:

            async def attempt(job: Job = job) -> None:
                with pytest.raises(NotFoundError):
                    await Runner(box)(job, Progress(job, lambda: None))

            group.start_soon(attempt)
    assert seen == [RANKS["critical"], RANKS["low"]]
    assert rank.get() == RANKS["normal"]
