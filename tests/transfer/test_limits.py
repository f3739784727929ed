"""Rates and quiet hours: reading them, what holds when, tokens, and who may go on in which order."""

import math
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smp_proto.errors import RemoteError, UsageError
from smpd.config import Limits, RemoteLimits
from smpd.jobs.holding import Holding
from smpd.links.fetching import Read, ReadMany, Stat, Whole
from smpd.schedules import DAYS, Rule, Schedule, check_times, parse_entries, parse_entry
from smpd.transfer.lanes import Lane, rank
from smpd.transfer.limiting import Limiter, RemoteLimiter
from smpd.transfer.tokens import BURST_S, Bucket

MIB = 1 << 20
BERLIN = ZoneInfo("Europe/Berlin")
# Half an hour of daylight-saving time; none; a whole hour in the other half of the year.
ZONES = [ZoneInfo(name) for name in ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC")]


# ── reading ──


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("daily 00:00-24:00 20 MB/s", Rule(20e6)),
        ("mon  00:00-24:00  1.5 MiB/s", Rule(1.5 * MIB)),
        ("daily 08:00-18:00 100 Mbit/s", Rule(12.5e6)),
        ("daily 08:00-18:00 100kB/s", Rule(1e5)),
        ("daily 00:00-24:00 unlimited", Rule(math.inf)),
        ("sun-tue 00:00-24:00 quiet", Rule(7.0, quiet=True)),
        ("daily 00:00-24:00 0.5 requests/s", Rule(7.0, 0.5)),
    ],
)
def test_what_an_entry_says(text: str, rule: Rule) -> None:
    """On a Monday at noon."""
    noon = datetime(2026, 11, 23, 12, tzinfo=BERLIN).timestamp()
    assert Schedule(Rule(7.0), parse_entries([text]), BERLIN).at(noon) == rule


@pytest.mark.parametrize(
    "text",
    [
        "", "quiet", "daily quiet", "08:00-09:00 quiet", "mon-fr 08:00-09:00 quiet", "mon,tue 08:00-09:00 quiet",
        "daily 8:00-09:00 quiet", "daily 08:60-09:00 quiet", "daily 24:00-09:00 quiet", "daily 08:00-24:01 quiet",
        "daily 08:00-08:00 quiet", "daily 08:00-09:00 0 MB/s", "daily 08:00-09:00 5 MB", "daily 08:00-09:00 5 mb/s",
        "daily 08:00-09:00 -5 MB/s", "daily 08:00-09:00 inf MB/s", "daily 08:00-09:00 1e9 MB/s", "daily 08:00-09:00 loud",
        "daily 08:00-09:00 0 requests/s",
    ],
)  # fmt: skip
def test_what_is_no_entry(text: str) -> None:
    """It is named, with what it should be and an example."""
    with pytest.raises(UsageError, match="is no time") as caught:
        parse_entry(text)
    assert "mon-fri 07:00-19:00 20 MB/s" in caught.value.hint


@given(st.text("abdefinoqrstuy 0123456789:-./MBks", max_size=40))
def test_any_text_is_an_entry_or_refused(text: str) -> None:
    """Nothing else comes of it."""
    try:
        entry = parse_entry(text)
    except UsageError:
        return
    assert entry.quiet or entry.bytes_per_s or entry.requests_per_s


def test_zones() -> None:
    """A zone that is not there, or is no zone, is refused; the system's needs no name."""
    check_times("", {})
    check_times("Europe/Berlin", {"limits": ["daily 01:00-02:00 quiet"]})
    for zone in ("Nowhere/Land", "../../etc/passwd", "/etc/localtime", "europe berlin"):
        with pytest.raises(UsageError, match="no time zone"):
            check_times(zone, {})
    with pytest.raises(UsageError, match=r"limits.lake.times: 'x' is no time"):
        check_times("", {"limits.lake": ["x"]})


# ── what holds when ──

