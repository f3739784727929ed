"""Work in a forked child: it has everything imported, says what it did over a socket, and may be killed at any instant."""

import os
import select
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec

from torture.acts import Said

_decode = msgspec.json.Decoder(Said).decode
WAIT_S = 60.0
READY = Said("ready", 0)

Say = Callable[[Said], None]


class Child:
    """A child that says what it did.

    It sends over a socket, so that no write(2) of its is about anything but files.

    Args:
        work: runs in the child, with a function to say things with and what ``before`` made. An exception in it is said,
            too, and is raised by :meth:`end`.
        before: runs in the child first; then it says that it is ready.
        held: whether it then waits for :meth:`release`.
    """

    def __init__(
        self, work: Callable[[Say, Any], None], before: Callable[[], Any] = bool, *, held: bool = False
    ) -> None:
        self.said: list[Said] = []
        self._error = ""
        self._buffer = b""
        self._ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if not self.pid:
            self._ours.close()
            _be(work, before, theirs)
        theirs.close()
        if not held:
            self.release()

    def release(self) -> None:
        """Let it begin."""
        self._ours.send(b"x")

    def wait_ready(self) -> None:
        """Wait until it has done what comes before."""
        while READY not in self.said:
            assert self.read(), self._error or "a child never became ready"
        self.said.remove(READY)

    def read(self, wait: float = WAIT_S) -> bool:
        """Take in what it said since; False once it will say nothing more, or in time said nothing."""
        if not select.select([self._ours], [], [], wait)[0]:
            return False
        data = b""
        try:
            data = self._ours.recv(1 << 16)
        except ConnectionResetError:  # killed before it read that it may begin
            return False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            if line.startswith(b"!"):
                self._error = line[1:].decode()
            else:
                self.said.append(_decode(line))
        return bool(data)

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> int:
        """Wait until it has ended, take in the rest, and return its status as subprocess does.

        Raises:
            AssertionError: something was raised in it.
        """
        while self.read():
            pass
        _, status = os.waitpid(self.pid, 0)
        self._ours.close()
        assert not self._error, self._error
        return os.waitstatus_to_exitcode(status)


def _be(work: Callable[[Say, Any], None], before: Callable[[], Any], told: socket.socket) -> NoReturn:
    lock = threading.Lock()

    def say(what: Said) -> None:
        with lock:
            told.sendall(msgspec.json.encode(what) + b"\n")

    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # structlog's default: what matters is said
        made = before()
        say(READY)
        told.recv(1)
        work(say, made)
    except BaseException:  # noqa: BLE001 - said by the parent
        with lock:
            told.sendall(b"!" + " | ".join(traceback.format_exc().splitlines()[-12:]).encode() + b"\n")
    finally:
        os._exit(0)
