"""``python -m smpd.fetch FD``: the process at the other end of smpd's socketpair."""

import importlib.util
import logging
import os
import signal
import socket
import sys

import anyio

from smp_proto.aio import Channel
from smpd.fetch.service import Service
from smpd.host.process import collect_seldom
from smpd.links.starting import link_fd, usage
from smpd.walls.sandbox import Kernel, Sandbox

_GRACE_S = 15  # for aborting uploads and removing temporary files once smpd is gone


async def run(fd: int, kernel: Kernel) -> None:
    """Serve the link on ``fd`` until it closes, SIGTERM comes, or a terminal interrupts."""
    channel = Channel(socket.socket(fileno=fd))
    async with anyio.create_task_group() as group:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:

            async def stop() -> None:
                async for _ in signals:
                    signal.alarm(_GRACE_S)
                    group.cancel_scope.cancel()

            group.start_soon(stop)
            await Service(kernel, collect_seldom).run(channel)
            group.cancel_scope.cancel()


def main(kernel: Kernel | None = None) -> None:
    """Entry point; ``kernel`` stands in for the running one in tests."""
    # The first walls need no Setup and are never left out: a secret is on its way.
    sandbox = Sandbox("required", kernel := kernel or Kernel.probe())
    sandbox.forgo_privileges(signal.SIGTERM)
    sandbox.forgo_io_uring()
    logging.getLogger().addHandler(logging.NullHandler())  # else the libraries' warnings would go to stderr
    if (fd := link_fd(sys.argv[1:])) < 0:
        sys.exit(usage("fetch"))
    os.set_inheritable(fd, False)
    uvloop = importlib.util.find_spec("uvloop") is not None
    anyio.run(run, fd, kernel, backend_options={"use_uvloop": uvloop})


if __name__ == "__main__":
    main()
