"""A worker process that does as it is told: ``python fake_worker.py FD`` behaves as the environment's FAKE_WORKER says.

Its link speaks the real protocol; requests are maps with ``op``.
"""

import os
import signal
import socket
import sys

import anyio
import msgspec

from smp_proto.aio import Channel, Exchange
from smp_proto.errors import IntegrityError
from smp_proto.serving import serve
from smp_proto.wire import FrameType
from smpd.links.ring import Ring

rings: list[Ring] = []


async def handle(body: bytes, fds: list[int], exchange: Exchange) -> object:
    request = msgspec.msgpack.decode(body)
    match request["op"]:
        case "pid":
            return os.getpid()
        case "die":
            os.kill(os.getpid(), request.get("signal", signal.SIGKILL))
        case "exit":
            os._exit(7)
        case "hang":
            await anyio.sleep_forever()
        case "deaf":  # stops reading its link, and would not end when it is closed
            with open("/proc/self/comm", "w") as comm:
                comm.write("deaf")
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                signal.pause()
        case "slow-cancel":
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.2)
                    os.write(fds[0], b"late")
        case "setup":
            rings.append(Ring(os.dup(fds[0]), request["slots"], request["slot_bytes"]))
            return {"sandbox": {}}
        case "read":
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True), rings[0].slot(request["slot"]) as slot:
                    await anyio.sleep(0.2)  # a thread that is still reading
                    slot[:4] = b"late"
        case "lie":
            raise IntegrityError("corrupt", "it is all corrupt")
        case "say":
            for line in request["lines"]:
                os.write(2, line)
        case "hand-back":  # the first that it was handed; the second is closed when it does not have that any more
            socket.send_fds(exchange.channel.socket, [b"\xff"], fds[:1])
            os.close(fds[0])
            os.close(fds[1])
        case "garbage":
            exchange.channel.socket.send(b"\xff" * 64)
            await anyio.sleep_forever()
        case "stranger":
            await exchange.channel.send(FrameType.END, 99, b"")
            await anyio.sleep_forever()
    return None


async def main() -> None:
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    try:
        await serve(channel, handle, unexpected=lambda error: None)
    finally:
        channel.close()


if __name__ == "__main__":
    anyio.run(main)
