"""A remote that fails is left alone and tried now and then; one that asks for patience is given it, by everyone."""

import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_proto.control import RemoteHealth
from smp_proto.errors import CODES, IntegrityError, NotFoundError, RemoteError, ResourceError, SmpError
from smpd.links.pause import ASKED_MAX_S, MOST_S, Pause
from smpd.transfer.breaker import Breaker, BreakerSettings, verdict
from smpd.transfer.gate import Gate

SETTINGS = BreakerSettings(failures=3, probe_s=1.0, probe_max_s=8.0)
UNREACHABLE = RemoteError("remote_unreachable", "h refuses the connection")

steps = st.lists(
    st.tuples(st.floats(0.0, 20.0), st.sampled_from(["answered", "failed", "busy", "probed"]), st.floats(0.0, 30.0)),
    max_size=60,
)


@given(steps, st.integers(0, 1000))
def test_the_breaker_is_what_its_rules_say(found: list[tuple[float, str, float]], seed: int) -> None:
    """It is open from the third failure in a row to the next answer, and only then; tries come ever later, to a limit."""
    breaker = Breaker(SETTINGS, random.Random(seed))
    now, row, is_open, pause_end, interval = 0.0, 0, False, 0.0, 0.0
    for after, what, asked in found:
        now += after
        if what == "answered":
            assert breaker.answered(now) == is_open
            row, is_open = 0, False
        elif what == "failed":
            row += 1
            assert breaker.failed(now, "x") == (not is_open and row >= 3)
            if not is_open and row >= 3:
                is_open, interval = True, 1.0
        elif what == "busy":
            pause_end = max(pause_end, now + breaker.busy(now, asked))
            assert pause_end - now >= asked * 0.999
            row, is_open = 0, False
        elif is_open:
            breaker.probed(now)
            interval = min(8.0, interval * 2)
            assert 0.79 * interval <= breaker.next_try - now <= 1.21 * interval
        paused = now < pause_end
        assert breaker.open == is_open
        assert breaker.state(now) == ("down" if is_open else "paused" if paused else "up")
        wait = breaker.wait_s(now)
        assert (wait > 0) == paused
        if paused:
            assert pause_end - now <= wait * 1.001 <= pause_end - now + 6.0


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 1e6)), min_size=1, max_size=40))
def test_pauses_grow_while_a_server_refuses(found: list[tuple[float, float]]) -> None:
    """Each is as long as asked, up to an hour, and not less than twice the last; a burst is one refusal."""
    pause = Pause(random.Random(1))
    now, end, times = 0.0, 0.0, 0
    for after, asked in found:
        now += after
        wanted = min(asked, ASKED_MAX_S)
        if now >= end:
            wanted = max(wanted, min(MOST_S, 0.5 * 2**times))
            times += 1
        end = max(end, now + wanted)
        assert pause.busy(now, asked) == pytest.approx(end - now)
        assert pause.left_s(now) == pytest.approx(end - now)
        assert pause.left_s(end) == 0.0
    pause.answered(end)
    assert pause.busy(end, 0.0) == pytest.approx(0.5)


def test_what_counts_as_a_failure_of_the_remote() -> None:
    """Each code is one of four things; what is final for a job is told to it and is no reason to wait."""
    said = {code: verdict(CODES[code].family(code, "x")) for code in CODES}
    assert {code for code, what in said.items() if what == "failure"} == {"remote_unreachable", "remote_failed"}
    assert {code for code, what in said.items() if what == "busy"} == {"remote_busy"}
    answers = {code for code, what in said.items() if what == "answer"}
    assert answers >= {"remote_auth", "remote_forbidden", "remote_untrusted", "no_such_object", "source_changed"}
    assert not answers & {"worker_died", "disk_full", "internal", "bad_request"}
    assert verdict(None) == "answer"
    assert verdict(RemoteError("remote_failed", "no ETag", retryable=False)) == "answer"
    assert verdict(RemoteError("remote_unreachable", "down", details={"held": "a"})) == "nothing"


class Remote:
    """A gate, and what it was told and told others."""

    def __init__(self) -> None:
        self.changes: list[RemoteHealth] = []
        self.pauses: list[float] = []
        self.probes: list[SmpError | None] = []  # what the next probes find; the last one for good
        self.probed = 0
        self.gate: Gate

    async def probe(self) -> None:
        self.probed += 1
        error = self.probes.pop(0) if len(self.probes) > 1 else self.probes[0]
        if error is not None:
            raise error

    async def ask(self, error: SmpError | None = None) -> None:
        await self.gate.enter()
        self.gate.note(error)


@contextlib.asynccontextmanager
async def remote(settings: BreakerSettings = SETTINGS, **more: Any) -> AsyncIterator[Remote]:
    found = Remote()
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            found.gate = Gate(
                "lake",
                settings,
                probe=found.probe,
                paused=found.pauses.append,
                changed=found.changes.append,
                group=group,
                **more,
            )
            yield found
            found.gate.close()


