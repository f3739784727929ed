"""The plaintext's way to a compute process: the slots of its ring, for the run under way and the one behind it."""

from collections.abc import Sequence

import anyio

from smp_proto.aio import Exchange
from smp_proto.errors import ProcessorError, SmpError
from smpd.links import computing
from smpd.links.ring import Ring, Slots
from smpd.transfer.openers import Target

# The process ends its own overruns; this is for one that no longer answers.
_GRACE_S = 30.0
_AT_ONCE_BYTES = 1 << 20  # zeroed in 20 µs, a fraction of what handing it to a thread takes
_TOGETHER = 8  # messages in one go; each of entries is half a MiB at most
TO_AUTHOR = "report it to the processor's author"


class PlainSlots:
    """Who holds which slot of a plain ring, and what lies in them. Belongs to the event loop's thread."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.slots = Slots(ring.slots)
        self._filled: dict[int, int] = {}  # how far each slot was filled since it was zeroed

    @property
    def behind(self) -> int:
        """How many slots a run may take while another has the process: that one always gets some."""
        return self.ring.slots // 2

    @property
    def in_use(self) -> int:
        """How many slots are taken."""
        return self.ring.slots - self.slots.free

    def filled(self, slot: int, length: int) -> None:
        """Note that a slot is no longer zero."""
        self._filled[slot] = max(length, self._filled.get(slot, 0))

    async def zero(self) -> None:
        """Zero what was filled and nobody holds. Not to be cancelled."""
        taken = self.slots.take_those(self._filled)
        lengths = {slot: self._filled.pop(slot) for slot in taken}
        try:
            await wipe(self.ring, lengths)
        finally:
            for slot in taken:
                self.slots.give(slot)

    async def zero_all(self) -> None:
        """Zero everything, also what is there for another run: the process that is gone may have written anywhere."""
        self._filled.clear()
        await wipe(self.ring, dict.fromkeys(range(self.ring.slots), self.ring.slot_bytes))


async def wipe(ring: Ring, lengths: dict[int, int]) -> None:
    """Zero so much of these slots."""

    def work() -> None:
        for slot, length in lengths.items():
            ring.wipe(slot, length)

    if sum(lengths.values()) <= _AT_ONCE_BYTES:
        work()
    else:
        await anyio.to_thread.run_sync(work)


class PlainRing:
    """The plaintext's way in, for one run. Until it has begun what is to be said to the process waits here."""

    def __init__(self, slots: PlainSlots, timeout_s: float) -> None:
        self._slots = slots
        self._exchange: Exchange | None = None
        self._begun = anyio.Event()
        self._timeout_s = timeout_s
        self._held: set[int] = set()
        self._written: set[int] = set()  # of these, those of which it is not known yet how far they are filled
        self._lent: dict[int, int] = {}  # slot to how many objects begin in it
        self._announced = 0  # objects, since a slot was last delivered
        self._unsent: list[computing.ToCompute] = []
        self.delivered = 0
        self.finished = False

    async def begin(self, exchange: Exchange) -> None:
        """The process has the run: say what is there already."""
        self._exchange = exchange
        self._begun.set()
        if self._lent:
            await self._send()

    @property
    def begun(self) -> bool:
        """Whether the process has the run."""
        return self._exchange is not None

    async def turn(self) -> None:
        """Wait until the process has the run."""
        await self._begun.wait()

    def close(self) -> None:
        """Give all slots back, once nobody writes to them any more."""
        for slot in self._written:  # whoever wrote there failed, or was stopped
            self._slots.filled(slot, self._slots.ring.slot_bytes)
        for slot in self._held:
            self._slots.slots.give(slot)
        self._written.clear()
        self._held.clear()

    @property
    def patience_s(self) -> float:
        """How long the process may be silent: its limit for each object that it has, and then some."""
        return self._timeout_s * (1 + self._announced + sum(self._lent.values())) + _GRACE_S

    async def take(self) -> int:
        """Wait for a slot the process has let go of; before the run has begun, for one of those it may have then.

        Raises:
            ProcessorError: ``processor_timeout`` when it lets go of none for far longer than its objects may take.
        """
        while not self.begun and len(self._held) >= self._slots.behind:
            await self.turn()
        try:
            with anyio.fail_after(self.patience_s if self.begun else None):
                slot = await self._slots.slots.take()
        except TimeoutError:
            raise overdue(self._timeout_s) from None
        self._held.add(slot)
        return slot

    def target(self, slot: int) -> Target:
        """The slot, to write to; the view is released by whoever asked for it."""
        self._written.add(slot)
        return Target(self._slots.ring, slot, self._slots.ring.slot(slot))

    async def announce(self, objects: Sequence[computing.InputObject]) -> None:
        """Name entries whose plaintext comes next; they go along with it, or with the end."""
        self._announced += len(objects)
        if self._unsent and self.begun:
            await self._send()
        self._unsent.append(computing.Objects(list(objects)))

    async def deliver(self, slot: int, length: int) -> None:
        """Pass on a slot with the next ``length`` bytes; one that nothing is in is free again at once."""
        self._written.discard(slot)
        if not length:
            self._give(slot)
            return
        self._slots.filled(slot, length)
        self._lent[slot], self._announced = self._announced, 0
        offset, self.delivered = self.delivered, self.delivered + length
        self._unsent.append(computing.Chunk(slot, offset, length))
        await self._send()

    async def finish(self) -> None:
        """Say that this was all."""
        self.finished = True
        self._unsent.append(computing.Finish(self.delivered))
        await self._send()

    async def _send(self) -> None:
        # Piece by piece, since very many entries may have waited here; in order, whoever else sends meanwhile.
        while self._exchange is not None and self._unsent:
            some, self._unsent = self._unsent[:_TOGETHER], self._unsent[_TOGETHER:]
            await self._exchange.send_many(some)

    def _give(self, slot: int) -> None:
        self._held.discard(slot)
        self._slots.slots.give(slot)

    def freed(self, slot: int) -> None:
        """Take a slot back.

        Raises:
            ProcessorError: ``processor_output``; the process has not got it.
        """
        if slot not in self._lent:
            raise nonsense("let go of a slot that it does not hold")
        del self._lent[slot]
        self._give(slot)


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
