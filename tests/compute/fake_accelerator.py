"""Runs the compute process with a fake of what is not in every machine: an accelerator with streams and events.

Started by a test as ``python -c`` with this text; the memory is the host's. Its events pass at the third poll, and a
slot whose event has not passed must not be freed. The last argument is ``refuse`` to have it refuse to
pin, else ``pin``.
"""

import contextlib
import os
import sys
import types

import torch

from smpd.compute import device, run
from smpd.compute.__main__ import main

REFUSE = sys.argv.pop() == "refuse"


class FakeStream:
    """A stream that runs everything at once."""

    def wait_stream(self, other):
        assert isinstance(other, FakeStream)

    def wait_event(self, event):
        assert event.recorded


class FakeEvent:
    """An event that passes at the third poll."""

    made = 0

    def __init__(self):
        FakeEvent.made += 1
        self.recorded = False
        self.polls = 0

    def record(self, stream):
        assert isinstance(stream, FakeStream)
        self.recorded, self.polls = True, 0

    def query(self):
        self.polls += 1
        return self.polls >= 3

    def synchronize(self):
        self.polls = 3


class FakeDevice(device.StreamDevice):
    """Checks that a fence is recycled only once it has passed, and that fences are used again."""

    def recycle(self, fence):
        assert fence.polls >= 3
        super().recycle(fence)

    def end_job(self):
        super().end_job()
        assert not self.entry._bytes.any()
        # The slots' worth of fences and the pair of windows', the staging buffers' beside.
        assert FakeEvent.made <= 4 + 2 + 2, FakeEvent.made

    def _make_staging(self):
        return torch.empty(device.STAGING_BYTES, dtype=torch.uint8)


FAKE = types.SimpleNamespace(
    Stream=FakeStream,
    Event=FakeEvent,
    stream=lambda stream: contextlib.nullcontext(),
    synchronize=lambda: None,
    empty_cache=lambda: None,
    memory_allocated=lambda device: 12_345,
)
device.STAGING_BYTES = 1000
device._missing = lambda name: ""
device._open = lambda name, index: FakeDevice(
    torch.device("cpu"), "fake", FAKE, lambda ring: "pinning is refused" if REFUSE else ""
)
run.POLL_S = 0
os._exit(main(sys.argv[1:]))