minutes = st.integers(0, 1439)
hours = st.tuples(minutes, minutes).filter(lambda pair: pair[0] != pair[1])
entries = st.tuples(
    st.sampled_from([*DAYS, "daily", "mon-fri", "sat-sun", "fri-mon"]), hours, st.sampled_from(["quiet", "5 MB/s"])
)
# Around the days on which clocks are set, in both halves of the year and of the world.
moments = st.builds(
    lambda day, minute: datetime(*day, tzinfo=UTC).timestamp() + minute * 60,
    st.sampled_from(
        [(2026, 3, 28), (2026, 10, 24), (2026, 3, 7), (2026, 10, 31), (2026, 4, 4), (2026, 10, 3), (2026, 7, 1)]
    ),
    st.integers(0, 3 * 1440),
)


def texts(drawn: list[tuple[str, tuple[int, int], str]]) -> list[str]:
    return [f"{days} {a // 60:02}:{a % 60:02}-{b // 60:02}:{b % 60:02} {what}" for days, (a, b), what in drawn]


@settings(max_examples=60)
@given(st.lists(entries, max_size=3), moments, st.sampled_from(ZONES))
@example(
    [("sun", (150, 240), "quiet")], datetime(2026, 3, 28, 12, tzinfo=UTC).timestamp(), BERLIN
)  # begins in an hour left out
@example(
    [("sun", (120, 150), "quiet")], datetime(2026, 10, 24, 12, tzinfo=UTC).timestamp(), BERLIN
)  # in one that is repeated
@example(
    [("sun", (120, 150), "quiet")], datetime(2026, 10, 25, 1, 5, tzinfo=UTC).timestamp(), BERLIN
)  # the second time
def test_the_next_change(drawn: list[tuple[str, tuple[int, int], str]], when: float, zone: ZoneInfo) -> None:
    """Until then what holds is the same in every minute, and from then on another, also where clocks are set."""
    schedule = Schedule(Rule(), parse_entries(texts(drawn)), zone)
    rule, left_s = schedule.at(when), schedule.until_change(when)
    assert left_s == Schedule(Rule(), parse_entries(texts(drawn)), zone).until_change(when)
    assert left_s > 0
    look = min(left_s, 30 * 3600.0)
    for at in range(0, math.ceil(look), 600):
        assert schedule.at(when + at) == rule
    if left_s < math.inf:
        assert schedule.at(when + left_s - 1) == rule != schedule.at(when + left_s)
        assert schedule.until_change(when + left_s / 2) == pytest.approx(left_s / 2)
    else:
        assert all(schedule.at(when + hour * 3600) == rule for hour in range(24 * 7))


def test_across_midnight() -> None:
    """Hours that pass midnight belong to the day on which they begin."""
    schedule = Schedule(Rule(), parse_entries(["fri 22:00-06:00 quiet"]), ZoneInfo("UTC"))
    friday = datetime(2026, 11, 27, tzinfo=UTC)
    quiet = [schedule.at((friday + timedelta(hours=hour)).timestamp()).quiet for hour in (5, 21, 22, 29, 30, 46)]
    assert quiet == [False, False, True, True, False, False]
    assert schedule.clock((friday + timedelta(hours=30)).timestamp()) == "sat 06:00"


def test_an_hour_left_out_and_one_repeated() -> None:
    """02:00 to 03:00 in Berlin: nothing on the day the clocks go forward, two hours on the day they go back."""
    schedule = Schedule(Rule(), parse_entries(["daily 02:00-03:00 quiet"]), BERLIN)
    for month, day, expected in ((3, 29, 0), (6, 1, 60), (10, 25, 120)):
        start = datetime(2026, month, day, tzinfo=BERLIN).timestamp()
        assert sum(schedule.at(start + minute * 60).quiet for minute in range(23 * 60)) == expected


# ── tokens ──

steps = st.lists(
    st.tuples(st.floats(0, 5), st.floats(0, 100), st.sampled_from([None, None, None, 1.0, 10.0, 50.0, math.inf])),
    max_size=40,
)


@given(st.floats(0.1, 100), st.lists(st.tuples(st.floats(0, 5), st.floats(0, 100)), min_size=1, max_size=60))
def test_no_more_than_flows_in(rate: float, asked: list[tuple[float, float]]) -> None:
    """Whoever takes only when told so takes no more than the rate gives, a burst, and the last thing besides."""
    now = taken = 0.0
    bucket = Bucket(rate, now)
    for pause, count in asked:
        now += pause
        wait = bucket.wait_s(now)
        if wait > 0:
            before = bucket.wait_s(now + wait * 0.9)
            assert before > 0
            now += wait * 1.000001
        assert bucket.wait_s(now) <= 1e-6
        assert taken <= rate * (now + BURST_S) + 1e-3
        bucket.take(count, now)
        taken += count


