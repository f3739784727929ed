"""Who opens: threads of smpd, and for batches of objects processes of their own (``smpd.opening``).

A range of a large object is opened without the interpreter lock, but a small object needs it for most of its time. So
one thread opens small objects; when more than it can do is waiting, processes are started and take over.
"""

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, TypeVar, cast

import anyio
from anyio.abc import TaskGroup

from smp_proto.errors import SmpError
from smp_proto.memory import wipe
from smp_proto.sealed.keys import DECRYPTION_BYTES, Identity, PublicIdentity
from smpd.links.ring import Ring
from smpd.opening import link
from smpd.transfer.workers import Worker, WorkerHost, died

PROCESSES_MAX = 4  # smpd's own share of a small object is a quarter of the work
ANSWER_S = 30.0  # some dozen batches may be before it, of some 50 ms each
_RETRY_S = 60.0
SMALL_BYTES = 256 << 10
LONG_INDEX_BYTES = 4 << 20  # in memory an index takes ten times as much while it is decoded
_SENDERS_AT_ONCE = 256  # of a message, so that it fits a frame
T = TypeVar("T")


class Sealed(NamedTuple):
    """Whole objects in a slot: where each begins, and its size."""

    ring: Ring
    slot: int
    objects: Sequence[tuple[int, int]]


class Target(NamedTuple):
    """A slot of a plain ring, and its memory."""

    ring: Ring
    slot: int
    view: memoryview


class Openers:
    """Limits the threads that hash and open, those of all remotes together, and has the processes that open batches.

    The threads are as many as there are cores: more only take the cache and the interpreter lock from each other.

    Args:
        group: where the processes live.
        identities: the box's, which may change in place; without one there are no processes.
        processes: how many at most.
        idle_s: let one go after this long without a batch.
        sandbox: the mode of their walls.
    """

    def __init__(
        self,
        group: TaskGroup | None = None,
        identities: Sequence[Identity] = (),
        *,
        processes: int | None = None,
        idle_s: float = 60.0,
        sandbox: str = "auto",
    ) -> None:
        cores = len(os.sched_getaffinity(0))
        self.large = anyio.CapacityLimiter(cores)
        self.small = anyio.CapacityLimiter(1)
        self._long_index = anyio.CapacityLimiter(1)
        self._in_threads = 0
        self._start_after = 0.0
        count = min(cores, PROCESSES_MAX) if processes is None else processes
        self._places: list[_Place] = []
        if group is not None and identities:
            labels = [f"batches {number}" for number in range(1, count + 1)]
            self._places = [_Place(group, label, identities, idle_s, sandbox) for label in labels]

    @property
    def hosts(self) -> list[WorkerHost]:
        """The places of the processes."""
        return [place.host for place in self._places]

    @property
    def walls(self) -> dict[str, str]:
        """What keeps a process in; empty before one was there."""
        return next((place.walls for place in self._places if place.walls), {})

    @property
    def trouble(self) -> SmpError | None:
        """What kept one from starting when that was tried last."""
        return next((place.trouble for place in self._places if place.trouble), None)

    def of(self, mean_bytes: int) -> anyio.CapacityLimiter:
        """The limit for objects that have so many bytes each."""
        return self.small if mean_bytes <= SMALL_BYTES else self.large

    def of_index(self, index_bytes: int) -> anyio.CapacityLimiter:
        """The limit for who decodes an index of so many bytes: long ones are decoded one at a time."""
        return self._long_index if index_bytes > LONG_INDEX_BYTES else self.large

    async def in_thread(self, mean_bytes: int, work: Callable[[], T]) -> T:
        """Open a batch in a thread of smpd."""
        self._in_threads += 1
        try:
            return await anyio.to_thread.run_sync(work, limiter=self.of(mean_bytes))
        finally:
            self._in_threads -= 1

    async def in_process(
        self, sealed: Sealed, plain: Target | None, senders: Collection[PublicIdentity]
    ) -> Sequence[link.Found | link.Refused] | None:
        """Open a batch in a process, if its objects are small. The first ones of many are opened in a thread meanwhile.

        Args:
            plain: takes the plaintext of those that are found good, one after the other.
            senders: whose signatures are to be checked; whether they count where the objects lie is for the caller.

        Returns:
            What is found of each; None where it is for a thread: the objects are not small, there is no process yet, or
            the indexes are too long for a message.

        Raises:
            ResourceError: ``worker_died``; nothing is written to the slot any more.
        """
        if sum(size for _, size in sealed.objects) > SMALL_BYTES * len(sealed.objects):
            return None
        ready = [place for place in self._places if place.ready]
        if all(place.under_way for place in ready) if ready else self._in_threads:  # it would wait for another batch
            self._start()
        if not ready:
            return None
        place = min(ready, key=lambda each: each.under_way)
        opened = await place.open(sealed, plain, senders)
        return None if opened.too_long else opened.objects

    async def tidy(self) -> None:
        """Have the processes let go of rings that are closed, and not only with their next batch."""
        for place in self._places:
            await place.tidy()

    def stop(self) -> None:
        """Let all processes go."""
        for host in self.hosts:
            host.stop()

    def _start(self) -> None:
        """Start those that are not there; what keeps one from starting is tried again after some time."""
        absent = [place for place in self._places if not place.ready and not place.starting]
        now = anyio.current_time()
        if self.trouble is not None and now < self._start_after:
            return
        self._start_after = now + _RETRY_S
        for place in absent:
            place.begin()


