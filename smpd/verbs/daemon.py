"""What the verbs work on: the rooms of a running daemon, put together by ``smpd.app``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio

from smp_proto.aio import Exchange
from smp_proto.control import Reloaded
from smp_proto.errors import DaemonError
from smp_proto.sealed.keys import PublicIdentity
from smpd.audit.kept import KeptLog
from smpd.config import Config
from smpd.control.accounts import Accounts
from smpd.control.actor import Actor
from smpd.control.watch import Events
from smpd.host.clock import Clock
from smpd.host.handed import Shares
from smpd.jobs.retention import Retention
from smpd.jobs.scheduler import Scheduler
from smpd.metrics.counting import Metrics
from smpd.notices.notices import Notices
from smpd.reloading import Reloading
from smpd.sync.syncs import Syncs
from smpd.transfer.box import Box
from smpd.transfer.ends import Ends
from smpd.transfer.limiting import Limiter
from smpd.transfer.pools import Pools
from smpd.transfer.runner import Runner
from smpd.transfer.workers import WorkerHost
from smpd.vault.keys import BoxKeys
from smpd.vault.remotes import RemoteStore
from smpd.vault.trust import TrustStore

_CLIENT_TIMEOUT_S = 60.0
_SEALED_AT_ONCE = 16  # files that are sealed leave threads to the others
T = TypeVar("T")


@dataclass(slots=True)
class Daemon:
    """A running daemon."""

    reloading: Reloading
    state_dir: str
    boot_id: str
    started: float
    box: Box
    runner: Runner
    ends: Ends
    scheduler: Scheduler
    retention: Retention
    events: Events
    pools: Pools
    syncs: Syncs
    remotes: RemoteStore
    trust: TrustStore
    audit: KeptLog
    keys: BoxKeys
    accounts: Accounts
    metrics: Metrics
    limiter: Limiter
    notes: list[str] = field(default_factory=list)
    handed: Shares = field(default_factory=Shares)
    sealing: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_SEALED_AT_ONCE))
    clock: Clock = field(default_factory=Clock)
    resting: anyio.Lock = field(default_factory=anyio.Lock)  # while jobs that refused something are to stay as they are
    notices: Sequence[Notices] = field(init=False)

    @property
    def config(self) -> Config:
        """The configuration in effect."""
        return self.reloading.config

    @property
    def public(self) -> PublicIdentity:
        """The box's public identity."""
        return self.box.identity.public

    @property
    def hosts(self) -> list[WorkerHost]:
        """The places of all workers."""
        fetching = [host for pool in self.pools.open.values() for host in pool.processes.hosts]
        return [*fetching, *self.pools.openers.hosts, *self.box.compute.hosts]

    @property
    def ring_bytes(self) -> int:
        """How much memory all rings take that are there."""
        pools, compute = self.pools.open.values(), self.box.compute.all
        return sum(each.processes.ring_bytes for each in pools) + sum(each.ring_bytes for each in compute)

    async def reload(self, actor: str) -> Reloaded:
        """Read the configuration anew and take up what can change at once. Raises as :meth:`Reloading.reload`."""

        async def record(changed: str, restart: str) -> None:
            await self.box.audit("daemon.reload", actor=actor, changed=changed, restart=restart)

        return await self.reloading.reload(record)

    async def record(self, actor: Actor, event: str, subject: str = "", **fields: Any) -> Any:
        """Write the audit record of an act that is about to be done; with ``act`` do it, too, and return what it does.

        Raises:
            AuditError: ``audit_unwritable``; the act must not be done.
        """
        return await self.box.audit(event, actor=actor.label, subject=subject, **fields)


async def next_file(exchange: Exchange, kind: type[T]) -> tuple[T, list[int]]:
    """The next message of a client that hands over files, and its descriptors, which the caller must close.

    Raises:
        DaemonError: ``protocol``; none came in time, or it is of another kind.
    """
    try:
        with anyio.fail_after(_CLIENT_TIMEOUT_S):
            return await exchange.receive(kind)
    except TimeoutError:
        raise DaemonError("protocol", f"the client handed over no file for {_CLIENT_TIMEOUT_S:g} s") from None
