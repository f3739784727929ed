"""Whether a remote may be asked: a circuit breaker. Pure; the clock is the caller's, and nothing survives a restart.

It opens after so many failures of the remote itself in a row. What a failure is: the server cannot be reached, does not
answer, breaks off, or fails with an error of its own (5xx). What is none: any answer in good order, also one that
refuses, since then the server is there; credentials that are refused and a certificate or host key that is not
trusted are final for a job, and must be told at once rather than waited for. A server that asks for patience pauses
everyone, but is not down.
"""

import random
from typing import Literal, NamedTuple

from smp_proto.errors import IntegrityError, NotFoundError, RemoteError, SmpError
from smpd.links.pause import Pause

State = Literal["up", "paused", "down"]
Verdict = Literal["answer", "failure", "busy", "nothing"]
_SPREAD = 0.2  # of the time between two tries


class BreakerSettings(NamedTuple):
    """After how many ``failures`` it opens; tried again after ``probe_s``, then twice as long up to ``probe_max_s``."""

    failures: int = 5
    probe_s: float = 1.0
    probe_max_s: float = 60.0


def verdict(error: SmpError | None) -> Verdict:
    """What the outcome of a request says of the remote; nothing where the fault is this machine's."""
    if error is None or isinstance(error, NotFoundError | IntegrityError):
        return "answer"
    if not isinstance(error, RemoteError) or "held" in error.details or error.code == "quiet_hours":
        return "nothing"
    if error.code == "remote_busy":
        return "busy"
    return "failure" if error.retryable else "answer"


class Breaker:
    """The state of one remote.

    Args:
        rng: the source of jitter.
    """

    def __init__(self, settings: BreakerSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._pause = Pause(rng)
        self.open = False
        self.failures = 0  # in a row
        self.since = 0.0  # when it opened or closed last
        self.code = ""  # of the last failure
        self.next_try = 0.0  # while open
        self._interval_s = 0.0

    def state(self, now: float) -> State:
        """How the remote is."""
        if self.open:
            return "down"
        return "paused" if self._pause.left_s(now) else "up"

    def left_s(self, now: float) -> float:
        """How long nobody but a probe may ask, as far as it is known."""
        return max(0.0, self.next_try - now) if self.open else self._pause.left_s(now)

    def wait_s(self, now: float) -> float:
        """How long one caller is to wait out a pause, each another time."""
        return self._pause.wait_s(now)

    def answered(self, now: float) -> bool:
        """The remote answered; returns whether it was down before."""
        self.failures = 0
        self._pause.answered(now)
        was, self.open = self.open, False
        if was:
            self.since, self.code = now, ""
        return was

    def failed(self, now: float, code: str) -> bool:
        """The remote failed; returns whether it counts as down from now on."""
        self.failures += 1
        self.code = code
        if self.open or self.failures < self._settings.failures:
            return False
        self.open, self.since, self._interval_s = True, now, self._settings.probe_s
        self.next_try = now + self._spread(self._interval_s)
        return True

    def probed(self, now: float) -> None:
        """A probe failed, too: the next one comes later."""
        self._interval_s = min(self._settings.probe_max_s, self._interval_s * 2)
        self.next_try = now + self._spread(self._interval_s)

    def busy(self, now: float, asked_s: float) -> float:
        """The remote asked for patience; returns for how long, in seconds."""
        self.failures, self.code = 0, "remote_busy"
        if self.open:
            self.open, self.since = False, now
        return self._pause.busy(now, asked_s)

    def _spread(self, seconds: float) -> float:
        return seconds * self._rng.uniform(1.0 - _SPREAD, 1.0 + _SPREAD)
