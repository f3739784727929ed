"""How a worker process is started, by smpd itself or by a keeper (``smpd.compute.keeper``) that smpd asks to.

With a keeper: smpd connects to the keeper's Unix socket and sends :data:`START` with one end of the worker's link. The
keeper starts the worker with it and answers :data:`STARTED` with a pidfd of the worker. It kills the worker when smpd
closes the connection, or sends anything more.
"""

import os
import socket
import stat
import struct
import sys

from smp_proto.memory import BIND_NOW

START, STARTED = b"s", b"p"
EXIT_USAGE = 2
_UCRED = struct.Struct("=iII")
# What a worker's environment may hold: nothing of ours, and no credential that happens to be exported.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "VIRTUAL_ENV", "XDG_RUNTIME_DIR", "TMPDIR")
_ENVIRONMENT_OF = {
    "fetch": (
        "SSH_AUTH_SOCK",
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "SSL_CERT_FILE",
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "NO_PROXY",
        "no_proxy",
    ),
    "opening": (),
    "compute": ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LD_LIBRARY_PATH"),
}


def command(role: str, fd: int) -> list[str]:
    """The command line of a worker that inherits ``fd``, its end of the link."""
    return [sys.executable, "-P", "-m", f"smpd.{role}", str(fd)]


def link_fd(argv: list[str]) -> int:
    """The descriptor that a worker's command line names, or -1 where it names no socket."""
    try:
        fd = int(argv[0]) if len(argv) == 1 else -1
        return fd if fd >= 3 and stat.S_ISSOCK(os.fstat(fd).st_mode) else -1
    except (ValueError, OSError):
        return -1


def usage(role: str) -> int:
    """Say how a worker is not to be called, and return the exit status for that."""
    sys.stderr.write(f"usage: python -m smpd.{role} FD (a socket; started by smpd, not by hand)\n")
    return EXIT_USAGE


def environment(role: str) -> dict[str, str]:
    """What a worker gets of this environment; of PYTHONPATH only what does not depend on the folder of the start."""
    found = {name: os.environ[name] for name in _ENVIRONMENT + _ENVIRONMENT_OF[role] if name in os.environ}
    if "PYTHONPATH" in found:
        found["PYTHONPATH"] = os.pathsep.join(filter(os.path.isabs, found["PYTHONPATH"].split(os.pathsep)))
    return found | {BIND_NOW: "1"}


def peer_uid(connection: socket.socket) -> int:
    """Who connected; on the side that connected, who listens (SO_PEERCRED, unix(7))."""
    uid: int = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
    return uid
