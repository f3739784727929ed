"""A sealed object as a source: its envelope, checked before anything else of it is asked for."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import anyio

from smp_proto.control import ObjectInfo
from smp_proto.errors import IntegrityError, NotFoundError, SmpError
from smp_proto.sealed.envelope import Trust, open_envelope
from smp_proto.sealed.keys import Identity
from smp_proto.sealed.layout import TRAILER_BYTES, Trailer
from smpd.transfer.opening import Opener
from smpd.transfer.pool import RemotePool

# One request covers the trailer and, for all but huge bundles, the envelope.
_TAIL_BYTES = 256 << 10


@dataclass(slots=True)
class Source:
    """A sealed object whose envelope has been checked.

    ``tail`` is the envelope and the trailer as they are stored, ``whole`` the object where it is so small that it came
    along with them. Close wipes the file key.
    """

    path: str
    info: ObjectInfo
    trailer: Trailer
    tail: bytes
    opener: Opener
    whole: bytes | None = None

    def close(self) -> None:
        """Wipe the file key."""
        self.opener.envelope.file_key.wipe()


async def open_source(
    pool: RemotePool,
    path: str,
    identities: list[Identity],
    trust: Trust,
    check: Callable[[ObjectInfo], Awaitable[None]],
) -> Source:
    """Read and check the end of a remote object, which is pinned by the answer to the first request.

    Args:
        check: is told what the object is before anything of it is opened.

    Raises:
        IntegrityError: not sealed, cut, changed, for someone else, or by someone unknown.
        SmpError: the remote's.
    """
    info, tail = await pool.tail(path, _TAIL_BYTES)
    await check(info)
    trailer = Trailer.parse(tail[-TRAILER_BYTES:], info.size)
    first = info.size - len(tail)
    whole = bytes(tail) if first == 0 else None
    if trailer.payload_bytes < first:
        tail = await pool.fetch_bytes(path, info.pin, trailer.payload_bytes, first) + tail
    else:
        tail = tail[trailer.payload_bytes - first :]
    data = bytes(tail[:-TRAILER_BYTES])
    opened = await anyio.to_thread.run_sync(open_envelope, data, trailer, identities, trust)
    return Source(path, info, trailer, bytes(tail), Opener(opened, pool.settings.slot_bytes), whole)


def no_objects(remote: str, path: str) -> NotFoundError:
    """There is nothing below a prefix."""
    return NotFoundError("no_such_object", f"{remote}:{path} holds no objects", hint=f"run: smpctl ls {remote}:")


def naming(error: SmpError, name: str) -> SmpError:
    """The same error with the object's name in front, once."""
    if name in error.message:
        return error
    body = error.body()
    body.message = f"{name}: {error.message}"
    if isinstance(error, IntegrityError) and not body.hint:
        body.hint = "nothing of it was delivered; ask the sender to upload it again"
    return SmpError.from_body(body)


class Tally(Protocol):
    """Counts what moves."""

    def fetched(self, count: int) -> None:
        """Bytes asked of the remote."""

    def resumed(self, count: int) -> None:
        """Bytes that were in the spool already."""

    def advanced(self, count: int) -> None:
        """Bytes of the object that are done."""
