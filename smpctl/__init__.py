"""The client: a library (:class:`Client`, :class:`AsyncClient`) and the command line built on it.

It knows the protocol and the sealed object from ``smp_proto``; it imports nothing of the daemon. Names are
loaded when they are first used, so that asking a daemon for its status pays for a socket and no more.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smpctl.async_client import AsyncClient
    from smpctl.client import Client
    from smpctl.files import LocalFile, collect
    from smpctl.watching import job_of

_HOME = {
    "AsyncClient": "smpctl.async_client",
    "Client": "smpctl.client",
    "LocalFile": "smpctl.files",
    "collect": "smpctl.files",
    "job_of": "smpctl.watching",
}

__all__ = ["AsyncClient", "Client", "LocalFile", "collect", "job_of"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
