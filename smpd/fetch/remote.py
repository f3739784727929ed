"""What every kind of remote can do, the deadlines it keeps, and the errors they share."""

import contextlib
import errno
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Literal, NamedTuple, Protocol

import anyio

from smp_proto.control import ObjectInfo
from smp_proto.durable import is_part
from smp_proto.errors import IntegrityError, NotFoundError, RemoteError, ResourceError, SmpError, StateError, UsageError
from smpd.links.fetching import END_BYTES, Clear, Seen

PATH_MAX_BYTES = 1024
# What to type to change a remote; smpd puts the name in.
ANEW = "smpctl remote add NAME URL --replace"
# Of a batch of a listing, which takes no more than fetching.LISTED_BYTES with all there is beside names and pins.
BATCH_OBJECTS = 256
BATCH_NAME_BYTES = 32 << 10
LISTED_MAX_BYTES = 64 << 10  # of a path; folders lie deeper than a path may be that is asked for
COMPARED_BYTES = 4 << 20
_UNSPEAKABLE = re.compile(r"\\x[89a-f][0-9a-f]")  # of a name that is not UTF-8, as it is listed

Progress = Callable[[int], Awaitable[None]]
Outcome = Literal["moved", "gone", "replaced"]


class Writing(NamedTuple):
    """How an object is to be written; see :class:`smpd.links.fetching.Write`.

    Args:
        part: what a file is called until it is whole; a name of its own when empty.
        replaces: pin of what may be there, empty for nothing; None for anything.
        begun: told the id of a multipart upload; it is not used before that returns.
    """

    part: str = ""
    replaces: str | None = None
    begun: Callable[[str], Awaitable[None]] | None = None


PLAINLY = Writing()


class Remote(Protocol):
    """One remote. Paths have passed :func:`check_path`; errors are those of ``smpd.links.fetching``.

    Attributes:
        at_once: how many small objects may be read at once.
    """

    at_once: int

    async def stat(self, path: str) -> ObjectInfo:
        """Size and pin of one object."""
        ...

    def walk(self, prefix: str, recursive: bool, after: str = "") -> AsyncGenerator[ObjectInfo, None]:
        """Objects whose path starts with ``prefix`` and comes after ``after``, in the order of their UTF-8 bytes.

        A server that does not know how to begin there lists from the start.

        Unless ``recursive``, what lies below a further ``/`` is one entry that ends in ``/`` and has no pin.
        """
        ...

    async def read(self, path: str, pin: str, offset: int, into: memoryview) -> None:
        """Fill ``into`` from byte ``offset`` on, or raise."""
        ...

    async def tail(self, path: str, into: memoryview) -> ObjectInfo:
        """Put the last ``len(into)`` bytes, or all of a smaller object, into the front of ``into``."""
        ...

    async def write(self, path: str, fd: int, size: int, progress: Progress, how: Writing = PLAINLY) -> ObjectInfo:
        """Upload bytes ``[0, size)`` of ``fd``, which stays open."""
        ...

    async def settle(self, path: str) -> None:
        """Have what a :meth:`write` that was cut off brought there outlive a power cut, as one that returned has."""
        ...

    async def clear(self, asked: Clear) -> None:
        """Remove what a :meth:`write` that was cut off may have left."""
        ...

    async def delete(self, path: str, pin: str = "") -> None:
        """Remove one object, if it is there; with a pin, only that version of it."""
        ...

    async def move(self, path: str, pin: str, target: str) -> Outcome:
        """Give one version of an object another name; see :class:`smpd.links.fetching.Move`."""
        ...

    def watch(self, prefix: str, queue: str) -> AsyncGenerator[Seen, None]:
        """Say when something may have appeared below a prefix; see :class:`smpd.links.fetching.Watch`.

        What was said is noted once the next is asked for.
        """
        ...

    async def probe(self) -> dict[str, str]:
        """Connect, authenticate, list at most one object; return what was seen of the server."""
        ...

    def hold(self, seconds: float) -> None:
        """Begin no part of what is under way for so long: the server asked for patience."""
        ...

    async def aclose(self) -> None:
        """Close what is open."""
        ...


