"""What both sides keep of a server that asks for patience (503, 429): until when nobody asks it anything.

Pure arithmetic; the clock is the caller's.
"""

import random

FIRST_S = 0.5  # of a server that does not say how long
MOST_S = 60.0
ASKED_MAX_S = 3600.0  # a server may ask for patience, not for ever
SPREAD = 0.1  # of a pause, by which those who waited begin at different moments
SPREAD_MAX_S = 5.0


class Pause:
    """A pause that all requests to one server share.

    A refusal begins one: as long as the server says (Retry-After, RFC 9110 §10.2.3), and not less than twice the last
    where the server went on refusing. Refusals of what was under way when it began only make it longer if they say so.

    Args:
        rng: the source of jitter.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._until = 0.0
        self._length_s = 0.0
        self._times = 0

    def busy(self, now: float, asked_s: float) -> float:
        """Note a refusal; returns how long the pause is from now on, in seconds."""
        asked_s = min(max(asked_s, 0.0), ASKED_MAX_S)
        if now >= self._until:
            asked_s = max(asked_s, min(MOST_S, FIRST_S * 2.0**self._times))
            self._times = min(self._times + 1, 16)
        if now + asked_s > self._until:
            self._until, self._length_s = now + asked_s, asked_s
        return self._until - now

    def extend(self, now: float, seconds: float) -> None:
        """A pause that the other side began."""
        if now + seconds > self._until:
            self._until, self._length_s = now + seconds, seconds

    def answered(self, now: float) -> None:
        """The server did what it was asked."""
        if now >= self._until:
            self._times = 0

    @property
    def spent(self) -> bool:
        """Whether the server has refused so often in a row that its pauses grow no more."""
        return FIRST_S * 2.0**self._times > MOST_S

    def left_s(self, now: float) -> float:
        """How long nobody may ask."""
        return max(0.0, self._until - now)

    def wait_s(self, now: float) -> float:
        """How long the caller is to wait: the rest of the pause, and a little more, each another."""
        left = self.left_s(now)
        return left + self._rng.uniform(0.0, min(SPREAD_MAX_S, SPREAD * self._length_s)) if left else 0.0
