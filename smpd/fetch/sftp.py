"""An SFTP server, through asyncssh: reads over sessions of our own (``sftp_session``), the rest over asyncssh's."""

import contextlib
import posixpath
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from typing import TypeVar, cast

import anyio
import asyncssh
from asyncssh import constants as protocol

from smp_proto.control import ObjectInfo, SftpConfig, SftpSecret
from smp_proto.durable import part_name
from smp_proto.errors import NotFoundError, RemoteError
from smpd.fetch.pins import stat_pin
from smpd.fetch.remote import (
    PLAINLY,
    Outcome,
    Progress,
    Writing,
    changed,
    check_folders,
    in_the_way,
    is_copy,
    is_listed,
    missing,
    missing_root,
    read_source,
    spoken,
    taken,
    unreachable,
    untold,
    walk_folders,
    why_missing,
)
from smpd.fetch.sftp_lines import CONNECTIONS_MAX, Line, Lines
from smpd.fetch.sftp_login import GONE, Login
from smpd.fetch.sftp_session import ReadSession
from smpd.links.fetching import Clear, Deadlines, Seen

WRITE_BYTES = 2 << 20  # sent as parallel requests
_FOLDER_MAX = 1_000_000  # entries; what one folder holds is sorted, so it has to be held
_LONG_NAME_BYTES = 256  # a name that is longer counts for several entries
_SECOND_NS = 1_000_000_000
_ABSENT = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath, asyncssh.SFTPNotADirectory, asyncssh.SFTPFileIsADirectory)
_DENIED = (asyncssh.SFTPPermissionDenied, asyncssh.SFTPWriteProtect, asyncssh.SFTPCannotDelete)
_FULL = (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded)
T = TypeVar("T")