async def tail_of(remote: Remote, path: str, into: memoryview) -> ObjectInfo:
    """:meth:`Remote.tail` for a remote whose stat costs little: stat, then read."""
    info = await remote.stat(path)
    length = min(len(into), info.size)
    if length:
        with into[:length] as part:
            await remote.read(path, info.pin, info.size - length, part)
    return info


async def is_same(remote: Remote, path: str, fd: int, size: int) -> tuple[str, bool]:
    """The pin of what is there, empty for nothing, and whether it is what the descriptor holds, told by its end."""
    end = memoryview(bytearray(min(size, END_BYTES)))
    try:
        info = await remote.stat(path)
        if info.size != size or not size:
            return info.pin, info.size == size
        info = await remote.tail(path, end)
    except NotFoundError as error:
        if error.code != "no_such_object":
            raise
        return "", False
    return info.pin, info.size == size and end == await read_source(fd, len(end), size - len(end))


async def is_copy(remote: Remote, one: ObjectInfo, other: ObjectInfo) -> bool:
    """Whether two objects hold the same, told by all of it: what tells less may be true of two scans.

    Raises:
        IntegrityError: ``source_changed``; one of them is another by now.
    """
    if one.size != other.size:
        return False
    buffers = [memoryview(bytearray(min(one.size, COMPARED_BYTES))) for _ in range(2)]
    for start in range(0, one.size, COMPARED_BYTES):
        pieces = [buffer[: one.size - start] for buffer in buffers]
        for info, piece in zip((one, other), pieces, strict=True):
            await remote.read(info.path, info.pin, start, piece)
        if pieces[0] != pieces[1]:
            return False
    return True


def check_path(path: str, *, prefix: bool = False) -> None:
    """Refuse a path that could mean something outside the remote's root. A ``prefix`` may be empty.

    Raises:
        UsageError: ``bad_name``.
    """
    ok = path or prefix
    ok = ok and not path.startswith("/") and "\0" not in path and len(path.encode()) <= PATH_MAX_BYTES
    if not ok or any(part in (".", "..") for part in path.split("/")):
        raise UsageError(
            "bad_name",
            f"{path[:80]!r} is not a path of a remote",
            hint=f"use a relative path of at most {PATH_MAX_BYTES} bytes without '.' and '..'",
        )


def check_folders(path: str) -> None:
    """Refuse a path with an empty part: a bucket tells ``a//b`` from ``a/b``, and folders take one for the other.

    Raises:
        UsageError: ``bad_name``.
    """
    if "//" in path:
        hint = "leave out all but one of the slashes that follow each other"
        raise UsageError("bad_name", f"{path[:80]!r} is not a path of a remote that has folders", hint=hint)


async def walk_folders(
    prefix: str, recursive: bool, entries: Callable[[str], Awaitable[list[ObjectInfo]]], after: str = ""
) -> AsyncGenerator[ObjectInfo, None]:
    """List folders as a bucket is listed: by string prefix, in the order of whole paths.

    Args:
        entries: what one folder holds, by the folder's path (empty or ending in ``/``), folders with ``/`` last.
        after: what comes up to this path is left out, and folders that hold nothing else are not read.
    """
    base = prefix[: prefix.rfind("/") + 1]
    pending = [ObjectInfo(base, 0)]
    while pending:
        info = pending.pop()
        if info.path != base and info.path.encode() <= after.encode() and not after.startswith(info.path):
            continue  # all below a folder comes before what begins otherwise
        if info.path == base or (recursive and info.path.endswith("/")):
            found = [entry for entry in await entries(info.path) if entry.path.startswith(prefix)]
            pending += sorted(found, key=lambda entry: entry.path.encode(), reverse=True)
        elif info.path.encode() > after.encode():
            yield info


