"""When something is told: at most one message in a while, with all that gathered, and again until it was taken."""

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import anyio
import msgspec
import structlog

from smp_proto import durable
from smp_proto.errors import SmpError
from smpd.audit.kept import KeptLog
from smpd.notices.message import Condition, Gathered, Message, Told

_LINES = 1000
_LOOK_S = 60.0
_SETTLE_S = 2.0
_AGAIN_S = 86_400.0
_log = structlog.get_logger("smpd")


class Kept(msgspec.Struct):
    """How far it was told: ``seq`` records of the audit log, and when (wall clock) each condition that still holds."""

    seq: int
    conditions: dict[str, float] = {}


class Way(Protocol):
    """How somebody is told: by a command, or by a webhook."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        ...

    async def run(self, message: bytes) -> None:
        """Tell a message.

        Raises:
            ResourceError: ``notify_failed``, it was not taken.
        """
        ...


class Notices:
    """Tells what goes wrong, once each, coalesced and rate limited, by one way. What another way takes is its own.

    Args:
        way: how.
        name: of the file in ``folder`` in which is kept how far it was told.
        box: the fingerprint that messages carry.
        audit: what happened.
        conditions: what is wrong now; blocking.
        wake: waits until something may have happened.
        every_s: the least time between two messages.

    Attributes:
        failure: why the last message was not taken, or empty.
    """

    def __init__(
        self,
        way: Way,
        folder: str,
        name: str,
        box: str,
        audit: KeptLog,
        conditions: Callable[[], Sequence[Condition]],
        wake: Callable[[], Awaitable[None]],
        every_s: float,
    ) -> None:
        self.way = way
        self.failure = ""
        self._folder = folder
        self._name = name
        self._box = box
        self._audit = audit
        self._conditions = conditions
        self._wake = wake
        self._every_s = every_s
        self._gathered = Gathered()
        self._holding: dict[str, Condition] = {}
        self._kept = Kept(0)
        self._seen = 0
        self._lock = anyio.Lock()

    async def test(self) -> None:
        """Send a message that says it is a test.

        Raises:
            ResourceError: ``notify_failed``.
        """
        async with self._lock:
            await self.way.run(msgspec.json.encode(Message(self._box, [], test=True)))
        self.failure = ""

    async def run(self) -> None:
        """Tell until cancelled."""
        await anyio.to_thread.run_sync(self._begin)
        next_s = 0.0
        while True:
            try:
                await anyio.to_thread.run_sync(self._look)
            except (SmpError, OSError) as error:  # it is looked at again
                code = error.code if isinstance(error, SmpError) else type(error).__name__
                _log.error("what is to be told cannot be looked for", code=code)
            events = self._due()
            if events and time.monotonic() >= next_s:
                await self._tell(events)
                next_s = time.monotonic() + self._every_s
                continue
            with anyio.move_on_after(max(0.0, next_s - time.monotonic()) if events else _LOOK_S):
                await self._wake()
            await anyio.sleep(_SETTLE_S)  # what happens together is told together

    async def _tell(self, events: list[Told]) -> None:
        seq, now, kept = self._seen, time.time(), self._kept.conditions
        conditions = {kind: kept[kind] if self._is_told(kind, now) else now for kind in self._holding}
        try:
            async with self._lock:
                await self.way.run(msgspec.json.encode(Message(self._box, events)))
        except SmpError as error:
            self.failure = error.message
            _log.error("nobody could be told", code=error.code, kinds=[each.kind for each in events])
            return
        self.failure = ""
        self._gathered = Gathered()
        await anyio.to_thread.run_sync(self._keep, Kept(seq, conditions))

    def _due(self) -> list[Told]:
        """What a message would hold now."""
        now = time.time()
        new = [each for kind, each in self._holding.items() if not self._is_told(kind, now)]
        return self._gathered.told() + [Told(each.kind, text=each.text) for each in new]

    def _is_told(self, kind: str, now: float) -> bool:
        """Whether a condition was told less than a day ago."""
        return now - _AGAIN_S < self._kept.conditions.get(kind, 0.0) <= now

    def _begin(self) -> None:
        try:
            with open(os.path.join(self._folder, self._name), "rb") as file:
                self._kept = msgspec.json.decode(file.read(), type=Kept)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            self._keep(Kept(self._audit.size))  # what was before anybody wanted to know is not told
        self._seen = self._kept.seq

    def _look(self) -> None:
        self._holding = {each.kind: each for each in self._conditions()}
        gone = self._kept.conditions.keys() - self._holding.keys()
        if gone:
            self._keep(Kept(self._kept.seq, {k: v for k, v in self._kept.conditions.items() if k not in gone}))
        if self._audit.broken:
            return
        if self._seen > self._audit.size:  # another log was begun
            self._seen = 0
        while lines := self._audit.read(self._seen, _LINES):
            self._gathered.add(lines)
            self._seen += len(lines)
        if not self._gathered and self._seen - self._kept.seq >= _LINES:
            self._keep(Kept(self._seen, self._kept.conditions))

    def _keep(self, kept: Kept) -> None:
        self._kept = kept
        try:
            durable.write_file(self._folder, self._name, msgspec.json.encode(kept))
        except OSError as error:  # told again after a restart, then
            _log.warning("what was told cannot be kept", errno=error.errno)
