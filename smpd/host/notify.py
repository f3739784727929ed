"""Telling the service manager how we are (sd_notify(3)), and its watchdog (sd_watchdog_enabled(3))."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping


class Notifier:
    """Sends state lines to ``$NOTIFY_SOCKET``; does nothing where there is none.

    Args:
        environ: where the address is looked up; a path, or ``@name`` for the abstract namespace.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = _watchdog_s(environ)

    @property
    def listens(self) -> bool:
        """Whether there is a manager."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Start-up is complete."""
        self._send("READY=1", f"STATUS={status}")

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """The configuration is being read anew, for the length of a block; ``Type=notify-reload`` waits for its end."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            yield
        finally:
            self._send("READY=1")

    def stopping(self, status: str = "", within_s: float = 0.0) -> None:
        """Shutdown has begun; ``within_s`` asks for so long, should ``TimeoutStopSec=`` be less."""
        lines = [f"STATUS={status}"] if status else []
        if within_s:
            lines.append(f"EXTEND_TIMEOUT_USEC={int(within_s * 1e6)}")
        self._send("STOPPING=1", *lines)

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send("STATUS=" + text.replace("\n", " "))

    def alive(self) -> None:
        """Feed the watchdog, which waits ``watchdog_s`` seconds at most; 0 where there is none."""
        if self.watchdog_s:
            self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # A manager that does not listen is no reason to stop serving.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), self._address)


def _watchdog_s(environ: Mapping[str, str]) -> float:
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    interval = environ.get("WATCHDOG_USEC", "")
    return int(interval) / 1e6 if interval.isdecimal() else 0.0
