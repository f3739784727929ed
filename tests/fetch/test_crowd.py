"""How many requests are under way at one server."""

import math

import anyio
import anyio.lowlevel
import pytest
from fetch_link import fetch_in_process
from hypothesis import given
from hypothesis import strategies as st
from scripted_http import DATA, ETAG, Asked, Peer, answer, scripted

from smp_proto.control import S3Config, S3Secret
from smpd.fetch.crowd import BUSY_S, FORGET_S, GOOD_ANSWERS, Crowd, rank
from smpd.fetch.http import Origin, Pool, trusting
from smpd.fetch.pins import etag_pin
from smpd.links.fetching import Deadlines, ManyRead, Read, ReadMany, Whole

OBJECTS = 96
LATE_S = 0.03


async def enter_all(crowd: Crowd, count: int) -> tuple[int, int]:
    """Have so many come; how many are inside once nothing moves, and how many ever came in at once."""
    inside = peak = 0
    leave = anyio.Event()

    async def one() -> None:
        nonlocal inside, peak
        async with crowd:
            inside += 1
            peak = max(peak, inside)
            await leave.wait()
            inside -= 1

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(one)
        await anyio.wait_all_tasks_blocked()
        found = inside
        leave.set()
    return found, peak


async def test_as_many_as_the_lateness_is_worth() -> None:
    """Few at a server beside us; at one far away as many as its answers take longer than our own part."""
    crowd = Crowd(4, 32)
    assert await enter_all(crowd, 50) == (4, 4)
    crowd.answered(20 * BUSY_S)
    assert await enter_all(crowd, 50) == (20, 20)
    crowd.answered(1000 * BUSY_S)  # slower than another: it waited for something
    assert await enter_all(crowd, 50) == (20, 20)
    crowd.answered(BUSY_S)
    await enter_all(crowd, 20)  # those that are inside stay, and leave no room behind
    assert await enter_all(crowd, 50) == (4, 4)


async def test_never_more_than_there_may_be() -> None:
    """Nor where that is fewer than the least."""
    crowd = Crowd(4, 32)
    crowd.answered(10.0)
    assert await enter_all(crowd, 50) == (32, 32)
    assert await enter_all(Crowd(4, 2), 50) == (2, 2)


