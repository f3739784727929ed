"""``python -P -m smpd.compute.keeper USER``: start one compute process for the smpd of USER, and kill it when told.

For a compute process that runs as another user than smpd, which then can neither start nor kill it. systemd starts the
keeper for each connection to smpd-compute.socket, with the connection as its standard input; ``smpd.links.starting``
says what goes over it. The process inherits the user, the limits and the short list of the environment from the keeper.

When the keeper ends the process is gone: killed and waited for, or, if the keeper itself was killed, by the kernel.

Exit status: 0 when the process ended or was killed as told, 2 for a wrong call, 76 for a stranger, or if no link came.
"""

import contextlib
import ctypes
import os
import pwd
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

from smpd.host.scheduling import work_in_bulk
from smpd.links.starting import START, STARTED, command, environment, peer_uid

_FIRST_WORD_S = 10.0
_PR_SET_PDEATHSIG = 1
_EXIT_USAGE, _EXIT_PROTOCOL = 2, 76


def main(argv: list[str]) -> int:
    """Serve the connection on standard input."""
    try:
        uid = pwd.getpwnam(argv[0]).pw_uid if len(argv) == 1 else -1
        connection = socket.socket(fileno=0)
    except (KeyError, OSError):
        uid = -1
    if uid == -1:
        return _refuse(_EXIT_USAGE, "usage: python -m smpd.compute.keeper USER (a connection on standard input)")
    if (peer := peer_uid(connection)) not in (0, uid):
        return _refuse(_EXIT_PROTOCOL, f"keeper: user {peer} is neither root nor {argv[0]}")
    link = _link(connection)
    if link is None:
        return _refuse(_EXIT_PROTOCOL, "keeper: no link came")
    work_in_bulk()
    process = subprocess.Popen(  # noqa: S603 - our own
        command("compute", link),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment("compute"),
        pass_fds=(link,),
        preexec_fn=_dying_with(os.getpid()),  # noqa: PLW1509 - there is one thread
    )
    os.close(link)
    pidfd = os.pidfd_open(process.pid)
    with contextlib.suppress(OSError):  # smpd is gone
        socket.send_fds(connection, [STARTED], [pidfd])
        select.select([connection.fileno(), pidfd], [], [])
    process.kill()
    process.wait()
    return 0


def _link(connection: socket.socket) -> int | None:
    """The end of the link that smpd sent."""
    connection.settimeout(_FIRST_WORD_S)
    try:
        data, fds, _, _ = socket.recv_fds(connection, 1, 1)
    except OSError:
        return None
    return fds[0] if data == START and len(fds) == 1 else None


def _dying_with(parent: int) -> Callable[[], None]:
    """Have the process killed when the keeper ends, from before its first line of Python on; prctl(2) outlives exec."""
    libc = ctypes.CDLL(None)

    def bind() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(_EXIT_PROTOCOL)

    return bind


def _refuse(status: int, text: str) -> int:
    sys.stderr.write(text + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
