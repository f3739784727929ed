"""How many fetch processes take part: the arithmetic, and real processes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_proto.control import LocalConfig, RemoteConfig, S3Config, SftpConfig
from smpd.transfer import packing
from smpd.transfer.joining import only_receives
from smpd.transfer.packing import AGAIN_S, LOOK_S, LOOKS, PAUSE_S, Packing
from tests.transfer.test_ranges import MIB, opened, plaintext, sealed

__all__ = ["plaintext", "sealed"]


class Cores:
    """Looks at processes that spend so much of a core each, in virtual time."""

    def __init__(self, packing: Packing) -> None:
        self.packing = packing
        self.now = 1000.0
        self.spent = [0.0] * 64

    def run(self, share: Callable[[int], float], looks: int = 10) -> int:
        """Of a core for each, by how many take part; returns how many do at the end."""
        for _ in range(looks):
            used = self.packing.used
            self.now += LOOK_S
            for each in range(used):
                self.spent[each] += LOOK_S * share(used)
            if self.packing.due(self.now) and self.packing.look(self.now, self.spent[:used]):
                self.packing.joined(there=True)
        return self.packing.used


def test_one_that_has_time_left_stays_alone() -> None:
    """Whatever the others could do."""
    assert Cores(Packing(8)).run(lambda used: 0.8) == 1


def test_others_join_until_they_have_time_left() -> None:
    """Work for three and a half cores is done by four; there are no more than there are."""
    work = 3.5
    assert Cores(Packing(8)).run(lambda used: min(1.0, work / used), 50) == 4
    assert Cores(Packing(3)).run(lambda used: min(1.0, work / used), 50) == 3
    assert Cores(Packing(1)).run(lambda used: 1.0, 50) == 1


def test_a_slow_line_has_more_lanes() -> None:
    """Nobody is busy, but each range takes its time, and the window asks for more of them at once."""
    packing = Packing(2)
    assert not any(packing.look(tick * LOOK_S, [0.0]) for tick in range(10))
    assert [packing.look((10 + tick) * LOOK_S, [0.0], lacking=True) for tick in range(3)] == [False, True, False]


def test_one_begins_again_after_a_pause() -> None:
    """The others may have gone meanwhile."""
    cores = Cores(Packing(4))
    assert cores.run(lambda used: 1.0, 20) == 4
    cores.now += PAUSE_S
    assert cores.run(lambda used: 0.7, 2) == 1


def test_who_joins_is_asked_for_once() -> None:
    """It takes its time to start, or cannot."""
    packing = Packing(3)
    asked = [tick for tick in range(120) if packing.look(tick * LOOK_S, [tick * LOOK_S])]
    assert asked == [LOOKS]
    packing.joined(there=False)
    assert packing.used == 1
    asked = [tick for tick in range(120, 240) if packing.look(tick * LOOK_S, [tick * LOOK_S])]
    assert asked == [LOOKS + AGAIN_S / LOOK_S]
    packing.joined(there=True)
    assert packing.used == 2
    asked = [tick for tick in range(240, 250) if packing.look(tick * LOOK_S, [tick * LOOK_S] * 2)]
    assert asked == [240 + LOOKS]


def test_one_busy_look_is_not_enough() -> None:
    """As at the start of a job, when there is nothing to open yet."""
    cores, looks = Cores(Packing(4)), iter([1.0, 0.5] * 20)
    assert cores.run(lambda used: next(looks), 40) == 1


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 200.0), st.booleans()), max_size=60), st.integers(1, 8))
def test_some_take_part_whatever_is_measured(steps: list[tuple[float, float, bool]], processes: int) -> None:
    """Clocks that stand still, processes that were started anew, starts that fail."""
    packing, now, wanted = Packing(processes), 5.0, False
    for elapsed, spent, there in steps:
        now += elapsed
        if packing.due(now):
            wanted = packing.look(now, [spent] * packing.used) or wanted
        if wanted and there:
            packing.joined(there=spent > 1.0)
            wanted = False
        assert 1 <= packing.used <= processes


@pytest.mark.parametrize(
    ("config", "receives"),
    [
        (LocalConfig("/data"), True),
        (S3Config("bucket", endpoint="http://10.0.0.1:9000"), True),
        (S3Config("bucket", endpoint="HTTP://10.0.0.1:9000"), True),
        (S3Config("bucket", endpoint="https://10.0.0.1:9000"), False),
        (S3Config("bucket"), False),  # of AWS
        (SftpConfig("host", "user", "host ssh-ed25519 AAAA"), False),
    ],
)
def test_what_is_enciphered_on_its_way_is_more_than_receiving(config: RemoteConfig, receives: bool) -> None:
    """The configuration of a remote says which it is."""
    assert only_receives(config) == receives


async def test_a_process_joins_beside_those_that_are_there(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real ones: only one is there until it is too busy, and then another takes ranges, too."""
    async with opened(sealed, processes=2, slots=8) as (pool, source):
        hosts = pool.processes.hosts

        async def read() -> None:
            async with pool.lane(), pool.lane() as lane:
                await pool.read(lane, "object.smp", source.info.pin, 0, MIB)

        for _ in range(5):
            await read()
        assert [bool(host.pid) for host in hosts] == [True, False]
        monkeypatch.setattr(packing, "FULL", 0.0)
        monkeypatch.setattr(packing, "LOOK_S", 0.02)
        assert pool._joining is not None
        while pool._joining._packing.used == 1:  # the deadline is that of the pools
            await read()
        assert hosts[1].pid
        lanes = [await pool.take() for _ in range(2)]
        assert sorted(lane.worker for lane in lanes) == [0, 1]
        for lane in lanes:
            pool.give(lane)
        await read()