@given(steps)
def test_rates_that_change(steps: list[tuple[float, float, float | None]]) -> None:
    """Nobody ever waits longer than the debt takes at the rate that holds; without a limit nobody waits."""
    now, bucket, taken = 0.0, Bucket(10.0, 0.0), 0.0
    for pause, count, rate in steps:
        now += pause
        if rate is not None:
            bucket.set_rate(rate, now)
        bucket.take(count, now)
        taken = 0.0 if math.isinf(bucket.rate) else taken + count
        assert 0.0 <= bucket.wait_s(now) <= taken / bucket.rate + 1e-6


def test_what_is_given_back() -> None:
    """It can be taken again, and is no more than a burst."""
    bucket = Bucket(10.0, 0.0)
    bucket.take(110.0, 0.0)
    assert bucket.wait_s(0.0) == 10.0
    bucket.take(-90.0, 0.0)
    assert bucket.wait_s(0.0) == 1.0
    bucket.take(-1000.0, 0.0)
    bucket.take(10.0, 0.0)
    assert bucket.wait_s(0.0) == 0.0
    bucket.take(1.0, 0.0)
    assert bucket.wait_s(0.0) == 0.1


# ── the limiter ──


class Clocks:
    """A clock that goes when it is told to, and one on the wall."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall = datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp()


def limiter(clocks: Clocks, limits: Limits | None = None, **remotes: RemoteLimits) -> Limiter:
    return Limiter(limits or Limits(), remotes, lambda: clocks.now, lambda: clocks.wall)


async def test_who_waits_goes_by_rank_then_in_order() -> None:
    """Across remotes, under a limit on all; one whose own limit holds it up holds nobody else up."""
    clocks, order = Clocks(), []
    box = limiter(clocks, Limits(bytes_per_s=100), slow=RemoteLimits(bytes_per_s=1))

    async def ask(name: str, what: str, urgency: int) -> None:
        rank.set(urgency)
        await box.admit(name, 100.0)
        order.append(what)

    async with anyio.create_task_group() as group:
        await box.admit("slow", 200.0)  # the burst, and a second more; of the slow one 199 seconds
        for name, what, urgency in (
            ("slow", "slow", 0),
            ("a", "a low", 3),
            ("b", "b", 2),
            ("a", "a", 2),
            ("a", "a now", 0),
        ):
            group.start_soon(ask, name, what, urgency)
            await anyio.wait_all_tasks_blocked()
        assert box.waiting == 5
        for expected in (["a now"], ["a now", "b"], ["a now", "b", "a"], ["a now", "b", "a", "a low"]):
            clocks.now += 1.001
            box._serve()
            await anyio.wait_all_tasks_blocked()
            assert order == expected
        clocks.now += 300
        box._serve()
    assert order[-1] == "slow"


async def test_a_turn_that_comes_while_it_is_looked_at() -> None:
    """Time goes on between any two looks at the clock; nobody misses a turn by that."""
    clocks = Clocks()

    def ticking() -> float:
        clocks.now += 0.00007
        return clocks.now

    box = Limiter(Limits(bytes_per_s=1000), {}, ticking, lambda: clocks.wall)
    with anyio.fail_after(20):  # a turn that is missed is seen after 30 seconds
        for count in range(40):
            await box.admit("lake", 0.1 * count + 25 * (count == 0) * 40)


async def test_an_asker_that_leaves() -> None:
    """It takes nothing along, whether it was let go or not."""
    clocks = Clocks()
    box = limiter(clocks, Limits(bytes_per_s=100))
    lake = RemoteLimiter(box, "lake")

    async def never() -> Lane:
        await anyio.sleep_forever()
        raise AssertionError

    await box.admit("a", 200.0)
    for passed in (0.0, 1.0):
        async with anyio.create_task_group() as group:
            group.start_soon(lake.lane, never, 1000.0)
            await anyio.wait_all_tasks_blocked()
            clocks.now += passed
            box._serve()  # let go the second time, and then cancelled before it ran
            group.cancel_scope.cancel()
        assert box.waiting == 0
    assert free_in(box, "a") == 0.0


def free_in(box: Limiter, name: str) -> float:
    return box._wait_s(name)


async def test_what_a_lane_brings_is_reserved_first() -> None:
    """A range costs what it asked for, again when it is asked for again; a lane that asked for nothing costs nothing."""
    clocks = Clocks()
    box = limiter(clocks, lake=RemoteLimits(bytes_per_s=100, requests_per_s=10.0))
    lake, lane = RemoteLimiter(box, "lake"), Lane(1, 2)

    async def take() -> Lane:
        return lane

    assert await lake.lane(take, 1000.0) == lane
    assert free_in(box, "lake") == 9.0
    lake.release(lane)
    assert free_in(box, "lake") == 0.0
    await lake.lane(take, 1000.0)
    await lake.asks(Read("p", "pin", 0, 300, 2), 1)
    assert free_in(box, "lake") == 2.0
    await lake.asks(Read("p", "pin", 0, 300, 2), 1)
    assert free_in(box, "lake") == 5.0
    lake.release(lane)
    assert free_in(box, "lake") == 5.0
    clocks.now += 100
    await lake.lane(take, 1000.0)
    await lake.asks(ReadMany([Whole("p", "pin", 1, each) for each in range(31)], 2), 1)
    assert free_in(box, "lake") == 2.1  # 31 requests, 10 of them at once
    lake.release(lane)
    clocks.now += 100
    await lake.asks(Stat("p"), 0)
    assert lake.limits_bytes

    async def broken() -> Lane:
        raise RemoteError("remote_failed", "no")

    with pytest.raises(RemoteError):
        await lake.lane(broken, 1e6)
    assert free_in(box, "lake") == 0.0


async def test_an_upload_pays_as_it_goes() -> None:
    """It waits for what it sent, and those who read wait for it, too."""
    clocks = Clocks()
    box = limiter(clocks, Limits(bytes_per_s=1 << 40))
    await box.sent("lake", 5.0)  # no time at all
    assert RemoteLimiter(box, "lake").limits_bytes
    assert not RemoteLimiter(limiter(clocks), "lake").limits_bytes
    box.configure(Limits(bytes_per_s=100), {})
    async with anyio.create_task_group() as group:
        group.start_soon(box.sent, "lake", 1000.0)
        await anyio.wait_all_tasks_blocked()
        assert (box.waiting, free_in(box, "other")) == (1, 9.0)
        group.cancel_scope.cancel()
    assert box.waiting == 0


async def test_quiet_hours() -> None:
    """A remote is left alone by its own hours or by those of all; a job waits them out, however long, as one that was held."""
    clocks = Clocks()
    box = limiter(
        clocks,
        Limits(times=("fri 13:00-15:00 quiet",), zone="UTC"),
        lake=RemoteLimits(times=("fri 11:00-12:30 quiet",)),
    )
    assert box.quiet("other") is None
    error = box.quiet("lake")
    assert error is not None
    assert (error.code, error.retryable, error.details["held"]) == ("quiet_hours", True, "lake")
    assert "until fri 12:30" in error.message
    clocks.wall += 3600
    assert box.quiet("other") is not None
    clocks.wall -= 7200  # a clock that is set is another time
    assert (box.quiet("other"), box.quiet("lake") is None) == (None, False)
    holding = Holding(30.0, lambda: clocks.now)
    assert holding.waits("job", error)
    clocks.now += 1e6
    assert holding.waits("job", error)
    assert holding.again_s(error) == 60.0


def test_what_holds_now_is_shown() -> None:
    """Rates and quiet hours with when they change; nothing where there is no limit."""
    clocks = Clocks()
    assert limiter(clocks).views() == []
    times = ("fri 11:00-12:30 5 MB/s", "fri 12:00-13:00 quiet")
    (view,) = limiter(clocks, Limits(zone="UTC"), lake=RemoteLimits(requests_per_s=3.0, times=times)).views()
    assert (view.name, view.bytes_per_s, view.requests_per_s, view.quiet) == ("lake", 5e6, 3.0, True)
    assert (view.changes_s, view.waiting) == (1800.0, 0)
