"""How many files this process may have open, how many it has, and how many it may come to need."""

import os
import resource
from typing import NamedTuple

import msgspec

from smpd.config import Config, Control

# Enough for anything that the configuration allows; some systems' hard limit is a thousand million.
_MOST = 1 << 16
_OWN = 48  # database, audit log, event loop, standard streams, locks, and what is open for a moment
_WORKER = 5  # its link, its ring, its process, what it says, and one in passing
_COMPUTE = 6  # likewise, with two rings, and a connection to its keeper
_JOB = 4  # its spool file, an upload, a folder, and one in passing
_CONNECTION = 2  # itself, and a file that is being handed over


class Descriptors(NamedTuple):
    """Open files: now, at most by the limit, and at most by the configuration."""

    open: int
    limit: int
    needed: int


def raise_limit() -> None:
    """Raise the soft limit on open files (RLIMIT_NOFILE) to the hard one, as any process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """The soft limit."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST if soft == resource.RLIM_INFINITY else soft


def needed(config: Config) -> int:
    """The most that a daemon with this configuration may have open, with two remotes to each job that runs."""
    return _without_clients(config) + config.control.connections_max * _CONNECTION


def bounded(config: Config) -> Control:
    """The limits on connections: as configured, or what the limit on open files leaves of that."""
    control = config.control
    most = max(2, min(control.connections_max, (limit() - _without_clients(config)) // _CONNECTION))
    user = min(control.connections_user_max, most)
    return msgspec.structs.replace(control, connections_max=most, connections_user_max=user)


def look(config: Config) -> Descriptors:
    """How it is now."""
    return Descriptors(len(os.listdir("/proc/self/fd")), limit(), needed(config))


def _without_clients(config: Config) -> int:
    jobs = config.jobs.running_max + 1
    fetch, compute = 2 * jobs * config.fetch.processes_max, len(config.compute.processors)
    return _OWN + jobs * _JOB + fetch * _WORKER + compute * _COMPUTE
