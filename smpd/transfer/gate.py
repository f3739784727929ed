"""The gate before a remote: who asks waits out a pause, and is turned away while the remote is down."""

import math
import random
import time
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup

from smp_proto.control import RemoteHealth
from smp_proto.errors import CODES, RemoteError, SmpError
from smpd.transfer.breaker import Breaker, BreakerSettings, verdict
from smpd.transfer.places import asker

PATIENCE_S = 10.0  # a pause up to this is waited out where one is; for a longer one a job gives its place away
_PROBE_S = 0.1  # while a probe is on its way


class Gate:
    """What all requests to one remote have in common.

    Args:
        name: the remote's.
        probe: asks the remote for next to nothing, not through the gate.
        paused: is told of a pause, in seconds, as soon as it begins.
        changed: is told when the remote goes down and when it is back.
        quiet: says why nothing is to be asked in these hours.
        group: where the probing lives.
        clock: the monotonic clock.
    """

    def __init__(
        self,
        name: str,
        settings: BreakerSettings,
        *,
        probe: Callable[[], Awaitable[object]],
        paused: Callable[[float], None],
        changed: Callable[[RemoteHealth], None],
        quiet: Callable[[], RemoteError | None] = lambda: None,
        group: TaskGroup,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._breaker = Breaker(settings, random.Random())
        self._probe = probe
        self._paused = paused
        self._changed = changed
        self._quiet = quiet
        self._group = group
        self._clock = clock
        self._said = ""  # what was wrong last, for whoever is turned away
        self._hint = ""
        self._probing: anyio.CancelScope | None = None

    @property
    def health(self) -> RemoteHealth:
        """How the remote is, for people."""
        now, breaker = self._clock(), self._breaker
        return RemoteHealth(
            self._name,
            state=breaker.state(now),
            since_s=now - breaker.since if breaker.since else 0.0,
            code=breaker.code,
            failures=breaker.failures,
            next_try_s=breaker.left_s(now),
        )

    def held(self) -> RemoteError | None:
        """Why nothing is asked now: these are quiet hours, or the remote is down, or pauses for long."""
        if error := self._quiet():
            return error
        left = self._breaker.left_s(self._clock())
        if self._breaker.open:
            return self._turned_away(max(left, _PROBE_S))
        return self._turned_away(left) if left > PATIENCE_S else None

    async def enter(self) -> None:
        """Wait until the remote may be asked.

        Raises:
            RemoteError: it is down, pauses for long, or is left alone. ``details`` has the remote under ``held``:
                nothing was asked, so a job that ends for this has not tried.
        """
        while True:
            if error := self.held():
                raise error
            wait_s = self._breaker.wait_s(self._clock())
            if not wait_s:
                return
            await anyio.sleep(wait_s)

    def note(self, error: SmpError | None) -> None:
        """Learn from the outcome of a request."""
        now = self._clock()
        match verdict(error):
            case "answer":
                if self._breaker.answered(now):
                    self._back()
            case "failure":
                assert error is not None
                self._say(error)
                if self._breaker.failed(now, error.code):
                    self._changed(self.health)
                    self._probing = anyio.CancelScope()
                    self._group.start_soon(self._until_back, self._probing)
            case "busy":
                assert error is not None
                self._say(error)
                self.busy(_seconds(error.details.get("retry_after")))

    def busy(self, asked_s: float) -> None:
        """The remote asked for patience, for so many seconds or without saying."""
        was_open = self._breaker.open
        self._paused(self._breaker.busy(self._clock(), asked_s))
        if was_open:
            self._back()

    def close(self) -> None:
        """Probe no more."""
        if self._probing is not None:
            self._probing.cancel()

    def _say(self, error: SmpError) -> None:
        # What a server said of one object is not for those who wait for another.
        told = error.code != "remote_failed"
        self._said, self._hint = (error.message, error.hint) if told else (CODES[error.code].meaning, "")

    def _back(self) -> None:
        self.close()
        self._changed(self.health)

    async def _until_back(self, scope: anyio.CancelScope) -> None:
        """Ask for next to nothing, less and less often, until the remote answers."""
        asker.set("")  # all wait for this
        with scope:
            while self._breaker.open:
                await anyio.sleep(self._breaker.left_s(self._clock()))
                try:
                    await self._probe()
                except SmpError as error:
                    self.note(error)
                    if verdict(error) != "answer":
                        self._breaker.probed(self._clock())
                else:
                    self.note(None)

    def _turned_away(self, seconds: float) -> RemoteError:
        down = self._breaker.open
        return RemoteError(
            "remote_unreachable" if down else "remote_busy",
            f"remote {self._name} is {'down' if down else 'pausing'}: {self._said or CODES['remote_busy'].meaning}",
            hint=self._hint or f"it is tried again by itself, or at once with: smpctl remote test {self._name}",
            details={"held": self._name, "retry_after": seconds},
        )


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else 0.0