class SftpRemote:
    """A folder of an SFTP server."""

    def __init__(self, config: SftpConfig, secret: SftpSecret | None, connections: int, deadlines: Deadlines) -> None:
        self._config = config
        self._deadlines = deadlines
        self._login = Login(config, secret, deadlines)
        self._lines = Lines(self._login, min(connections, CONNECTIONS_MAX), deadlines)
        self.at_once = self._lines.at_once
        self._where = self._login.where

    @contextlib.asynccontextmanager
    async def _client(self, path: str = "") -> AsyncIterator[tuple[Line, asyncssh.SFTPClient]]:
        """A session for anything but reading, for the length of a block."""
        with self._translated(path):
            async with self._lines.use() as line:
                yield line, await line.client()

    @contextlib.asynccontextmanager
    async def _reads(self, path: str) -> AsyncIterator[ReadSession]:
        """A session for reading, for the length of a block."""
        try:
            with self._translated(path):
                async with self._lines.use() as line:
                    yield await line.reads()
        except NotFoundError as error:
            raise await why_missing(error, path, self._entries) from error

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        where = f"{path} at {self._where}" if path else self._where
        try:
            yield
        except _ABSENT as error:
            raise (missing(path, self._where) if path else missing_root(self._root_name)) from error
        except _DENIED as error:
            hint = f"give {self._config.user} the right to it on the server"
            raise RemoteError("remote_forbidden", f"the server does not allow this on {where}", hint=hint) from error
        except _FULL as error:
            raise RemoteError("remote_failed", f"{self._where} has no space left") from error
        except GONE as error:
            why = "does not answer" if isinstance(error, TimeoutError) else "is not there or closed the connection"
            raise unreachable(self._where, why) from error
        except asyncssh.SFTPError as error:
            raise RemoteError("remote_failed", f"the server failed on {where}: {type(error).__name__}") from error

    @property
    def _root_name(self) -> str:
        return f"the folder {self._config.root or 'of the login'} at {self._where}"

    def _full(self, path: str) -> str:
        check_folders(path)
        return posixpath.join(self._config.root, path) or "."

    @staticmethod
    async def _within(line: Line, call: Awaitable[T], patience_s: float = 0.0) -> T:
        """Wait for one call as long as bytes move on its connection."""
        with line.patience(patience_s):
            return await call

    def hold(self, seconds: float) -> None:
        """See :class:`smpd.fetch.remote.Remote`. Nobody asks for that here."""

    async def aclose(self) -> None:
        """Close the connections and the agent."""
        self._lines.abort()
        self._login.close()

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────

    async def stat(self, path: str) -> ObjectInfo:
        """See :class:`smpd.fetch.remote.Remote`."""
        async with self._reads(path) as session:
            return _info(path, await session.stat(self._full(path)))

    async def tail(self, path: str, into: memoryview) -> ObjectInfo:
        """See :class:`smpd.fetch.remote.Remote`."""
        async with self._reads(path) as session, session.open(self._full(path)) as handle:
            info = _info(path, await session.fstat(handle))
            length = min(len(into), info.size)
            if length:
                with into[:length] as part:
                    await _read_pinned(session, handle, path, info.pin, info.size - length, part)
            return info

    async def read(self, path: str, pin: str, offset: int, into: memoryview) -> None:
        """See :class:`smpd.fetch.remote.Remote`."""
        async with self._reads(path) as session, session.open(self._full(path)) as handle:
            await _read_pinned(session, handle, path, pin, offset, into)

    def walk(self, prefix: str, recursive: bool, after: str = "") -> AsyncGenerator[ObjectInfo, None]:
        """See :class:`smpd.fetch.remote.Remote`."""
        return walk_folders(prefix, recursive, self._entries, after)

    async def _entries(self, folder: str) -> list[ObjectInfo]:
        found: list[ObjectInfo] = []
        room = _FOLDER_MAX
        async with self._client() as (line, sftp):
            names = sftp.scandir(self._full(folder).encode())  # as str, one name that is not UTF-8 would end it
            with contextlib.suppress(*(_ABSENT if folder else ())):
                while True:
                    try:
                        entry = await self._within(line, anext(names))
                    except StopAsyncIteration:
                        break
                    called = cast("bytes", entry.filename)
                    room -= 1 + len(called) // _LONG_NAME_BYTES
                    if room < 0:
                        await self._within(line, names.aclose())  # type: ignore[attr-defined]  # as in probe()
                        raise self._too_large(folder)
                    found += await self._entry(line, sftp, folder, called, entry.attrs)
        return found

    def _too_large(self, folder: str) -> RemoteError:
        message = f"the folder {folder!r} at {self._where} has more than {_FOLDER_MAX:,} entries"
        hint = "spread them over several folders; if there are not that many, do not trust this server"
        return RemoteError("remote_failed", message, hint=hint, retryable=False)

    async def _entry(
        self, line: Line, sftp: asyncssh.SFTPClient, folder: str, called: bytes, attrs: asyncssh.SFTPAttrs
    ) -> list[ObjectInfo]:
        name = spoken(called)
        if not name or "/" in name or "\0" in name:
            raise RemoteError("remote_failed", f"{self._where} listed a name that is none")
        if not is_listed(name, folder):
            return []
        if name.encode() != called:  # also of a folder, so that whoever asks for it is told
            size, mtime = attrs.size or 0, attrs.mtime or 0
            return [ObjectInfo(f"{folder}{name}", size, stat_pin(size, int(mtime) * _SECOND_NS), mtime)]
        full = self._full(folder + name)
        # Gone, or a link that leads nowhere, to a folder, out of bounds, or to what no file can be called.
        with contextlib.suppress(*_ABSENT, *_DENIED, asyncssh.SFTPBadMessage):
            if attrs.type == protocol.FILEXFER_TYPE_UNKNOWN or None in (attrs.size, attrs.mtime):
                attrs = await self._within(line, sftp.lstat(full))  # in a listing a server may leave out what it tells
            if attrs.type == protocol.FILEXFER_TYPE_DIRECTORY:
                return [ObjectInfo(f"{folder}{name}/", 0)]
            if attrs.type == protocol.FILEXFER_TYPE_SYMLINK:
                attrs = await self._within(line, sftp.stat(full))
            return [_info(folder + name, attrs)]
        return []

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────

    async def write(self, path: str, fd: int, size: int, progress: Progress, how: Writing = PLAINLY) -> ObjectInfo:
        """See :class:`smpd.fetch.remote.Remote`."""
        target = self._full(path)
        folder = posixpath.dirname(target)
        temporary = posixpath.join(folder, how.part or part_name())
        async with self._client(path) as (line, sftp):
            if folder:
                await self._make_folder(line, sftp, folder)
            try:
                await self._send(line, sftp, temporary, fd, size, progress)
                await self._publish(line, sftp, temporary, path, how.replaces)
            except BaseException:
                with anyio.move_on_after(self._deadlines.cleanup_s, shield=True), contextlib.suppress(Exception):
                    await sftp.remove(temporary)
                raise
        info = await self.stat(path)
        if info.size != size:
            raise taken(path)
        return info

    async def _make_folder(self, line: Line, sftp: asyncssh.SFTPClient, folder: str) -> None:
        """Make a folder that is not there; who may write to one need not be let make any."""
        try:
            await self._within(line, sftp.stat(folder))
        except _ABSENT:
            await self._within(line, sftp.makedirs(folder, exist_ok=True))

    async def _send(
        self, line: Line, sftp: asyncssh.SFTPClient, path: str, fd: int, size: int, progress: Progress
    ) -> None:
        file = await self._within(line, sftp.open(path, "xb", block_size=-1, max_requests=-1))
        try:
            for start in range(0, size, WRITE_BYTES):
                data = await read_source(fd, min(WRITE_BYTES, size - start), start)
                await self._within(line, file.write(data, start))
                await progress(start + len(data))
            with contextlib.suppress(asyncssh.SFTPOpUnsupported):
                await self._within(line, file.fsync(), self._deadlines.answer_s)
        except BaseException:
            # Some servers write a removed file out when it is closed, so it is closed first.
            with anyio.move_on_after(self._deadlines.cleanup_s, shield=True), contextlib.suppress(Exception):
                await file.close()
            raise
        await self._within(line, file.close(), self._deadlines.answer_s)

    async def _publish(
        self, line: Line, sftp: asyncssh.SFTPClient, temporary: str, path: str, replaces: str | None
    ) -> None:
        target = self._full(path)
        if replaces is not None and await self._pin(line, sftp, path) not in ("", replaces):
            raise taken(path)
        try:
            if replaces == "":  # plain rename does not replace, but where a server makes it so
                await self._within(line, sftp.rename(temporary, target))
            else:
                await self._within(line, sftp.posix_rename(temporary, target))
        except asyncssh.SFTPOpUnsupported:
            with contextlib.suppress(*_ABSENT):
                await self._within(line, sftp.remove(target))
            await self._within(line, sftp.rename(temporary, target))
        except (asyncssh.SFTPFailure, asyncssh.SFTPFileAlreadyExists):
            if replaces != "":
                raise
            if await self._pin(line, sftp, path):
                raise taken(path) from None
            with contextlib.suppress(*_ABSENT):
                await self._within(line, sftp.lstat(target))
                raise in_the_way(path) from None
            raise

    async def _pin(self, line: Line, sftp: asyncssh.SFTPClient, path: str) -> str:
        """The pin of what is there, empty for nothing; over the session at hand, as there may be no other."""
        try:
            return _info(path, await self._within(line, sftp.stat(self._full(path)))).pin
        except _ABSENT:
            return ""

    async def settle(self, path: str) -> None:
        """See :class:`smpd.fetch.remote.Remote`. The protocol has nothing for folders."""

    async def clear(self, asked: Clear) -> None:
        """See :class:`smpd.fetch.remote.Remote`."""
        if asked.part:
            await self.delete(posixpath.join(posixpath.dirname(asked.path), asked.part))

    async def delete(self, path: str, pin: str = "") -> None:
        """See :class:`smpd.fetch.remote.Remote`."""
        async with self._client(path) as (line, sftp):
            if pin and await self._pin(line, sftp, path) not in ("", pin):
                raise changed(path)
            with contextlib.suppress(*_ABSENT):
                await self._within(line, sftp.remove(self._full(path)))

    async def move(self, path: str, pin: str, target: str) -> Outcome:
        """See :class:`smpd.fetch.remote.Remote`. What was renamed is looked at; another version is put back."""
        async with self._client(path) as (line, sftp):
            if (found := await self._pin(line, sftp, path)) != pin:
                return "replaced" if found else "gone"
            there = await self._pin(line, sftp, target)
            if not there:  # a server that renames by link and unlink may have died between them
                if folder := posixpath.dirname(self._full(target)):
                    await self._make_folder(line, sftp, folder)
                await self._within(line, sftp.rename(self._full(path), self._full(target)))
                if await self._pin(line, sftp, target) != pin:
                    with contextlib.suppress(asyncssh.SFTPFailure, asyncssh.SFTPFileAlreadyExists):
                        await self._within(line, sftp.rename(self._full(target), self._full(path)))
                    return "replaced"
                return "moved"
        # Two files may be of one size and second: what is there is ours only if it holds the same.
        if there != pin or not await is_copy(self, await self.stat(path), await self.stat(target)):
            raise taken(target)
        await self.delete(path, pin)
        return "moved"

    def watch(self, prefix: str, queue: str) -> AsyncGenerator[Seen, None]:
        """See :class:`smpd.fetch.remote.Remote`."""
        raise untold("an SFTP server")

    async def probe(self) -> dict[str, str]:
        """See :class:`smpd.fetch.remote.Remote`."""
        async with self._client() as (line, sftp):
            names = sftp.scandir(self._full("").encode())
            with contextlib.suppress(StopAsyncIteration):
                await self._within(line, anext(names))
            await self._within(line, names.aclose())  # type: ignore[attr-defined]  # a generator, declared as an iterator
            return {"sftp": f"version {sftp.version}", **self._login.facts}


async def _read_pinned(session: ReadSession, handle: bytes, path: str, pin: str, offset: int, into: memoryview) -> None:
    try:
        await session.read(handle, offset, into)
    except asyncssh.SFTPEOFError:
        raise changed(path) from None
    # Afterwards, which covers a change before and one meanwhile.
    if _info(path, await session.fstat(handle)).pin != pin:
        raise changed(path)


def _info(path: str, attrs: asyncssh.SFTPAttrs) -> ObjectInfo:
    """Size and pin from a server's attributes, which may leave out anything."""
    if attrs.type not in (protocol.FILEXFER_TYPE_REGULAR, protocol.FILEXFER_TYPE_UNKNOWN):
        raise asyncssh.SFTPNoSuchFile("no regular file")
    if attrs.size is None or attrs.mtime is None:
        raise RemoteError("remote_failed", "the server tells no size or time of its files", retryable=False)
    mtime_ns = int(attrs.mtime) * _SECOND_NS + (attrs.mtime_ns or 0)
    return ObjectInfo(path, attrs.size, stat_pin(attrs.size, mtime_ns), mtime_ns / _SECOND_NS)
