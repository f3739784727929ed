"""``python -m smpd.compute FD``: serve the link on an inherited socket, until smpd closes it.

The exit status is 0 when smpd closed the link, 2 for a wrong call, 75 when a processor did not let go or the device
was lost (after the answer that says so), 76 when smpd broke the protocol.
"""

import os
import socket
import sys

import anyio

from smp_proto.aio import Channel
from smp_proto.errors import DaemonError
from smp_proto.serving import serve
from smpd.compute.server import Server
from smpd.links.starting import link_fd, usage
from smpd.walls.sandbox import Kernel

_STREAMS_MAX = 4
_EXIT_PROTOCOL = 76


async def _serve(sock: socket.socket, kernel: Kernel) -> int:
    channel, server = Channel(sock), Server(kernel)
    try:
        await serve(channel, server.handle, unexpected=server.log, streams_max=_STREAMS_MAX)
    except DaemonError as error:
        server.log(error)
        return _EXIT_PROTOCOL
    finally:
        channel.close()
    return 0


def main(argv: list[str], kernel: Kernel | None = None) -> int:
    """Run the process; ``kernel`` stands in for the running one in tests."""
    if (fd := link_fd(argv)) < 0:
        return usage("compute")
    # Nothing else that smpd had open may come along.
    os.closerange(3, fd)
    os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
    return anyio.run(_serve, socket.socket(fileno=fd), kernel or Kernel.probe())


if __name__ == "__main__":
    if not sys.flags.safe_path:
        sys.path.pop(0)  # the folder smpd was started in is no place for code
    # Past the interpreter's own end: it would wait for threads, and a plugin's may never end.
    os._exit(main(sys.argv[1:]))
