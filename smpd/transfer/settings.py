"""How large a remote's pool is, and what a fetch process is told when it is started."""

from collections.abc import Callable
from typing import NamedTuple

import anyio

from smpd.links import fetching
from smpd.links.ring import Ring
from smpd.transfer.breaker import BreakerSettings
from smpd.transfer.workers import Worker
from smpd.vault.remotes import Remote


class FetchSettings(NamedTuple):
    """Size of a remote's pool."""

    processes: int
    slots: int
    slot_bytes: int
    connections: int
    idle_s: float
    sandbox: str
    deadlines: fetching.Deadlines = fetching.Deadlines()
    breaker: BreakerSettings = BreakerSettings()


async def introduce(worker: Worker, ring: Ring, load: Callable[[], Remote], settings: FetchSettings) -> dict[str, str]:
    """Tell a new process its remote, the secret and the ring; returns its walls, and how each is.

    Args:
        load: gives the remote with its secret (blocking), which is wiped once it was sent.
    """
    remote = await anyio.to_thread.run_sync(load)
    try:
        request = fetching.Setup(
            remote.config,
            ring.slots,
            ring.slot_bytes,
            remote.secret,
            settings.connections,
            settings.sandbox,
            settings.deadlines,
        )
        return (await worker.caller.call(request, fetching.Walls, fds=[ring.fd], secret=True)).sandbox
    finally:
        remote.wipe()
