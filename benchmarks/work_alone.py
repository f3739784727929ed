"""The work itself, with no daemon around it: what receiving, hashing and opening one large object takes here.

Threads of one process, each with a connection and a segment at a time, which is hashed and opened while it lies in
the core's cache. Nothing is kept apart, so nothing is copied; nothing is put in order, recorded or handed on. It stands
on the same libraries as SMP, so it says how much of a goal the machine leaves to be reached.
"""

import contextlib
import itertools
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from smp_proto.sealed.envelope import OpenedEnvelope, open_envelope
from smp_proto.sealed.keys import Identity, PublicIdentity
from smp_proto.sealed.layout import SEGMENT_BYTES, TRAILER_BYTES, Trailer
from smp_proto.sealed.payload import content_digest, leaf

ENDS_AS = "plaintext in memory of one process that has network and keys; tags, content digest, signature checked"
_THREADS_PER_CORE = 2  # one receives while the other opens
_HEAD_BYTES = 16 << 10


class _Connection:
    """Asks one server for ranges of one object, one after the other."""

    def __init__(self, url: SplitResult) -> None:
        assert url.hostname
        self._ask = f"GET {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nRange: bytes={{}}-{{}}\r\n\r\n"
        self._socket = socket.create_connection((url.hostname, url.port or 80), 30.0)

    def read(self, start: int, into: memoryview) -> None:
        """Fill the view with bytes from ``start`` on."""
        self._socket.sendall(self._ask.format(start, start + len(into) - 1).encode())
        head = b""
        while b"\r\n\r\n" not in head:
            more = self._socket.recv(_HEAD_BYTES)
            if not more:
                raise EOFError("the server closed the connection")
            head += more
        head, _, body = head.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 206"):
            raise RuntimeError(head.partition(b"\r\n")[0].decode("ascii", "replace"))
        into[: len(body)] = body
        done = len(body)
        while done < len(into):
            count = self._socket.recv_into(into[done:])
            if not count:
                raise EOFError("the server closed the connection")
            done += count

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def work_alone(url: str, size: int, key_file: str, key: str, sender: str) -> None:
    """Receive, check and open an object whole.

    Args:
        url: of the object, over HTTP.
        size: of the object.
        key_file: the identity it is sealed for, as a key file.
        key: what opens that, in hexadecimal.
        sender: whose signature it has, as the text of a public key.

    Raises:
        IntegrityError: it is not what the sender signed.
    """
    identity = Identity.from_file(Path(key_file).read_bytes(), credential=bytearray.fromhex(key))
    where = urlsplit(url)
    envelope = _envelope(where, size, identity, PublicIdentity.parse(sender))
    payload, layout = envelope.payload(), envelope.layout
    leaves: list[bytes] = [b""] * layout.segments
    numbers = itertools.count()

    def work(_: int) -> None:
        sealed, plain = memoryview(bytearray(SEGMENT_BYTES)), memoryview(bytearray(SEGMENT_BYTES))
        with contextlib.closing(_Connection(where)) as connection:
            for k in itertools.takewhile(layout.segments.__gt__, numbers):  # those that nobody else took
                start, end = layout.leaf_span(k)
                piece = sealed[: end - start]
                connection.read(start, piece)
                payload.open_segment(k, piece[layout.segment_span(k)[0] - start :], plain)
                leaves[k] = leaf(piece)

    threads = _THREADS_PER_CORE * len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    if content_digest(leaves) != envelope.signed.content_digest:
        raise RuntimeError("the content is not what the sender signed")


def _envelope(url: SplitResult, size: int, identity: Identity, sender: PublicIdentity) -> OpenedEnvelope:
    end = bytearray(TRAILER_BYTES)
    with contextlib.closing(_Connection(url)) as connection:
        connection.read(size - len(end), memoryview(end))
        trailer = Trailer.parse(end, size)
        sealed = bytearray(trailer.envelope_bytes)
        connection.read(trailer.payload_bytes, memoryview(sealed))
    return open_envelope(bytes(sealed), trailer, [identity], {sender.key_id: sender}.get)
