"""How the blocking client asks: its connection, and what it does where it is told to ask more rarely."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

from smp_proto import control as c
from smp_proto.errors import DaemonError
from smpctl.connection import Connection, Exchange
from smpctl.watching import pause_after

ANSWER_TIMEOUT_S = 60.0
SLOW_TIMEOUT_S = 300.0  # starts a compute process, or waits for someone else's server

T = TypeVar("T")


class Asking:
    """A connection to the daemon, made when first used; see :class:`smpctl.Client`, which says what can be asked.

    Args:
        path: as of :class:`smpctl.Client`.
    """

    def __init__(self, path: str | None = None) -> None:
        self._path = path
        self._connection: Connection | None = None
        self._closes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; jobs go on. The one call that another thread may make: it ends a watch there."""
        self._closes += 1
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def connect(self) -> c.Hello:
        """Connect now, if need be, and return what the daemon said of itself."""
        if self._connection is None or not self._connection.alive:
            self._connection = Connection(self._path)
        return self._connection.hello

    def _open(self, request: Any, timeout: float | None = ANSWER_TIMEOUT_S) -> Exchange:
        self.connect()
        assert self._connection is not None
        return self._connection.open(request, timeout=timeout)

    def _call(self, request: Any, kind: type[T], timeout: float | None = ANSWER_TIMEOUT_S) -> T:
        return self._ask(request, lambda exchange: exchange.result(kind), timeout)

    def _ask(self, request: Any, take: Callable[[Exchange], T], timeout: float | None) -> T:
        def ask() -> T:
            with self._open(request, timeout) as exchange:
                return take(exchange)

        return self._again(ask, timeout)

    def _again(self, act: Callable[[], T], timeout: float | None = None) -> T:
        """Do it once more where the daemon wants to be asked more rarely, which it says before anything else."""
        until = time.monotonic() + (timeout or ANSWER_TIMEOUT_S)
        while True:
            try:
                return act()
            except DaemonError as error:
                time.sleep(pause_after(error, until))

    def _stream(self, request: Any, kind: type[T], timeout: float | None = ANSWER_TIMEOUT_S) -> Iterator[T]:
        """Every part of an answer as it comes."""
        until, begun = time.monotonic() + ANSWER_TIMEOUT_S, False
        while True:
            try:
                with self._open(request, timeout) as exchange:
                    for part in exchange.messages(kind):
                        begun = True
                        yield part
                return
            except DaemonError as error:
                if begun:
                    raise
                time.sleep(pause_after(error, until))

    def _parts(self, request: Any, kind: type[T], timeout: float | None = ANSWER_TIMEOUT_S) -> list[T]:
        """Every part of an answer that may not fit one frame: DATA of the reply's own kind, then the reply."""
        return self._ask(request, lambda exchange: [*exchange.messages(kind), exchange.result(kind)], timeout)
