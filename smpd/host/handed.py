"""Files that users hand over, as open descriptors. Their file systems may answer late or never.

A FUSE server of the user's own, or a network file system that hangs, is asked when a file is read, looked at, and even
when it is closed. So all of that is done in threads of their own, a share of them for each user, and is left behind by
a request that ends: what hangs costs its user a thread, and nobody else anything.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel

from smp_proto.channel import UNREAD_FDS_MAX, close_all
from smp_proto.errors import DaemonError

_AT_ONCE = 8
_UNCLOSED_MAX = 2 * UNREAD_FDS_MAX
_HANGS_S = 5.0
_IDLE_S = 10.0
T = TypeVar("T")


class Share:
    """The threads of one user. They end when there is nothing to do, and do not keep the process from ending."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], None]] = deque()
        self._threads = self._idle = self._unclosed = 0
        self._left: dict[object, float] = {}  # what threads do that nobody waits for, and since when

    def takes(self) -> bool:
        """Whether this user may hand over more: not while too many wait to be closed."""
        return self._unclosed <= _UNCLOSED_MAX

    def owe(self, count: int) -> None:
        """So many more wait to be closed; fewer, where it is negative."""
        with self._changed:
            self._unclosed += count

    def close(self, fds: Sequence[int]) -> None:
        """Close descriptors in a thread; does not wait for it."""
        if fds:
            self.owe(len(fds))
            self._begin(lambda: self.close_here(fds))

    def close_here(self, fds: Sequence[int]) -> None:
        """Close what is owed; blocking."""
        for fd in fds:
            closing = object()
            self._left[closing] = time.monotonic()
            with contextlib.suppress(OSError):  # it could not be written: nobody is there to be told
                close_all([fd])
            del self._left[closing]
            self.owe(-1)

    def check(self) -> None:
        """See that there is a thread that can do something.

        Raises:
            DaemonError: ``busy``, when all of them were left behind and hang.
        """
        since = time.monotonic() - _HANGS_S
        if sum(began < since for began in list(self._left.values())) >= _AT_ONCE:
            hint = "see whether the disk answers on which they are; what it does not answer stays until it is unmounted"
            raise DaemonError("busy", "files that this user handed over before are still waited for", hint=hint)

    async def run(self, call: Callable[[], T]) -> T:
        """Call in a thread, which is left behind if this is cancelled; the call is made in any case."""
        answer: Future[T] = Future()
        answered = anyio.Event()
        token = anyio.lowlevel.current_token()

        def work() -> None:
            answer.set_running_or_notify_cancel()
            try:
                answer.set_result(call())
            except BaseException as error:  # noqa: BLE001 - it is raised where it was asked
                answer.set_exception(error)
            self._left.pop(answer, None)
            with contextlib.suppress(RuntimeError):  # the event loop is gone
                anyio.from_thread.run_sync(answered.set, token=token)

        self._begin(work)
        try:
            await answered.wait()
        except BaseException:
            if answer.running():
                self._left[answer] = time.monotonic()
            if answer.done():
                self._left.pop(answer, None)
            raise
        return answer.result()

    def _begin(self, work: Callable[[], None]) -> None:
        with self._changed:
            self._waiting.append(work)
            if len(self._waiting) <= self._idle or self._threads == _AT_ONCE:
                self._changed.notify()
                return
            self._threads += 1
        try:
            threading.Thread(target=self._work, name="handed over", daemon=True).start()
        except RuntimeError:  # there is none to be had: one that is there does it, or the next
            with self._changed:
                self._threads -= 1

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._idle += 1
                    woken = self._changed.wait(_IDLE_S)
                    self._idle -= 1
                    if not woken and not self._waiting:
                        self._threads -= 1
                        return
                work = self._waiting.popleft()
            work()


class Shares:
    """The threads of all users who handed files over."""

    def __init__(self) -> None:
        self._shares: dict[int, Share] = {}

    def of(self, uid: int) -> Share:
        """The share of a user."""
        return self._shares.setdefault(uid, Share())


class Handed:
    """What a request was handed: open until :meth:`close`, and for as long as a thread uses it.

    Args:
        share: of the user who handed it over.
    """

    def __init__(self, share: Share, fds: Sequence[int] = ()) -> None:
        self._over = False
        self._share = share
        self._fds = list(fds)
        self._lock = threading.Lock()
        self._users = 0

    def add(self, fds: Sequence[int]) -> None:
        """Take some more."""
        self._fds += fds

    async def use(self, call: Callable[..., T], *args: Any) -> T:
        """Call what asks their file systems, in a thread. Raises as :meth:`Share.check`, too."""

        def using() -> T:
            try:
                self.check()
                return call(*args)
            finally:
                self._done()

        self._share.check()
        with self._lock:
            self._users += 1
        return await self._share.run(using)

    def check(self) -> None:
        """See that somebody still waits for what is done with these.

        Raises:
            InterruptedError: nobody does; for whoever does it in a thread to stop.
        """
        if self._over:
            raise InterruptedError

    def close(self) -> None:
        """Close them, in a thread."""
        with self._lock:
            self._over = True
            if self._users:
                self._share.owe(len(self._fds))
                return
            fds, self._fds = self._fds, []
        self._share.close(fds)

    def _done(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users or not self._over:
                return
            fds, self._fds = self._fds, []
        self._share.close_here(fds)
