"""A descriptor whose last close waits: for who must not be the one to wait."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

_LINGER_S = 3600
_PATIENCE_S = 10.0


@contextlib.contextmanager
def lingering() -> Iterator[socket.socket]:
    """A socket whose last close waits for its peer to read (SO_LINGER, socket(7)), which it does not in this block.

    Raises:
        AssertionError: the block waited for that. It is let go then.
    """
    let_go = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        near = socket.create_connection(server.getsockname())
        far = server.accept()[0]
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, _LINGER_S))
    near.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            near.send(bytes(1 << 16))

    def rescue() -> None:
        let_go.set()
        far.close()  # with something unread, which resets the connection

    timer = threading.Timer(_PATIENCE_S, rescue)
    timer.start()
    try:
        yield near
        assert not let_go.is_set(), "the last close was waited for"
    finally:
        timer.cancel()
        timer.join()
        far.close()
        near.close()
