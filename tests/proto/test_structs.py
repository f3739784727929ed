"""Structs are learnt by one thread at a time."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import whole as inside

from smp_proto.structs import decoder, learn_all
from smpd import composing

_THREADS = """
import sys, threading
import msgspec
from smp_proto.structs import decoder

sys.setswitchinterval(1e-6)
fields = [(f"f{number}", dict[str, list[int | str]] | None, None) for number in range(40)]
for _ in range(60):
    inner = msgspec.defstruct("Inner", fields)
    outer = msgspec.defstruct("Outer", [("a", inner), ("b", list[inner])])
    bodies = {
        inner: msgspec.msgpack.encode({"f39": {"x": [1, "a"]}}),
        outer: msgspec.msgpack.encode({"a": {"f0": {"x": [1, "a"]}}, "b": [{"f39": {"x": [2]}}]}),
    }
    start = threading.Barrier(4)

    def work(kind):
        start.wait()
        decoder(kind).decode(bodies[kind])

    threads = [threading.Thread(target=work, args=(kind,)) for kind in (outer, inner, outer, inner)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_threads_that_meet_a_struct_at_once() -> None:
    """msgspec alone ends the process with SIGSEGV here."""
    done = subprocess.run([sys.executable, "-c", _THREADS], capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_a_decoder_is_made_once() -> None:
    assert decoder(list[int]) is decoder(list[int])
    assert decoder(list[int]).decode(b"\x91\x05") == [5]


def test_one_that_cannot_be_learnt_keeps_nobody_from_it() -> None:
    """Somebody's struct may be there only to be written."""
    bad = msgspec.defstruct("Bad", [("a", "list[Nowhere]")])
    good = msgspec.defstruct("Good", [("a", int)])
    assert {bad, good} <= learn_all()


async def test_a_daemon_has_learnt_all_before_it_has_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No module of it that is imported later has structs."""
    known: set[type] = set()
    monkeypatch.setattr(composing, "learn_all", lambda: known.update(learn_all()))
    async with inside.whole(tmp_path, scheduler=True) as daemon, daemon.client(0) as caller:
        await caller.call(inside.c.DoctorRequest(), inside.c.Doctor)
    late = {each for each in learn_all() - known if each.__module__.partition(".")[0] in ("smpd", "smp_proto")}
    assert not late
