"""A changed configuration, taken up while the daemon runs: what can change at once does, the rest is named.

A configuration with a mistake is refused whole, and the old one goes on. Whoever asked is told, and so are the log and
``smpctl status`` until a good one is read. No job is dropped: what runs beyond a lower limit goes on.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import anyio
import msgspec
import structlog

from smp_proto.control import Reloaded
from smp_proto.errors import SmpError
from smpd.config import LIMITS, PERMISSIONS, Config, known_keys

_log = structlog.get_logger("smpd")
_NAMED_MAX = 255  # characters of the names of keys in an audit record, which has room for 256

# What holds from the next moment on; all other keys from the next start on.
LIVE = frozenset(
    {
        "control.operator_group",
        "control.admin_group",
        "control.connections_max",
        "control.connections_user_max",
        "control.requests_max",
        "control.watches_user_max",
        "control.requests_per_s",
        "control.requests_burst",
        "control.stall_s",
        "jobs.running_max",
        "jobs.unfinished_user_max",
        "jobs.syncs_user_max",
        "jobs.attempts",
        "jobs.backoff_base_s",
        "jobs.backoff_max_s",
        "jobs.remote_wait_s",
        "jobs.drain_s",
        "jobs.stuck_s",
        "jobs.ended_kept",
        "jobs.gone_kept",
        "quarantine.max_bytes",
        "quarantine.remembered",
        "log.level",
        "log.format",
        "limits.bytes_per_s",
        "limits.requests_per_s",
        "limits.times",
        "limits.zone",
    }
)

Taker = Callable[[Config], Awaitable[None]]


def merge(running: Config, fresh: Config) -> tuple[Config, list[str], list[str]]:
    """What holds after a reload.

    Returns:
        The running configuration with what of the fresh one can change at once; the keys that changed so; and those
        in which the fresh one differs still, which need a restart.
    """
    sections: dict[str, Any] = {}
    origins = dict(running.origins)
    changed: list[str] = []
    restart: list[str] = []
    for key in known_keys():
        section, _, name = key.partition(".")
        value = getattr(getattr(fresh, section), name)
        if value == getattr(getattr(running, section), name):
            continue
        if key not in LIVE:
            restart.append(key)
            continue
        changed.append(key)
        origins[key] = fresh.origins[key]
        before = sections.get(section, getattr(running, section))
        sections[section] = msgspec.structs.replace(before, **{name: value})
    if fresh.permissions != running.permissions:
        changed.append(PERMISSIONS)
    changed += [
        f"{LIMITS}.{name}"
        for name in sorted({*running.remote_limits, *fresh.remote_limits})
        if running.remote_limits.get(name) != fresh.remote_limits.get(name)
    ]
    tables = {"permissions": fresh.permissions, "remote_limits": fresh.remote_limits}
    merged = msgspec.structs.replace(running, origins=origins, **tables, **sections)
    return merged, changed, restart


class Reloading:
    """The configuration in effect, and how another is taken up. Belongs to the event loop.

    Args:
        config: of the start.
        read: reads it anew (blocking); raises ``bad_config``.

    Attributes:
        config: what is in effect.
        restart: keys that were changed since the start and need another.
        refused: why the configuration that was read last was not taken up, or empty.
        around: entered for the length of a reload.
    """

    def __init__(self, config: Config, read: Callable[[], Config]) -> None:
        self.config = config
        self.restart: list[str] = []
        self.refused = ""
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext
        self._read = read
        self._preparing: list[Taker] = []
        self._takers: list[Taker] = []
        self._lock = anyio.Lock()

    def first(self, preparing: Taker) -> None:
        """Have a room prepare for each configuration before it comes into effect; what it raises refuses it."""
        self._preparing.append(preparing)

    def when(self, taker: Taker) -> None:
        """Have a room take up each configuration that comes into effect; it must not fail."""
        self._takers.append(taker)

    async def reload(self, record: Callable[[str, str], Awaitable[None]]) -> Reloaded:
        """Read the configuration and take up what can change at once.

        Args:
            record: writes the audit record, of what changes and what needs a restart, before anything does.

        Raises:
            UsageError: ``bad_config``; nothing was changed.
            DaemonError: ``busy``, the user database does not answer; nothing was changed.
            AuditError: ``audit_unwritable``, ``audit_broken``; nothing was changed.
        """
        async with self._lock:
            with self.around():
                return await self._reload(record)

    async def _reload(self, record: Callable[[str, str], Awaitable[None]]) -> Reloaded:
        try:
            fresh = await anyio.to_thread.run_sync(self._read)
            config, changed, restart = merge(self.config, fresh)
            for prepare in self._preparing:
                await prepare(config)
            with anyio.CancelScope(shield=True):  # all of it, or nothing
                await record(_named(changed), _named(restart))
                self.config, self.restart, self.refused = config, restart, ""
                for take in self._takers:
                    await take(config)
        except SmpError as error:
            self.refused = error.message
            _log.error("configuration refused: the one before goes on", code=error.code, reason=error.message)
            raise
        _log.info("configuration taken up", changed=changed, needs_restart=restart)
        return Reloaded(changed, restart)


def _named(keys: list[str]) -> str:
    text = " ".join(keys)
    return text if len(text) <= _NAMED_MAX else text[:_NAMED_MAX] + "…"
