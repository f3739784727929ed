"""The copy to a device, as far as it can be tried without one."""

import contextlib
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import gpu_goals, gpu_loads
from benchmarks.ring_copy import check, check_windows, copy_windows
from smpd.compute.device import Device, StreamDevice

ROOT = Path(__file__).parents[2]
SIZES = [1, 4095, 4096, 4097, 0, 30_000]


class FakeStream:
    """Copies to it are done only when it is waited for, or when an event behind them is asked often enough."""

    def __init__(self):
        self.queued = []

    def wait_stream(self, other):
        self.queued.append(other.synchronize)

    def wait_event(self, event):
        self.queued.append(event.synchronize)

    def synchronize(self):
        while self.queued:
            self.queued.pop(0)()


class FakeEvent:
    """Passes at the third poll, and only then has what was queued before it happened."""

    def record(self, stream):
        self.stream, self.polls = stream, 0

    def query(self):
        self.polls += 1
        if self.polls == 3:
            self.synchronize()
        return self.polls >= 3

    def synchronize(self):
        self.stream.synchronize()


class LazyDevice(StreamDevice):
    """A fake accelerator: a pinned copy takes place once its stream gets there, in the host's memory."""

    def __init__(self):
        fake = types.SimpleNamespace(
            Stream=FakeStream, Event=FakeEvent, stream=lambda _: contextlib.nullcontext(), synchronize=lambda: None
        )
        super().__init__(torch.device("cpu"), "fake", fake, lambda ring: "")
        self.pin(torch.empty(0))

    def _transfer(self, source, target):
        self._copies.queued.append(lambda: target.copy_(source))


def slots():
    return list(torch.empty(4 * 4096, dtype=torch.uint8).split(4096))


@pytest.mark.parametrize("device", [LazyDevice, lambda: Device(torch.device("cpu"), "CPU")])
def test_what_arrives_is_what_was_sent(device):
    assert list(check(device(), slots(), SIZES)) == []
    assert copy_windows(device(), slots(), 100_000) > 0


@pytest.mark.parametrize("device", [LazyDevice, lambda: Device(torch.device("cpu"), "CPU")])
def test_windows_hold_what_was_sent(device):
    device = device()
    assert list(check_windows(device, slots(), 50_000, lambda: device.stream and device.stream.synchronize())) == []


def test_a_window_that_is_written_to_is_found():
    class Careless(Device):
        def window(self, source):
            return super().window(source[:-1])

    device = Careless(torch.device("cpu"), "CPU")
    device.reads_slots = False
    found = list(check_windows(device, slots(), 50_000, lambda: super(Careless, device).window(torch.zeros(4095))))
    assert any("is not what was in its slot" in problem for problem in found)
    assert "the windows hold 49987 bytes of 50000" in found


def test_a_slot_that_is_reused_too_early_is_found():
    class Hasty(LazyDevice):
        def fence(self):
            return None

    before = threading.active_count()
    assert any("is not what was in the slots" in problem for problem in check(Hasty(), slots(), SIZES))
    assert threading.active_count() == before, "a check that was left early left its producer waiting"


def test_a_copy_that_is_too_long_is_found():
    class Sloppy(Device):
        def copy(self, source, target):
            super().copy(source, target)
            target.as_strided((1,), (1,), target.storage_offset() + target.numel()).zero_()

    assert any("canary after" in problem for problem in check(Sloppy(torch.device("cpu"), "CPU"), slots(), SIZES))


def test_goals_name_loads():
    assert {goal.load for goal in gpu_goals()} <= {load.name for load in gpu_loads()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so():
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "there is no CUDA device here, so there is nothing to measure\n")
