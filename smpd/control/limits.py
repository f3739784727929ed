"""How much one user may ask of the daemon, so that nobody keeps it from the others.

Each user has a bucket of tokens, one for each request and each connection, that fills at a steady rate. Root and the
daemon's own user could stop the daemon anyway: they have no bucket, and their connections are not counted among those
of everybody, so that the others cannot lock them out.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from smp_proto.errors import DaemonError
from smpd.config import Control

_BUCKETS_KEPT = 1024
_LOG_EVERY_S = 10.0
_TOPICS_KEPT = 1024


def is_master(uid: int) -> bool:
    """Whether this user is the machine's or the daemon's master, whom no limit is to lock out."""
    return uid in (0, os.geteuid())


class _Bucket(NamedTuple):
    tokens: float
    at: float


class Limits:
    """Counts connections and requests by user.

    Args:
        config: the limits; others may take their place.
        clock: monotonic seconds.
    """

    def __init__(self, config: Control, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self._clock = clock
        self._open: Counter[int] = Counter()
        self._buckets: dict[int, _Bucket] = {}
        self._watches: Counter[int] = Counter()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return self._open.total()

    def connect(self, uid: int) -> None:
        """Count a connection, until :meth:`disconnect`.

        Raises:
            DaemonError: ``busy`` or ``rate_limited``; it is not counted.
        """
        masters = sum(self._open[each] for each in {0, os.geteuid()})
        if self._open[uid] >= self.config.connections_user_max or (
            not is_master(uid) and self.connections - masters >= self.config.connections_max
        ):
            raise DaemonError("busy", "too many connections are open", hint="close some clients, or try again later")
        self.request(uid)
        self._open[uid] += 1

    def disconnect(self, uid: int) -> None:
        """The connection is gone."""
        self._open[uid] -= 1
        self._open += Counter()  # forgets users at zero

    @contextlib.contextmanager
    def watch(self, uid: int) -> Iterator[None]:
        """Count a watch for the length of a block: each of them costs something at every event.

        Raises:
            DaemonError: ``busy``; this user has too many.
        """
        most = self.config.watches_user_max
        if self._watches[uid] >= most and not is_master(uid):
            hint = "end some, or name several jobs in one watch"
            raise DaemonError("busy", f"this user has {most} watches open, which is the most allowed", hint=hint)
        self._watches[uid] += 1
        try:
            yield
        finally:
            self._watches[uid] -= 1
            self._watches += Counter()  # forgets users at zero

    def request(self, uid: int) -> None:
        """Take a token.

        Raises:
            DaemonError: ``rate_limited``; its details say after how many seconds there is one.
        """
        if is_master(uid):
            return
        now, rate = self._clock(), self.config.requests_per_s
        tokens = self._tokens(uid, now)
        if tokens < 1:
            wait = (1 - tokens) / rate
            raise DaemonError(
                "rate_limited",
                f"more than {rate:g} requests a second came from this user",
                hint=f"ask again in {wait:.2g} s, or more rarely",
                details={"retry_after": wait},
            )
        self._buckets[uid] = _Bucket(tokens - 1, now)
        if len(self._buckets) > _BUCKETS_KEPT:  # a full one is as good as none
            full = [each for each in self._buckets if self._tokens(each, now) >= self.config.requests_burst]
            for each in full:
                del self._buckets[each]

    def _tokens(self, uid: int, now: float) -> float:
        burst = float(self.config.requests_burst)
        bucket = self._buckets.get(uid, _Bucket(burst, now))
        return min(burst, bucket.tokens + (now - bucket.at) * self.config.requests_per_s)


class Sparing:
    """Lets one line on a topic through in a while, so that a caller cannot fill the log.

    Args:
        every_s: how long a topic is then quiet.
        clock: monotonic seconds.
    """

    def __init__(self, every_s: float = _LOG_EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._last: dict[object, float] = {}
        self._held: Counter[object] = Counter()

    def hold(self, *topic: object) -> int | None:
        """None when a line is not to be written; else how many were held back since the last."""
        now = self._clock()
        if now - self._last.get(topic, now - self._every_s) < self._every_s:
            self._held[topic] += 1
            return None
        if len(self._last) >= _TOPICS_KEPT:
            self._last.clear()
            self._held.clear()
        self._last[topic] = now
        return self._held.pop(topic, 0)