def is_listed(name: str, folder: str) -> bool:
    """Whether a name in a folder belongs into a listing.

    Raises:
        UsageError: ``bad_name`` for one that no message can carry; leaving it out would hide it.
        RemoteError: ``remote_failed`` for one that leads into another folder: no file is called so.
    """
    if not name or "/" in name or "\0" in name:
        raise RemoteError(
            "remote_failed",
            f"the server lists a name in the folder {folder!r} that no file can have",
            hint="do not trust this server until you know why",
            retryable=False,
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError("bad_name", f"a name in the folder {folder!r} is not UTF-8", hint="rename it") from None
    return not (name in (".", "..") or is_part(name))


def changed(path: str) -> IntegrityError:
    """The object is no longer the one that was pinned."""
    return IntegrityError(
        "source_changed", f"{path} changed while it was being read", hint="submit the job again to read the new object"
    )


def taken(path: str) -> StateError:
    """Something is at a target that is not to be replaced."""
    return StateError("target_changed", f"{path} is not what was there when this was to be written")


def in_the_way(path: str) -> RemoteError:
    """What is at a target is no file: a folder, or a link that leads nowhere. To try again does not help."""
    hint = "choose another name, or move it away"
    text = f"{path} is there already and is no file, so nothing can be written under that name"
    return RemoteError("remote_failed", text, hint=hint, retryable=False)


def spoken(name: bytes) -> str:
    """A file's name as messages can carry it: what is not UTF-8 of it is escaped."""
    return name.decode(errors="backslashreplace")


async def why_missing(
    error: NotFoundError, path: str, entries: Callable[[str], Awaitable[list[ObjectInfo]]]
) -> SmpError:
    """There is no such file; or one that is listed by an escaped name, by which it cannot be asked for.

    Args:
        error: what is raised where it is not listed, either.
        path: what was asked for.
        entries: as for :func:`walk_folders`.
    """
    if error.code != "no_such_object" or not _UNSPEAKABLE.search(path):
        return error
    if not any(info.path == path for info in await entries(path[: path.rfind("/") + 1])):
        return error
    return UsageError("bad_name", f"the name of {path} is not UTF-8", hint="rename it")


def missing(path: str, where: str) -> NotFoundError:
    """There is no such object."""
    return NotFoundError(
        "no_such_object", f"{where} has no object {path}", hint="see what is there with: smpctl ls NAME:"
    )


def untold(what: str) -> UsageError:
    """This kind of remote does not tell of what appears."""
    return UsageError("bad_config", f"{what} does not tell of what appears in it", hint="leave out --events")


def missing_root(what: str) -> NotFoundError:
    """There is no such bucket or folder."""
    return NotFoundError(
        "no_such_bucket",
        f"{what} does not exist",
        hint="check the name; to give another: smpctl remote remove NAME, smpctl remote add NAME URL",
    )


def unreachable(where: str, why: str) -> RemoteError:
    """The server is not there, went away, or stopped in the middle."""
    return RemoteError("remote_unreachable", f"{where} {why}", hint="check the network, then: smpctl remote test NAME")


def unwritable(error: OSError, what: str) -> ResourceError:
    """A file of this machine could not be read or written."""
    code = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "disk_failed"
    return ResourceError(code, f"{what}: {os.strerror(error.errno or 0).lower()}", hint="free space or check the disk")


async def read_source(fd: int, length: int, offset: int) -> bytes:
    """Bytes of the descriptor to upload, read in a thread.

    Raises:
        UsageError: ``bad_request`` when it holds fewer than announced.
        ResourceError: ``disk_failed``.
    """

    def read() -> bytes:
        parts = []
        start, left = offset, length
        while left and (part := os.pread(fd, left, start)):
            parts.append(part)
            start += len(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    try:
        data = await anyio.to_thread.run_sync(read)
    except OSError as error:
        raise unwritable(error, "the data to upload") from error
    if len(data) != length:
        raise short_source()
    return data


def short_source() -> UsageError:
    """The descriptor to upload holds fewer bytes than announced."""
    return UsageError("bad_request", "the data to upload is shorter than announced")


@contextlib.contextmanager
def first_error() -> Iterator[None]:
    """Raise the first error of a task group as itself instead of as a group."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            known = [e for e in error.exceptions if isinstance(e, SmpError)]
            error = (known or error.exceptions)[0]
        raise error from None
