"""The plaintext's way to a compute process: the slots of its ring, for the length of one run."""

from collections.abc import Sequence

import anyio

from smp_proto.aio import Exchange
from smp_proto.errors import ProcessorError, SmpError
from smpd.links import computing
from smpd.links.ring import Ring, Slots
from smpd.transfer.openers import Target

# The process ends its own overruns; this is for one that no longer answers.
_GRACE_S = 30.0
TO_AUTHOR = "report it to the processor's author"


class PlainRing:
    """The plaintext's way in, for one run."""

    def __init__(self, ring: Ring, exchange: Exchange, timeout_s: float) -> None:
        self._ring = ring
        self._exchange = exchange
        self._timeout_s = timeout_s
        self._slots = Slots(ring.slots)
        self._lent: dict[int, int] = {}  # slot to how many objects begin in it
        self._announced = 0  # objects, since a slot was last delivered
        self._unsent: list[computing.ToCompute] = []
        self._filled: dict[int, int] = {}  # how far each slot was ever filled
        self.delivered = 0
        self.finished = False

    @property
    def patience_s(self) -> float:
        """How long the process may be silent: its limit for each object that it has, and then some."""
        return self._timeout_s * (1 + self._announced + sum(self._lent.values())) + _GRACE_S

    async def take(self) -> int:
        """Wait for a slot the process has let go of.

        Raises:
            ProcessorError: ``processor_timeout`` when it lets go of none for far longer than its objects may take.
        """
        try:
            with anyio.fail_after(self.patience_s):
                return await self._slots.take()
        except TimeoutError:
            raise overdue(self._timeout_s) from None

    def target(self, slot: int) -> Target:
        """The slot, to write to; the view is released by whoever asked for it."""
        return Target(self._ring, slot, self._ring.slot(slot))

    async def announce(self, objects: Sequence[computing.InputObject]) -> None:
        """Name entries whose plaintext comes next; they go along with it, or with the end."""
        self._announced += len(objects)
        if self._unsent:
            await self._send()
        self._unsent.append(computing.Objects(list(objects)))

    async def deliver(self, slot: int, length: int) -> None:
        """Pass on a slot with the next ``length`` bytes; one that nothing is in is free again at once."""
        if not length:
            self._slots.give(slot)
            return
        self._lent[slot], self._announced = self._announced, 0
        self._filled[slot] = max(length, self._filled.get(slot, 0))
        offset, self.delivered = self.delivered, self.delivered + length
        await self._send(computing.Chunk(slot, offset, length))

    async def finish(self) -> None:
        """Say that this was all."""
        self.finished = True
        await self._send(computing.Finish(self.delivered))

    async def _send(self, *more: computing.ToCompute) -> None:
        unsent, self._unsent = [*self._unsent, *more], []
        await self._exchange.send_many(unsent)

    @property
    def in_use(self) -> int:
        """How many slots are taken."""
        return self._ring.slots - self._slots.free

    @property
    def filled(self) -> int:
        """How many bytes are to be zeroed."""
        return sum(self._filled.values())

    def wipe(self) -> None:
        """Zero what was filled; blocking."""
        for slot, length in self._filled.items():
            self._ring.wipe(slot, length)

    def freed(self, slot: int) -> None:
        """Take a slot back.

        Raises:
            ProcessorError: ``processor_output``; the process has not got it.
        """
        if slot not in self._lent:
            raise nonsense("let go of a slot that it does not hold")
        del self._lent[slot]
        self._slots.give(slot)


def nonsense(what: str) -> SmpError:
    """A compute process that does not keep to the protocol."""
    return ProcessorError("processor_output", f"the compute process {what}", hint=TO_AUTHOR)


def overdue(timeout_s: float) -> SmpError:
    """A processor that ran past its limit."""
    return ProcessorError(
        "processor_timeout",
        f"the processor ran past its limit of {timeout_s:g} s and was ended",
        hint="raise compute.timeout_s in the configuration, or give it less data",
    )