class _Place:
    """A place for one process, and what the process there knows."""

    def __init__(
        self, group: TaskGroup, label: str, identities: Sequence[Identity], idle_s: float, sandbox: str
    ) -> None:
        self._group = group
        self._identities = identities
        self._sandbox = sandbox
        self._lock = anyio.Lock(fast_acquire=True)
        self._keys: list[bytes] = []
        self._senders: set[bytes] = set()
        self._rings: dict[int, Ring] = {}
        self.walls: dict[str, str] = {}
        self.trouble: SmpError | None = None
        self.starting = False
        self.under_way = 0
        self.host = WorkerHost(group, "opening", label, self._set_up, idle_s)

    @property
    def ready(self) -> bool:
        """Whether a process is there."""
        return self.host.worker is not None and self.host.worker.caller.alive

    def begin(self) -> None:
        """Start one, and wait for nothing."""
        self.starting = True
        self._group.start_soon(self.start)

    async def tidy(self) -> None:
        """See :meth:`Openers.tidy`."""
        worker = self.host.worker
        if worker is not None:
            with contextlib.suppress(SmpError, TimeoutError), anyio.fail_after(ANSWER_S):
                async with self._lock:
                    await self._map(worker, [])

    async def start(self) -> None:
        """Have a process there, if it can be: threads do its work where it cannot."""
        try:
            async with self.host.use():
                self.trouble = None
        except SmpError as error:
            self.trouble = error
        finally:
            self.starting = False

    async def open(self, sealed: Sealed, plain: Target | None, senders: Collection[PublicIdentity]) -> link.Opened:
        """See :meth:`Openers.in_process`. Not to be cancelled half way: somebody else may get the slots then."""
        opened: link.Opened | None = None
        self.under_way += 1
        try:
            with anyio.CancelScope(shield=True):
                async with self.host.use() as worker:
                    try:
                        with anyio.move_on_after(ANSWER_S):
                            opened = await self._ask(worker, sealed, plain, senders)
                    finally:
                        if opened is None:
                            await self.host.end(worker)  # it may write to the slot as long as it is there
        finally:
            self.under_way -= 1
        if opened is None:
            raise died("opening", self.host.label)
        return opened

    async def _ask(
        self, worker: Worker, sealed: Sealed, plain: Target | None, senders: Collection[PublicIdentity]
    ) -> link.Opened | None:
        async with self._lock:
            if self._keys != [each.public.key_id for each in self._identities]:
                await self._hand_keys(worker)
            await self._introduce(worker, [each for each in senders if each.key_id not in self._senders])
            await self._map(worker, [sealed.ring, *([plain.ring] if plain else [])])
        request = link.Open(sealed.ring.number, sealed.slot, list(sealed.objects))
        if plain is not None:
            request.plain, request.plain_slot = plain.ring.number, plain.slot
        opened = await worker.caller.call(request, link.Opened)
        return opened if _answers(opened, sealed, plain) else None

    async def _set_up(self, worker: Worker) -> None:
        self._keys, self._senders, self._rings = [], set(), {}
        self.walls = (await worker.caller.call(link.Setup(self._sandbox), link.Walls)).sandbox
        await self._hand_keys(worker)

    async def _hand_keys(self, worker: Worker) -> None:
        identities = list(self._identities)
        secrets = bytearray(DECRYPTION_BYTES * len(identities))
        try:
            for at, each in enumerate(identities):
                key = each.decryption_key()
                secrets[at * DECRYPTION_BYTES : (at + 1) * DECRYPTION_BYTES] = key
                wipe(key)
            publics = [each.public.blob for each in identities]
            request = link.Keys(publics, cast("bytes", secrets))  # it is encoded as such, without a copy between
            await worker.caller.call(request, type(None), secret=True)
        finally:
            wipe(secrets)
        self._keys = [each.public.key_id for each in identities]

    async def _introduce(self, worker: Worker, senders: Sequence[PublicIdentity]) -> None:
        for start in range(0, len(senders), _SENDERS_AT_ONCE):
            part = senders[start : start + _SENDERS_AT_ONCE]
            await worker.caller.call(link.Believe([each.blob for each in part]), type(None))
            self._senders.update(each.key_id for each in part)

    async def _map(self, worker: Worker, rings: Iterable[Ring]) -> None:
        for number in [number for number, ring in self._rings.items() if ring.closed]:
            await worker.caller.call(link.Unmap(number), type(None))
            del self._rings[number]
        for ring in rings:
            if ring.number not in self._rings:
                request = link.Map(ring.number, ring.slots, ring.slot_bytes)
                await worker.caller.call(request, type(None), fds=[ring.fd])
                self._rings[ring.number] = ring


def _answers(opened: link.Opened, sealed: Sealed, plain: Target | None) -> bool:
    """Whether it is of as many objects as were asked about, with no more plaintext than fits: our code says no other.

    The slot is zeroed, and the next object's plaintext has its place, by what is said here.
    """
    found = [each.signed.plain_bytes for each in opened.objects if isinstance(each, link.Found)]
    fits = plain is None or sum(found) <= len(plain.view)
    return opened.too_long or (len(opened.objects) == len(sealed.objects) and fits)
