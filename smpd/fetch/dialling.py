"""Connecting to a server by its name, which may have several addresses: one that does not answer hides no other."""

import asyncio
import socket

import aiohappyeyeballs

NEXT_S = 0.25  # until the next address is tried beside those that have not answered (RFC 8305 §5)


async def dial(host: str, port: int) -> socket.socket:
    """A connected socket. How long that may take is the caller's.

    Raises:
        OSError: no address could be reached, or there is none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=NEXT_S)
