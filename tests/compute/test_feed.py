"""The plaintext side of a run by itself: whatever the sizes and whatever is read, each window holds its own bytes."""

import contextlib
import queue

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smp_proto.errors import ProcessorError
from smpd.compute.device import Device
from smpd.compute.feed import Clock, Feed, Results
from smpd.links.computing import Chunk, InputEntry
from smpd.processors import Output

SLOT_BYTES = 16
sizes = st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 5]), st.integers(0, 40), st.integers(0, 3)), max_size=30)


class Producer:
    """Fills slots in order as they come back, so that a window read too late would show other bytes."""

    def __init__(self, plain: bytes, lengths: list[int]) -> None:
        self.slots = [torch.zeros(SLOT_BYTES, dtype=torch.uint8) for _ in range(2)]
        self.chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        self._plain, self._lengths, self._offset = plain, lengths, 0
        for slot in range(len(self.slots)):
            self.fill(slot)

    def fill(self, slot: int, _fence: "torch.Event | None" = None) -> None:
        part = self._plain[self._offset : self._offset + (self._lengths.pop() if self._lengths else SLOT_BYTES)]
        if part:
            self.slots[slot][: len(part)] = torch.frombuffer(bytearray(part), dtype=torch.uint8)
            self.chunks.put(Chunk(slot, self._offset, len(part)))
            self._offset += len(part)


@given(sizes, st.lists(st.integers(1, SLOT_BYTES), max_size=40), st.booleans(), st.integers(0, 30))
def test_windows_are_the_entries(layout: list[tuple[int, int, int]], lengths: list[int], told: bool, late: int) -> None:
    """Entries with gaps between them, in slots filled to any length, of each of which some windows are read."""
    entries, reads, end = [], [], 0
    for gap, size, read in layout:
        entries.append(InputEntry("", end + gap, size, ""))
        reads.append(read)
        end += gap + size
    plain = bytes(number % 251 for number in range(end + 3))
    producer, clock = Producer(plain, lengths), Clock()
    feed = Feed(producer.slots, producer.chunks, producer.fill, Device(torch.device("cpu"), "CPU"), clock)
    if told:
        feed.expect(entries[:late])
    for number, (entry, read) in enumerate(zip(entries, reads, strict=True)):
        if told and number == late:
            feed.expect(entries[late:])  # as for the next object, in the middle of a slot
        expected, position = plain[entry.offset : entry.offset + entry.size], 0
        for count, window in enumerate(feed.windows(entry.offset, entry.size)):
            if count == read < 3:
                break
            assert bytes(window.tolist()) == expected[position : position + window.numel()]
            assert window.numel()
            position += window.numel()
        else:
            assert position == entry.size
    feed.skip_to(len(plain))
    assert producer.chunks.empty()


@pytest.mark.parametrize(("first", "second"), [("scan", "SCAN"), ("\u00e9", "E\u0301"), ("stra\u00dfe", "STRASSE")])
def test_results_whose_names_differ_only_in_case(first: str, second: str) -> None:
    """They would be one file in some folders: told as two of one name are, by the entries, and not by their names."""
    results = Results([torch.zeros(SLOT_BYTES, dtype=torch.uint8)] * 2, queue.SimpleQueue(), print, Clock(), "edges")
    for results.entry, name in ((1, first), (2, second)):
        with pytest.raises(ProcessorError) if results.entry == 2 else contextlib.nullcontext() as caught:
            results.put(Output(name, b"1"))
    assert caught
    assert "the results of entries 1 and 2 one name" in str(caught.value)


@pytest.mark.parametrize("entries", [(0, 0), (1, 2)])
def test_results_of_two_objects_of_one_name(entries: tuple[int, int]) -> None:
    """As of ``a`` and ``a.smp``: that is nothing for the processor's author."""
    results = Results([torch.zeros(SLOT_BYTES, dtype=torch.uint8)] * 2, queue.SimpleQueue(), print, Clock(), "digest")
    results.prefix = "a"
    results.object, results.entry = 1, entries[0]
    results.put(Output("digests.json", b"1"))
    results.object, results.entry = 2, entries[1]
    with pytest.raises(ProcessorError, match="objects 1 and 2.* have one name") as caught:
        results.put(Output("digests.json", b"1"))
    assert "author" not in caught.value.hint
