"""A compute whose process is ``fake_compute.py``, for the tests of the link to it."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable

import anyio
import pytest

from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity
from smpd.links.computing import Done, InputEntry, InputObject, Run
from smpd.metrics.counting import Metrics
from smpd.transfer import plain as plain_room
from smpd.transfer.device import Compute, ComputeSettings, finish_results
from smpd.transfer.health import HealthSettings
from smpd.transfer.plain import PlainRing
from smpd.transfer.preparing import Feed

SLOT = 64 << 10
CHUNKS = 9
MEMORY = 256 << 20
TAKING = ("hoards", "hides", "multiplies", "keeps", "leaks", "echo", "checks")
HALF = HealthSettings(kept_bytes=-1)
ME = Identity.generate("box")
OBJECT = InputObject("", [InputEntry("scan.bin", 0, CHUNKS * SLOT, "application/octet-stream")])
Computing = Callable[..., contextlib.AbstractAsyncContextManager[Compute]]


def held(compute: Compute) -> bytes:
    """What lies in its rings."""
    return b"".join(os.pread(ring.fd, ring.slots * SLOT, 0) for ring in compute._rings or ())


def boxes(fake_program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> Computing:
    """Makes computes with rings of few small slots."""
    fake_program("fake_compute.py")
    monkeypatch.setattr(plain_room, "_GRACE_S", 0.3)

    @contextlib.asynccontextmanager
    async def compute(
        metrics: Metrics | None = None, health: HealthSettings = HALF, slots: int = 3
    ) -> AsyncIterator[Compute]:
        settings = ComputeSettings(slots, SLOT, 2, SLOT, "cpu", "off", MEMORY, 0.2, 60.0, health=health)
        async with anyio.create_task_group() as group:
            found = Compute("fake", ["echo"], settings, group, metrics)
            try:
                with anyio.fail_after(60):
                    yield found
                assert not held(found).strip(b"\0"), "the rings hold data after the job"
                assert not found._rings or found.slots_in_use == 0
            finally:
                group.cancel_scope.cancel()
        for ring in found._rings or ():
            ring.close()

    return compute


async def feed(plain: PlainRing) -> None:
    """An object of nine chunks."""
    await plain.announce([OBJECT])
    for _ in range(CHUNKS):
        slot = await plain.take()
        with plain.target(slot).view as view:
            view[:] = b"secret!!" * (SLOT // 8)
        await plain.deliver(slot, SLOT)


async def run(
    compute: Compute, act: str, feeding: Feed = feed, *, job: str = "job", again: bool = False
) -> tuple[Done, bytes]:
    """Have it run; what was written of its result."""
    written = bytearray()
    writer = BundleWriter(written.extend, sender=ME, recipients=[ME.public])
    try:
        request = Run(job, act, {}, 20 if act in TAKING else 0.2)
        done = await compute.run(request, writer, feeding, again=again)
        finish_results(writer)
        return done, bytes(written)
    finally:
        writer.abort()
