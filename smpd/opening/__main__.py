"""``python -m smpd.opening FD``: the process at the other end of smpd's socketpair."""

import os
import signal
import socket
import sys

import anyio

from smp_proto.aio import Channel
from smp_proto.errors import DaemonError
from smp_proto.serving import serve
from smpd.host.process import collect_seldom
from smpd.links.starting import link_fd, usage
from smpd.opening.server import Server
from smpd.walls.sandbox import Kernel, Sandbox


async def run(fd: int, kernel: Kernel) -> None:
    """Serve the link on ``fd`` until it closes."""
    collect_seldom()
    channel, server = Channel(socket.socket(fileno=fd)), Server(kernel)
    try:
        await serve(channel, server.handle, unexpected=server.log)
    except DaemonError:
        pass  # smpd does not keep to the protocol, or is another release's: it sees the link close
    finally:
        server.close()
        channel.close()


def main(kernel: Kernel | None = None) -> None:
    """Entry point; ``kernel`` stands in for the running one in tests."""
    # The first walls need no Setup and are never left out: keys are on their way.
    sandbox = Sandbox("required", kernel := kernel or Kernel.probe())
    sandbox.forgo_privileges(signal.SIGKILL)
    sandbox.forgo_io_uring()
    if (fd := link_fd(sys.argv[1:])) < 0:
        sys.exit(usage("opening"))
    os.set_inheritable(fd, False)
    anyio.run(run, fd, kernel)


if __name__ == "__main__":
    main()
