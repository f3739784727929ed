"""How much one fetch process is asked at once: whoever asks without end, or reads nothing, only keeps themselves waiting."""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import msgspec
import pytest
from whole import OPERATORS, Whole, whole

from smp_proto import control as c
from smp_proto.aio import encode
from smp_proto.channel import UNREAD_BYTES_MAX, UNREAD_MESSAGES_MAX
from smp_proto.errors import UsageError
from smpd.config import Fetch
from smpd.links import fetching
from smpd.transfer.places import LISTINGS, QUESTIONS, WATCHES, Places, asker
from smpd.transfer.pool import RemotePool

FILES = 3000
SLOTS_MAX = 1024


def test_what_is_asked_at_once_fits_a_link():
    """All places taken, all lanes in use, and nothing of what is on its way read: still no limit of the link is met."""
    listings, watches = LISTINGS.jobs + LISTINGS.others, WATCHES.jobs + WATCHES.others
    questions = QUESTIONS.jobs + QUESTIONS.others
    asked = listings + watches + questions + SLOTS_MAX
    assert 2 * asked <= fetching.STREAMS_MAX  # each may be looked after by another
    assert fetching.STREAMS_MAX + listings * fetching.LISTED_AHEAD <= UNREAD_MESSAGES_MAX
    seen = len(encode(fetching.Seen(["x" * (fetching.SEEN_BYTES // fetching.SEEN_MAX)] * fetching.SEEN_MAX)))
    held = listings * fetching.LISTED_AHEAD * fetching.LISTED_BYTES + watches * seen
    assert held <= UNREAD_BYTES_MAX - (1 << 20)
    for size in (LISTINGS, WATCHES, QUESTIONS):
        assert size.each <= size.others // 2
    with pytest.raises(msgspec.ValidationError, match="slots"):
        msgspec.convert({"slots": SLOTS_MAX + 1}, Fetch)


@contextlib.asynccontextmanager
async def one_process(folder: Path) -> AsyncIterator[tuple[Whole, RemotePool]]:
    """A daemon with a remote ``r``, whose one fetch process is there; its folder has many files."""
    (folder / "r").mkdir()
    for number in range(FILES):
        (folder / "r" / f"{number:0100}").touch()
    async with whole(folder, fetch={"processes": 1}) as box:
        await anyio.to_thread.run_sync(box.daemon.remotes.add, "r", c.LocalConfig(str(folder / "r")))
        pool = await box.daemon.pools.get("r")
        await pool.probe()
        yield box, pool
        assert pool.processes.hosts[0].restarts == 0


@pytest.mark.parametrize("what", ["listings", "watches"])
async def test_questions_that_nobody_ends(tmp_path: Path, what: str) -> None:
    """Somebody who opens hundreds and takes one answer of each gets some places, and a job is answered as ever."""
    async with one_process(tmp_path) as (_, pool), anyio.create_task_group() as group:
        answered, size = anyio.Semaphore(0), LISTINGS if what == "listings" else WATCHES

        async def ask() -> None:
            asker.set("somebody(1)")
            opened = pool.list("") if what == "listings" else pool.watch("", "")
            async with contextlib.aclosing(opened) as answers:
                await anext(answers)
                answered.release()
                await anyio.sleep_forever()

        for _ in range(2 * fetching.STREAMS_MAX):
            group.start_soon(ask)
        for _ in range(size.each):
            await answered.acquire()
        assert sum([len(batch) async for batch in pool.list("")]) == FILES
        assert (await pool.stat("0" * 100)).size == 0
        with pytest.raises(anyio.WouldBlock):
            answered.acquire_nowait()
        asker.set("another(2)")
        assert sum([len(batch) async for batch in pool.list("")]) == FILES
        group.cancel_scope.cancel()


async def test_places_for_questions() -> None:
    """One of the others gets a part of what they share, all others what is left of it, and jobs what is theirs."""
    places, taken = Places(), []

    async def ask(who: str) -> None:
        asker.set(who)
        async with places.place(fetching.Delete("x")):
            taken.append(who)
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        for who in ("a", "b", "c", "d", "e", ""):
            for _ in range(QUESTIONS.jobs + 1):
                group.start_soon(ask, who)
        await anyio.wait_all_tasks_blocked()
        assert Counter(taken) == {"": QUESTIONS.jobs, **dict.fromkeys("abcd", QUESTIONS.each)}
        async with places.place(fetching.Tail("x", 1, 0)):  # it has a lane
            group.cancel_scope.cancel()
    for who in ("e", "f", ""):  # all are free again
        asker.set(who)
        async with places.place(fetching.Delete("x")):
            pass


async def test_syncs_of_one_user(tmp_path: Path) -> None:
    """One more than a user may have is refused, in words; another's is not, nor root's, nor one in place of another."""
    async with whole(tmp_path, jobs={"syncs_user_max": 2}) as box:
        (tmp_path / "r").mkdir()
        await anyio.to_thread.run_sync(box.daemon.remotes.add, "r", c.LocalConfig(str(tmp_path / "r")))

        async def add(uid: int, name: str) -> c.SyncView:
            async with box.client(uid, [OPERATORS] if uid else []) as caller:
                return await caller.call(c.SyncAdd(c.SyncSpec(name=name, source="r:")), c.SyncView)

        await add(5001, "a")
        await add(5001, "b")
        with pytest.raises(UsageError, match="has 2 syncs, which is the most allowed") as caught:
            await add(5001, "c")
        assert "jobs.syncs_user_max" in caught.value.hint
        await add(5002, "c")
        for number in range(3):
            await add(0, f"root-{number}")
        async with box.client(5001, [OPERATORS]) as caller:
            await caller.call(c.SyncControl("a", "remove"), c.SyncView)
        await add(5001, "d")
