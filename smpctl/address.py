"""Where the daemon's control socket is, and what to say when nobody answers there."""

import os
import socket
import stat
from collections.abc import Mapping

from smp_proto.errors import DaemonError

SYSTEM_SOCKET = "/run/smpd/smpd.sock"
START_HINT = "start it with: smpd (as yourself), or: systemctl start smpd.socket"


def candidates(path: str | None = None, environ: Mapping[str, str] = os.environ) -> list[str]:
    """The sockets to try, in order.

    A path given, or else ``SMPD_SOCKET``, is the only one. Otherwise the person's own daemon comes before the
    machine's: ``$XDG_RUNTIME_DIR/smpd/smpd.sock`` (``/tmp/smpd-UID/smpd.sock`` where that is unset), then
    ``/run/smpd/smpd.sock``.
    """
    named = path or environ.get("SMPD_SOCKET")
    if named:
        return [named]
    runtime = environ.get("XDG_RUNTIME_DIR")
    folder = f"{runtime}/smpd" if runtime else f"/tmp/smpd-{os.getuid()}"  # noqa: S108 - its owner is checked
    own = [f"{folder}/smpd.sock"] if runtime or _is_ours(folder) else []
    return [*own, SYSTEM_SOCKET]


def connect(path: str | None = None, *, timeout: float = 5.0) -> socket.socket:
    """Return a connected socket to the first candidate that answers.

    Raises:
        DaemonError: ``daemon_down``, saying which sockets were tried and why each failed.
    """
    tried: dict[str, str] = {}
    for candidate in candidates(path):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(timeout)
            sock.connect(candidate)
        except PermissionError:
            sock.close()
            hint = "join the group smpd and log in again: sudo usermod -aG smpd $USER"
            message = f"this user may not connect to {candidate}"
            raise DaemonError("daemon_down", message, hint=hint, retryable=False) from None
        except OSError as error:
            sock.close()
            tried[candidate] = "not there" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        else:
            return sock
    listed = ", ".join(f"{name} ({why.lower()})" for name, why in tried.items())
    raise DaemonError("daemon_down", f"smpd does not answer: {listed}", hint=START_HINT, details={"tried": tried})


def _is_ours(folder: str) -> bool:
    """Whether a folder in /tmp is ours alone: anyone may make one there and wait for us in it."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) == 0o700
