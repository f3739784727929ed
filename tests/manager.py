"""A service manager's end of sd_notify(3): a real datagram socket, and what came in on it."""

import socket
import threading
from collections.abc import Callable
from typing import Self

WAIT_S = 100.0


class Manager:
    """Listens at ``address`` for the length of a block.

    Attributes:
        told: the datagrams so far, each as its lines.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.told: list[list[str]] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(address)
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.address)
        self._thread.join(WAIT_S)
        self._sock.close()

    def _read(self) -> None:
        while data := self._sock.recv(1 << 16):
            with self._changed:
                self.told.append(data.decode().splitlines())
                self._changed.notify_all()

    def until(self, wanted: Callable[[str], bool], since: int = 0) -> int:
        """Wait for a line; returns the number of the datagram behind the one that has it."""
        with self._changed:

            def found() -> int:
                hits = (n for n, lines in enumerate(self.told[since:], since + 1) if any(map(wanted, lines)))
                return next(hits, 0)

            assert self._changed.wait_for(found, WAIT_S), self.told[since:]
            return found()
