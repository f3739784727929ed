"""A run that gets ready while another has the processor: its plaintext is put into the ring, and nobody is told of it.

So the processor does not wait while the next object is hashed and opened. Two rules make that safe. It gets half of the
slots at most, so that the run that has the processor never waits for it. And what it put there counts only for the very
process that was there then, and only if the run before it ended cleanly. Else it is brought anew: whoever had the ring
may have written to it.
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import anyio

from smpd.transfer.plain import PlainRing
from smpd.transfer.workers import Worker

Feed = Callable[[PlainRing], Awaitable[None]]


class Preparation:
    """The plaintext of one run, on its way before its turn.

    Args:
        feed: brings the plaintext; is called once more where what it brought does not count.
        plain: takes it.
        worker: the process that was there when it began.
    """

    def __init__(self, feed: Feed, plain: PlainRing, worker: Worker) -> None:
        self._feed = feed
        self.plain = plain
        self._worker = worker
        self._scope = anyio.CancelScope()
        self._over = anyio.Event()
        self._whole = False

    async def run(self) -> None:
        """Bring it; goes on when the run's turn has come. What goes wrong ends the task group that this is in."""
        try:
            with self._scope:
                await self._feed(self.plain)
                self._whole = True
        finally:
            self._over.set()

    def counts_for(self, worker: Worker) -> bool:
        """Whether this process may be given what is there. One whose run did not end cleanly was ended."""
        return worker is self._worker and worker.caller.alive

    async def fed(self, _: PlainRing) -> None:
        """Wait until all is there; for ever where it failed, since whoever waits is being cancelled then."""
        await self._over.wait()
        if not self._whole:
            await anyio.sleep_forever()

    async def stop(self) -> None:
        """When this returns nobody writes to its slots any more."""
        self._scope.cancel()
        await self._over.wait()

    async def drop(self) -> None:
        """It does not count: stop, and give its slots back."""
        await self.stop()
        self.plain.close()


class Turn(NamedTuple):
    """A run's turn: its process, where its plaintext goes, what brings it, and what has begun to before."""

    worker: Worker
    plain: PlainRing
    feed: Feed
    ready: Preparation | None = None