async def test_after_a_pause_it_is_seen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quickest answer does not count for ever: the way to the server may be another."""
    crowd, now = Crowd(4, 32), 1000.0
    monkeypatch.setattr(anyio, "current_time", lambda: now)
    await enter_all(crowd, 1)
    crowd.answered(BUSY_S)
    now += FORGET_S / 2
    await enter_all(crowd, 1)
    crowd.answered(20 * BUSY_S)
    assert crowd.at_once == 4
    now += FORGET_S * 1.1
    await enter_all(crowd, 1)
    crowd.answered(20 * BUSY_S)
    assert crowd.at_once == 20


async def test_a_server_that_refuses_is_asked_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """By half as many, down to one; what was asked before that says nothing new."""
    crowd, now = Crowd(4, 32), 1000.0
    monkeypatch.setattr(anyio, "current_time", lambda: now)
    crowd.answered(20 * BUSY_S)
    for left in (10, 5, 2, 1, 1):
        now += 1.0
        for _ in range(9):  # one burst
            crowd.refused(now - 0.5)
        assert crowd.at_once == left
        assert await enter_all(crowd, 20) == (left, left)


async def test_one_more_after_a_while_of_good_answers() -> None:
    """Up to what it is worth; each time after so many for each that is under way."""
    crowd = Crowd(4, 32)
    await enter_all(crowd, 1)
    crowd.answered(6 * BUSY_S)
    crowd.refused(anyio.current_time())
    for allowed in (3, 4, 5, 6, 6):
        assert crowd.at_once == allowed
        for _ in range(GOOD_ANSWERS * allowed):
            assert crowd.at_once == allowed
            crowd.answered(1.0)
        assert await enter_all(crowd, 20) == (crowd.at_once, crowd.at_once)
    crowd.answered(5 * BUSY_S)
    assert crowd.at_once == 5


@given(st.integers(1, 20), st.integers(1, 80), st.lists(st.none() | st.floats(0, 1)))
async def test_the_room_is_what_it_says(least: int, most: int, answers: list[float | None]) -> None:
    """Whatever came before, as many come in as it says."""
    crowd = Crowd(least, most)
    await enter_all(crowd, 1)
    good = [seconds for seconds in answers if seconds is not None]
    for seconds in answers:
        if seconds is None:
            crowd.refused(anyio.current_time())
        else:
            crowd.answered(seconds)
        await enter_all(crowd, most)
    assert await enter_all(crowd, most + 1) == (crowd.at_once, crowd.at_once)
    worth = max(min(least, most), min(most, math.ceil(min(good) / BUSY_S))) if good else min(least, most)
    assert 1 <= crowd.at_once <= worth
    if good == answers:
        assert crowd.at_once == worth


async def test_a_late_server_is_asked_for_many_objects_at_once() -> None:
    """Each answer begins late, so more requests are under way than there are lanes; all objects come."""
    inside = peak = 0

    async def late(peer: Peer, asked: Asked) -> bool:
        nonlocal inside, peak
        inside += 1
        peak = max(peak, inside)
        await anyio.sleep(LATE_S)  # the length of the way, which is what is tried
        inside -= 1
        await peer.send(answer(asked) + asked.body)
        return True

    wanted = [Whole(str(number), etag_pin(len(DATA), ETAG), len(DATA), 0) for number in range(OBJECTS)]
    async with scripted({each.path: late for each in wanted}) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path")
        async with fetch_in_process(config, S3Secret("k", "s"), connections=64) as link:
            assert await link.read_many(wanted) == ([DATA] * OBJECTS, {})
    assert 16 < peak <= 64


async def test_those_who_wait_come_in_by_rank() -> None:
    """Then in order; who goes while it waits, or as it is let in, leaves no gap and keeps no room."""
    crowd, order = Crowd(1, 1), list[str]()
    scopes = {name: anyio.CancelScope() for name in ("early", "late")}

    async def one(name: str, urgency: int) -> None:
        rank.set(urgency)
        with scopes.get(name, anyio.CancelScope()):
            async with crowd:
                order.append(name)
                await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        async with crowd:
            for name, urgency in (("d", 3), ("b", 1), ("early", 0), ("late", 0), ("c", 1), ("a", 0)):
                group.start_soon(one, name, urgency)
                await anyio.wait_all_tasks_blocked()
            scopes["early"].cancel()
            await anyio.wait_all_tasks_blocked()
            scopes["late"].cancel()
    assert order == ["a", "b", "c", "d"]
    assert await enter_all(crowd, 3) == (1, 1)


async def test_an_urgent_object_does_not_wait_for_all_that_were_asked_for_before() -> None:
    """What was begun goes on, and the urgent one is next."""
    asked_for: list[str] = []
    go = anyio.Event()

    async def held(peer: Peer, asked: Asked) -> bool:
        asked_for.append(asked.head.split(" ")[1].rpartition("/")[2])
        await go.wait()
        await peer.send(answer(asked) + asked.body)
        return True

    pin = etag_pin(len(DATA), ETAG)
    bulk = [Whole(f"bulk{number}", pin, len(DATA), 0) for number in range(12)]
    async with scripted(dict.fromkeys([*(each.path for each in bulk), "urgent"], held)) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path")
        async with fetch_in_process(config, S3Secret("k", "s"), connections=2) as link:
            async with anyio.create_task_group() as group:
                for slot in range(3):
                    part = bulk[4 * slot : 4 * slot + 4]
                    group.start_soon(link.caller.call, ReadMany(part, slot, rank=3), ManyRead)
                while len(asked_for) < 2:
                    await anyio.sleep(0.001)
                await anyio.wait_all_tasks_blocked()
                group.start_soon(link.caller.call, Read("urgent", pin, 0, len(DATA), 3, rank=0), type(None))
                await anyio.wait_all_tasks_blocked()
                go.set()
            assert asked_for.index("urgent") == 2
            assert len(asked_for) == 13


async def test_who_only_uploads_has_more_under_way_again() -> None:
    """Bodies that are taken are good answers, too: else there was one at a time for as long as nothing is read."""
    refused = 0

    async def script(peer: Peer, asked: Asked) -> bool:
        nonlocal refused
        await peer.reader.readexactly(asked.length)
        status = "200 OK" if refused == 2 else "503 Slow Down"
        refused += refused < 2
        await peer.send(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        return True

    async with scripted({"x": script}) as endpoint:
        pool = Pool(Origin.of(endpoint), trusting("", secure=False), 4, Deadlines())
        head = b"PUT /x HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\n\r\n"
        for _ in range(2 + GOOD_ANSWERS):
            await pool.ask("PUT", head, b"1")
        assert pool._crowd.at_once == 2
        await pool.aclose()
