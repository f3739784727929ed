"""How much is asked of one fetch process at a time: what smpd asks of it never exceeds what their link may hold.

Who finds no place waits for one. Jobs have places of their own. Those of all others, which are people and syncs, are
shared out: nobody has more than a part of them, also who asks without end, or reads nothing of what is listed.
"""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import NamedTuple

import anyio

from smpd.links import fetching

# For whom a task asks: a person, or the owner of a sync. Empty in what works for a job.
asker: ContextVar[str] = ContextVar("asker", default="")


class Size(NamedTuple):
    """So many places for jobs, for all others together, and at most for each of the others."""

    jobs: int
    others: int
    each: int


LISTINGS = Size(48, 24, 6)
WATCHES = Size(0, 32, 16)  # syncs have them, and list as well
QUESTIONS = Size(256, 64, 16)


class Places:
    """The places of one fetch process. What fills a lane needs none: there are no more of these than lanes."""

    def __init__(self) -> None:
        self._listings = _Share(LISTINGS)
        self._watches = _Share(WATCHES)
        self._questions = _Share(QUESTIONS)

    @contextlib.asynccontextmanager
    async def place(self, request: fetching.Request) -> AsyncIterator[None]:
        """A place for a request, for the length of a block; whoever waits for one is served in order."""
        match request:
            case fetching.Read() | fetching.Tail() | fetching.ReadMany():
                yield
            case fetching.List():
                async with self._listings.place():
                    yield
            case fetching.Watch():
                async with self._watches.place():
                    yield
            case _:
                async with self._questions.place():
                    yield


class _Share:
    def __init__(self, size: Size) -> None:
        self._each = size.each
        self._jobs = anyio.Semaphore(size.jobs, fast_acquire=True)
        self._others = anyio.Semaphore(size.others, fast_acquire=True)
        self._of: dict[str, anyio.Semaphore] = {}
        self._users: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        who = asker.get()
        if not who:
            async with self._jobs:
                yield
            return
        own = self._of.setdefault(who, anyio.Semaphore(self._each, fast_acquire=True))
        self._users[who] += 1
        try:
            async with own, self._others:
                yield
        finally:
            self._users[who] -= 1
            if not self._users[who]:
                del self._users[who], self._of[who]
