"""How long a peer is waited for. It is judged by what moves: a slow line may take hours, a silent one may not.

What moves is counted by the kernel (``tcp_info`` of tcp(7)): bytes received, and bytes that the peer acknowledged, so
that an upload is judged by what left this machine.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Protocol

import anyio

from smpd.links.fetching import Deadlines

_TICKS = 4  # looks in the shortest of the limits
_COUNTERS = struct.Struct("@120x2Q")  # tcpi_bytes_acked and tcpi_bytes_received, in Linux since 4.1


class Stalled(TimeoutError):  # noqa: N818 - it says what the peer has done
    """The peer moved nothing for too long, or too little to be worth the wait; the text says which."""


class Patience:
    """Judges one peer by a counter of bytes. No clock and no socket of its own.

    Given up is whoever moves nothing for ``stall_s``, or in a whole window less than ``rate_min`` bytes a second.
    """

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self.begin(0.0, 0)

    def begin(self, now: float, moved: int, patience_s: float = 0.0) -> None:
        """Begin to wait.

        Args:
            moved: the counter.
            patience_s: how long nothing may move, and the least window, where that is not ``stall_s``.
        """
        self._stall_s = patience_s or self._deadlines.stall_s
        self._window_s = max(self._deadlines.window_s, patience_s)
        self._last = self._since = now
        self._moved = self._base = moved

    @property
    def tick_s(self) -> float:
        """How often to look."""
        return min(self._stall_s, self._window_s) / _TICKS

    def look(self, now: float, moved: int) -> str:
        """Why to give up; empty while there is no reason."""
        if moved != self._moved:
            self._moved, self._last = moved, now
        elif now - self._last >= self._stall_s:
            return f"moved nothing for {self._stall_s:g} s"
        if now - self._since >= self._window_s:
            if moved - self._base < self._deadlines.rate_min * (now - self._since):
                return f"moved only {moved - self._base} bytes in {now - self._since:.3g} s"
            self._since, self._base = now, moved
        return ""


class _Options(Protocol):
    def getsockopt(self, level: int, option: int, length: int, /) -> bytes: ...


def acknowledged_and_received(sock: _Options | None) -> tuple[int, int]:
    """Bytes that the peer has acknowledged, and that have come; zeros where the socket is closed, or no TCP."""
    if sock is None:
        return 0, 0
    try:
        acknowledged, received = _COUNTERS.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTERS.size))
    except (OSError, struct.error):
        return 0, 0
    return acknowledged, received


@contextlib.contextmanager
def while_moving(deadlines: Deadlines, moved: Callable[[], int], patience_s: float = 0.0) -> Iterator[None]:
    """Wait in the block for as long as bytes move.

    Args:
        moved: the counter.
        patience_s: as for :meth:`Patience.begin`.

    Raises:
        Stalled: they do not.
    """
    loop = asyncio.get_running_loop()
    patience = Patience(deadlines)
    patience.begin(loop.time(), moved(), patience_s)
    scope = anyio.CancelScope()
    why = ""
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal why, timer
        why = patience.look(loop.time(), moved())
        if why:
            scope.cancel()
        else:
            timer = loop.call_later(patience.tick_s, look)

    timer = loop.call_later(patience.tick_s, look)
    try:
        with scope:
            yield
    finally:
        timer.cancel()
    if scope.cancelled_caught:
        raise Stalled(why)
