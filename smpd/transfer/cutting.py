"""How an object is cut into ranges: each takes a lane and, where plaintext is wanted, a slot of the plain ring."""

from collections.abc import Callable, Iterator

from smp_proto.sealed.layout import Layout
from smpd.opening.ranges import Leaves
from smpd.transfer.lanes import RANGES_AHEAD


class Cutting:
    """The ranges of one object: whole segments, decided one range after the other by what a lane brings at that time.

    The first ones are decided once, whoever asks for them: some are fetched ahead, and asked for again later.

    Args:
        layout: of the object.
        slot_bytes: the most that a range may be.
        now: how many bytes a range had better be that is begun now.
    """

    def __init__(self, layout: Layout, slot_bytes: int, now: Callable[[], int]) -> None:
        self._layout = layout
        self._most = slot_bytes // layout.segment_bytes
        self._now = now
        self._first: list[range] = []

    @property
    def single(self) -> bool:
        """Whether the object is one range: it fits a slot."""
        return self._layout.segments <= self._most

    def span(self, segments: range) -> tuple[int, int]:
        """Where a range lies: see :meth:`Layout.span`."""
        return self._layout.span(segments)

    def first(self, index: int, have: Leaves | None = None) -> range | None:
        """One of the first ranges, which are asked for in order; None where the object has none of that number."""
        if index == len(self._first):
            at = self._first[-1].stop if self._first else 0
            if at < self._layout.segments:
                self._first.append(self._next(at, have))
        return self._first[index] if index < len(self._first) else None

    def all(self, have: Leaves | None = None) -> Iterator[range]:
        """Every range, in order. One that is decided now is known whole, of those in ``have``, or not at all."""
        at = 0
        for index in range(RANGES_AHEAD):
            found = self.first(index, have)
            if found is None:
                return
            yield found
            at = found.stop
        while at < self._layout.segments:
            found = self._next(at, have)
            yield found
            at = found.stop

    def _next(self, at: int, have: Leaves | None) -> range:
        if self.single:
            return range(self._layout.segments)
        size = max(1, min(self._most, self._now() // self._layout.segment_bytes))
        return range(at, at + have.alike(at, size) if have is not None else min(at + size, self._layout.segments))
