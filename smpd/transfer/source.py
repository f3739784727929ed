"""A sealed object as a source: its envelope, checked before anything else of it is asked for."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import anyio

from smp_proto.control import ObjectInfo
from smp_proto.errors import IntegrityError, NotFoundError, SmpError
from smp_proto.sealed.envelope import OpenedEnvelope, Trust, open_envelope
from smp_proto.sealed.keys import Identity
from smp_proto.sealed.layout import TRAILER_BYTES, Layout, Trailer
from smpd.jobs.job import Job
from smpd.opening.ranges import Opener
from smpd.transfer.cutting import Cutting
from smpd.transfer.evidence import Evidence
from smpd.transfer.pool import RemotePool

if TYPE_CHECKING:
    from smpd.transfer.refusing import Acceptance

# One request covers the trailer and, for all but huge bundles, the envelope.
_TAIL_BYTES = 256 << 10


class Cut(NamedTuple):
    """An object whose trailer has been read: nothing of it is believed, but it is known how it would be cut.

    Attributes:
        here: from this byte on it came along with the trailer.
    """

    path: str
    pin: str
    cutting: Cutting
    here: int


@dataclass(slots=True)
class Source:
    """A sealed object whose envelope has been checked.

    ``tail`` is the envelope and the trailer as they are stored, ``ending`` the last bytes of the payload, or all of a
    small one, which came along with them. Close wipes the file key.
    """

    path: str
    info: ObjectInfo
    trailer: Trailer
    tail: bytes
    opener: Opener
    cutting: Cutting
    ending: bytes = b""
    evidence: Evidence = field(default_factory=Evidence)
    acceptance: "Acceptance | None" = None

    def came(self, start: int, end: int) -> bytes | None:
        """Bytes ``[start, end)`` of the payload where they came along with the envelope."""
        here = self._here
        return self.ending[start - here : end - here] if start >= here else None

    @property
    def cut(self) -> Cut:
        """How it is fetched."""
        return Cut(self.path, self.info.pin, self.cutting, self._here)

    @property
    def _here(self) -> int:
        return self.trailer.payload_bytes - len(self.ending)

    @property
    def whole(self) -> bool:
        """Whether all of the object came along with its envelope."""
        return len(self.ending) == self.trailer.payload_bytes

    def is_new(self, location: str) -> bool:
        """Whether there is something to :meth:`remember`."""
        return self.acceptance is not None and self.acceptance.is_new(location)

    def remember(self, location: str) -> None:
        """Note that it was verified whole, so that an older one in its place is noticed; blocking."""
        if self.acceptance:
            self.acceptance.remember([(location, self.opener.envelope.signed)])

    def close(self) -> None:
        """Wipe the keys."""
        self.opener.close()


async def open_source(
    pool: RemotePool,
    path: str,
    identities: list[Identity],
    trust: Trust,
    check: Callable[[ObjectInfo, Callable[[], Any]], Awaitable[Any]],
    acceptance: "Acceptance | None" = None,
    evidence: Evidence | None = None,
    early: Callable[[Cut], Awaitable[object]] | None = None,
) -> Source:
    """Read and check the end of a remote object, which is pinned by the answer to the first request.

    Args:
        check: is told what the object is before anything of it is opened, and has the opening done then, in the same
            thread: for a small object each hand-over between threads takes as long as opening it.
        acceptance: says whether the object may be taken where it is.
        evidence: gets what is to be kept of the object if it is refused.
        early: is told how the object is cut before a long index is asked for, which takes a request, and is decoded.

    Raises:
        IntegrityError: not sealed, cut, changed, for someone else, or by someone unknown.
        SmpError: the remote's.
    """
    evidence = evidence or Evidence()
    info, tail = await pool.tail(path, _TAIL_BYTES)
    evidence.info = info
    first = info.size - len(tail)

    def begin() -> tuple[Trailer, OpenedEnvelope | None]:
        trailer = Trailer.parse(tail[-TRAILER_BYTES:], info.size)
        return trailer, open_it(trailer) if trailer.payload_bytes >= first else None

    def open_it(trailer: Trailer) -> OpenedEnvelope:
        evidence.ends_sealed(tail if first == 0 else tail[trailer.payload_bytes - first :], trailer)
        try:
            opened = open_envelope(tail[trailer.payload_bytes - first : -TRAILER_BYTES], trailer, identities, trust)
        except IntegrityError as error:
            clear_frames(error.__traceback__)  # they have the index several times, and the error is kept
            raise
        try:
            if acceptance:
                acceptance.at(f"{pool.name}:{path}")(opened)
        except BaseException:
            opened.file_key.wipe()
            raise
        return opened.packed()

    trailer, opened = await check(info, begin)
    cutting = pool.cutting(Layout.from_payload_bytes(trailer.payload_bytes))
    if opened is None:
        if early is not None:
            await early(Cut(path, info.pin, cutting, trailer.payload_bytes))
        tail = await pool.fetch_bytes(path, info.pin, trailer.payload_bytes, first) + tail
        first = trailer.payload_bytes
        opened = await anyio.to_thread.run_sync(open_it, trailer, limiter=pool.openers.of_index(trailer.envelope_bytes))
    came = trailer.payload_bytes - first
    return Source(path, info, trailer, tail[came:], Opener(opened), cutting, tail[:came], evidence, acceptance)


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


def check_version(job: Job, info: ObjectInfo, location: str) -> None:
    """See that an object is the one that was asked for, where a job asks for one version.

    Raises:
        NotFoundError: ``no_such_object``.
    """
    wanted = getattr(job.spec, "pin", "")
    if wanted and info.pin != wanted:
        hint = "submit a job for what is there now"
        raise NotFoundError("no_such_object", f"{location} is another version than was asked for", hint=hint)