async def until(test: Callable[[], bool]) -> None:
    while not test():
        await anyio.sleep(0.001)


async def test_a_remote_that_is_down_is_not_asked() -> None:
    """After so many failures who asks is turned away with the reason; one probe at a time looks, and an answer ends it."""
    async with remote(BreakerSettings(3, 0.01, 0.05)) as lake:
        lake.probes = [UNREACHABLE] * 4 + [None]
        for _ in range(3):
            await lake.ask(UNREACHABLE)
        with pytest.raises(RemoteError, match="lake is down: h refuses") as caught:
            await lake.ask()
        assert caught.value.details["held"] == "lake"
        assert (caught.value.code, caught.value.retryable) == ("remote_unreachable", True)
        assert lake.gate.health.state == "down"
        assert lake.gate.health.code == "remote_unreachable"
        await until(lambda: len(lake.changes) == 2)
        await lake.ask()
        assert lake.probed == 5
    assert [each.state for each in lake.changes] == ["down", "up"]


@pytest.mark.parametrize("code", ["remote_auth", "remote_untrusted", "remote_forbidden"])
async def test_what_is_final_is_not_hidden_behind_the_breaker(code: str) -> None:
    """When the server is back and refuses, jobs are let through, to be told so."""
    async with remote(BreakerSettings(1, 0.01, 0.02)) as lake:
        lake.probes = [RemoteError(code, "x")]
        await lake.ask(UNREACHABLE)
        await until(lambda: lake.gate.health.state == "up")
        await lake.ask(RemoteError(code, "x"))
        await lake.ask()


async def test_one_object_that_fails_is_not_named_to_others() -> None:
    """What a server said of one object is not told to who asks for another."""
    async with remote(BreakerSettings(1, 60.0, 60.0)) as lake:
        await lake.ask(RemoteError("remote_failed", "doe.smp: the server answered 500"))
        with pytest.raises(RemoteError) as caught:
            await lake.ask()
        assert "doe" not in caught.value.message + caught.value.hint


def test_after_a_pause_each_begins_at_a_moment_of_its_own() -> None:
    """All at once they would be refused once more."""
    breaker = Breaker(SETTINGS, random.Random(1))
    breaker.busy(0.0, 1.0)
    assert len({breaker.wait_s(0.0) for _ in range(20)}) == 20


async def test_a_pause_is_everyones() -> None:
    """As long as the server asked for; the processes are told at once."""
    async with remote() as lake:
        began = anyio.current_time()
        await lake.ask(RemoteError("remote_busy", "slow down", details={"retry_after": 0.3}))
        assert lake.pauses == [pytest.approx(0.5, abs=0.01)]  # at least the first pause of our own
        times: list[float] = []

        async def one() -> None:
            await lake.ask()
            times.append(anyio.current_time() - began)

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(one)
        assert min(times) >= 0.45
        assert len(times) == 20
        assert lake.gate.health.state == "up"


async def test_who_would_wait_long_gives_its_place_away() -> None:
    """A pause of minutes turns jobs away, as if the remote were down, and says that it is none."""
    async with remote() as lake:
        await lake.ask(RemoteError("remote_busy", "b asked us to slow down", details={"retry_after": 600}))
        with pytest.raises(RemoteError, match="lake is pausing: b asked us") as caught:
            await lake.ask()
        assert (caught.value.code, caught.value.details["held"]) == ("remote_busy", "lake")
        assert caught.value.details["retry_after"] == pytest.approx(600, abs=1)


async def test_faults_of_this_machine_say_nothing_of_the_remote() -> None:
    """Neither for it nor against it; an object that is not there, or is bad, is an answer."""
    async with remote() as lake:
        await lake.ask(UNREACHABLE)
        for _ in range(9):
            await lake.ask(ResourceError("disk_full", "x"))
        assert lake.gate.health.failures == 1
        for error in (NotFoundError("no_such_object", "x"), IntegrityError("source_changed", "x")):
            await lake.ask(UNREACHABLE)
            await lake.ask(error)
            assert lake.gate.health.failures == 0


async def test_probes_become_rarer() -> None:
    """A remote that stays down is not hammered, whatever its probes find."""
    for found in (UNREACHABLE, ResourceError("worker_died", "x"), RemoteError("remote_failed", "x")):
        async with remote(BreakerSettings(1, 0.05, 0.2)) as lake:
            lake.probes = [found]
            await lake.ask(UNREACHABLE)
            await anyio.sleep(1.0)
            assert 1 <= lake.probed <= 9  # at 0.05, 0.1 and then each 0.2 s, all less a fifth
            assert lake.gate.health.state == "down"
