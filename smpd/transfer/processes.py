"""The fetch processes of one remote, and the ring of each: started when first needed, gone when nobody needs them."""

import contextlib
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
from anyio.abc import TaskGroup

from smp_proto.aio import Caller
from smp_proto.errors import SmpError
from smpd.links import fetching
from smpd.links.ring import Ring
from smpd.transfer.lanes import Lane, Lanes
from smpd.transfer.settings import FetchSettings
from smpd.transfer.workers import Worker, WorkerHost
from smpd.vault.remotes import Remote

_SETTLE_S = 5.0


class Processes:
    """The fetch processes of one remote.

    A ring goes with its process, but not while something is in one of its lanes.

    Args:
        name: of the remote.
        load: gives it again with its secret (blocking), for each process that is started; wiped once it was sent.
        lanes: says which rings are in use.
        group: where the processes live.

    Attributes:
        hosts: the place of each, by the number that lanes have as ``worker``.
        walls: of the process that was started last.
    """

    def __init__(
        self, name: str, load: Callable[[str], Remote], settings: FetchSettings, lanes: Lanes, group: TaskGroup
    ) -> None:
        self._name = name
        self._load = load
        self._settings = settings
        self._lanes = lanes
        lanes.given = self._given
        self._group = group
        self._next = 0
        self._rings: list[Ring | None] = [None] * settings.processes
        self._going: list[Ring] = []  # that are being unmapped
        self._holds: dict[WorkerHost, float] = {}  # that are being told, and for how long
        self.walls: dict[str, str] = {}
        self.hosts = [
            WorkerHost(group, "fetch", name, self._set_up(index), settings.idle_s, partial(self._let_go, index))
            for index in range(settings.processes)
        ]

    @property
    def ring_bytes(self) -> int:
        """How much memory the rings take that are there, those included that are being unmapped."""
        return sum(ring.slots * ring.slot_bytes for ring in [*self._rings, *self._going] if ring is not None)

    def any(self) -> WorkerHost:
        """One of those that are there, by turns: a question is no reason to start another."""
        return self._turn([host for host in self.hosts if not host.absent] or self.hosts[:1])

    def each(self) -> WorkerHost:
        """One of them all, by turns: for what keeps a process busy."""
        return self._turn(self.hosts)

    def _turn(self, hosts: list[WorkerHost]) -> WorkerHost:
        self._next += 1
        return hosts[self._next % len(hosts)]

    def of(self, lane: Lane) -> WorkerHost:
        """The one that fills a lane."""
        return self.hosts[lane.worker]

    def ring(self, lane: Lane) -> Ring:
        """The ring a lane belongs to, which is there as long as something is in the lane."""
        ring = self._rings[lane.worker]
        assert ring is not None
        return ring

    def wipe(self, lane: Lane, length: int) -> None:
        """Zero the front of a lane's slot, which held plaintext."""
        ring = self._rings[lane.worker]
        if ring is not None:
            ring.wipe(lane.slot, length)

    def _given(self, lane: Lane) -> None:
        """A lane was given back: its process may have gone while something waited there, and the ring goes now."""
        if self.of(lane).absent and (ring := self._take(lane.worker)) is not None:
            self._group.start_soon(self._close, ring)

    def hold(self, seconds: float) -> None:
        """Have all of them hold what they do on their own: parts of uploads, pages of listings."""

        async def tell(host: WorkerHost, caller: Caller) -> None:
            told = 0.0
            try:
                with contextlib.suppress(SmpError, TimeoutError):
                    while told < (longest := self._holds[host]):  # one at a time: many may be refused at once
                        told = longest
                        await caller.call(fetching.Hold(told), type(None), timeout=_SETTLE_S)
            finally:
                del self._holds[host]

        for host in self.hosts:
            if host.worker is None or not host.worker.caller.alive:
                continue
            if host in self._holds:
                self._holds[host] = max(self._holds[host], seconds)
            else:
                self._holds[host] = seconds
                self._group.start_soon(tell, host, host.worker.caller)

    async def aclose(self) -> None:
        """Stop them, and close the rings once nobody holds a lane."""
        async with anyio.create_task_group() as group:
            for host in self.hosts:
                group.start_soon(host.aclose)  # one that is just starting may yet make its ring
        await self._lanes.until_idle()
        for ring in self._rings:
            if ring is not None:
                ring.close()
        self._rings = [None] * len(self._rings)

    def _take(self, index: int) -> Ring | None:
        """The ring of a process that is gone, to be closed: no longer known here; None while it is in use."""
        if self._lanes.used_by(index):
            return None
        ring, self._rings[index] = self._rings[index], None
        self._going += [ring] if ring is not None else []
        return ring

    async def _close(self, ring: Ring) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(ring.close)
        self._going.remove(ring)

    async def _let_go(self, index: int) -> None:
        if (ring := self._take(index)) is not None:
            await self._close(ring)

    def _set_up(self, index: int) -> Callable[[Worker], Awaitable[None]]:
        async def set_up(worker: Worker) -> None:
            settings, ring = self._settings, self._rings[index]
            if ring is None:
                ring = await anyio.to_thread.run_sync(
                    Ring.create, f"smp-cipher-{index}", settings.slots, settings.slot_bytes
                )
                self._rings[index] = ring
            self.walls = await _introduce(worker, ring, partial(self._load, self._name), settings)

        return set_up


async def _introduce(worker: Worker, ring: Ring, load: Callable[[], Remote], settings: FetchSettings) -> dict[str, str]:
    """Tell a new process its remote, the secret and the ring; returns its walls, and how each is."""
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
