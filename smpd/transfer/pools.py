"""The pools of all remotes, each made when it is first asked for."""

from collections.abc import Callable, Iterable, Sequence

import anyio
from anyio.abc import TaskGroup

from smp_proto.control import RemoteHealth, RemoteView
from smp_proto.errors import RemoteError
from smp_proto.sealed.keys import Identity
from smpd.metrics.counting import Metrics
from smpd.transfer.limiting import Limiter
from smpd.transfer.openers import Openers
from smpd.transfer.pool import FetchSettings, RemotePool
from smpd.vault.remotes import Remote


class Pools:
    """The pools of all remotes, each made when it is first asked for.

    Args:
        view: gives a remote (blocking); raises ``no_such_remote``.
        load: gives it with its secret, for the pool to wipe.
        settings: size of each pool.
        group: where the workers live.
        changed: is told when a remote goes down and when it is back.
        metrics: what is counted into.
        limiter: says when a remote may be asked.
        identities: the box's, for processes that open; without one threads do it all.
    """

    def __init__(
        self,
        view: Callable[[str], RemoteView],
        load: Callable[[str], Remote],
        settings: FetchSettings,
        group: TaskGroup,
        changed: Callable[[RemoteHealth], None],
        metrics: Metrics | None = None,
        limiter: Limiter | None = None,
        identities: Sequence[Identity] = (),
    ) -> None:
        self._view = view
        self._load = load
        self._settings = settings
        self._group = group
        self._changed = changed
        self._metrics = metrics or Metrics()
        self._limiter = limiter or Limiter()
        self.openers = Openers(group, identities, idle_s=settings.idle_s, sandbox=settings.sandbox)
        self._lock = anyio.Lock()
        self.open: dict[str, RemotePool] = {}

    async def get(self, name: str) -> RemotePool:
        """The pool of a remote.

        Raises:
            NotFoundError: ``no_such_remote``.
        """
        async with self._lock:
            if name not in self.open:
                remote = await anyio.to_thread.run_sync(self._view, name)
                self.open[name] = RemotePool(
                    remote,
                    self._load,
                    self._settings,
                    self._group,
                    self.openers,
                    self._changed,
                    self._metrics,
                    self._limiter,
                )
            return self.open[name]

    async def forget(self, name: str, *, replaced: bool = False) -> None:
        """Stop a remote's processes; the next use starts anew.

        Args:
            name: of the remote.
            replaced: whether it goes on with another secret, so that what is under way is to be tried again.
        """
        async with self._lock:
            pool = self.open.pop(name, None)
        if pool:
            await pool.aclose(replaced=replaced)
            await self.openers.tidy()
            pool.counts.forget()

    async def aclose(self) -> None:
        """Stop all."""
        for name in list(self.open):
            await self.forget(name)
        self.openers.stop()

    def held(self, names: Iterable[str]) -> RemoteError | None:
        """Why a job that needs these remotes had better not begin: one is down, pauses for long, or is left alone."""
        for name in names:
            error = self.open[name].gate.held() if name in self.open else self._limiter.quiet(name)
            if error is not None:
                return error
        return None
