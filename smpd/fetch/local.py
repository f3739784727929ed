"""A folder of the daemon's machine."""

import contextlib
import errno
import os
import stat
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TypeVar

import aiofiles
import aiofiles.os
import anyio

from smp_proto import durable
from smp_proto.control import LocalConfig, ObjectInfo
from smp_proto.errors import NotFoundError, RemoteError, SmpError, UsageError
from smpd.fetch.beneath import open_beneath
from smpd.fetch.pins import stat_pin
from smpd.fetch.remote import (
    PLAINLY,
    Outcome,
    Progress,
    Writing,
    changed,
    check_folders,
    in_the_way,
    is_listed,
    missing,
    missing_root,
    short_source,
    spoken,
    tail_of,
    taken,
    untold,
    unwritable,
    walk_folders,
    why_missing,
)
from smpd.links.fetching import Clear, Seen

COPY_BYTES = 8 << 20
_SWEPT_MAX = 1024  # folders
T = TypeVar("T")


class LocalRemote:
    """A folder. All calls that block run in threads."""

    at_once = 8

    def __init__(self, config: LocalConfig) -> None:
        self._root = config.root
        self._swept: set[tuple[int, int]] = set()

    @contextlib.contextmanager
    def _folder(self) -> Iterator[int]:
        try:
            fd = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise missing_root(f"the folder {self._root}") from error
        try:
            yield fd
        finally:
            os.close(fd)

    async def _run(self, path: str, work: Callable[[int], T]) -> T:
        """Run ``work`` in a thread with the root's descriptor; its OSErrors become ours."""
        check_folders(path)

        def call() -> T:
            with self._folder() as root:
                return work(root)

        try:
            with self._translated(path):
                return await anyio.to_thread.run_sync(call)
        except NotFoundError as error:
            raise await why_missing(error, path, self._listed) from error

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(error, path) from error

    def _error(self, error: OSError, path: str) -> SmpError:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            return missing(path, f"the folder {self._root}")
        if error.errno in (errno.EXDEV, errno.ELOOP):
            hint = "only links that stay inside the folder are followed"
            return UsageError("bad_name", f"{path} leads out of the folder {self._root}", hint=hint)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "give the daemon's user the right to it"
            return RemoteError("remote_forbidden", f"the daemon may not use {path} in {self._root}", hint=hint)
        if error.errno == errno.ENAMETOOLONG:
            return UsageError("bad_name", f"a part of {path[:80]!r} is too long for this file system")
        return unwritable(error, path)

    def hold(self, seconds: float) -> None:
        """See :class:`smpd.fetch.remote.Remote`. Nobody asks for that here."""

    async def aclose(self) -> None:
        """Nothing stays open between calls."""

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────

    async def stat(self, path: str) -> ObjectInfo:
        """See :class:`smpd.fetch.remote.Remote`."""
        return await self._run(path, lambda root: _stat(root, path))

    async def tail(self, path: str, into: memoryview) -> ObjectInfo:
        """See :class:`smpd.fetch.remote.Remote`."""
        return await tail_of(self, path, into)

    async def read(self, path: str, pin: str, offset: int, into: memoryview) -> None:
        """See :class:`smpd.fetch.remote.Remote`."""

        # Non-blocking, so that a FIFO cannot hold a thread; without effect on files.
        flags = os.O_RDONLY | os.O_NONBLOCK
        fd = await self._run(path, lambda root: _open_file(root, path, flags))
        # A thread of aiofiles goes on when whoever waits for it is cancelled, and the slot would have a new owner.
        with self._translated(path), anyio.CancelScope(shield=True):
            async with aiofiles.open(fd, "rb", buffering=0) as file:
                await file.seek(offset)
                done = 0
                while done < len(into):
                    count = await file.readinto(into[done:])
                    if not count:
                        raise changed(path)
                    done += count
                found = await aiofiles.os.stat(fd)
        if stat_pin(found.st_size, found.st_mtime_ns) != pin:  # afterwards: a change before shows, and one meanwhile
            raise changed(path)

    def walk(self, prefix: str, recursive: bool, after: str = "") -> AsyncGenerator[ObjectInfo, None]:
        """See :class:`smpd.fetch.remote.Remote`."""

        return walk_folders(prefix, recursive, self._listed, after)

    async def _listed(self, folder: str) -> list[ObjectInfo]:
        return await self._run(folder, lambda root: _entries(root, folder))

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────

    async def write(self, path: str, fd: int, size: int, progress: Progress, how: Writing = PLAINLY) -> ObjectInfo:
        """See :class:`smpd.fetch.remote.Remote`."""
        parent = await self._run(path, lambda root: _make_folders(root, path.rpartition("/")[0]))
        try:
            await self._run(path, lambda _: self._sweep(parent))
            target, part = await self._run(path, lambda _: durable.create_part(parent, 0o644, how.part))
            try:
                for start in range(0, size, COPY_BYTES):
                    count = min(COPY_BYTES, size - start)
                    await self._run(path, lambda _, s=start, c=count: _copy(fd, target, s, c))  # type: ignore[misc]
                    await progress(start + count)
                await self._run(path, lambda root: _publish(root, path, target, part, parent, how.replaces))
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._run(path, lambda _: durable.remove(part, parent))
                raise
            finally:
                os.close(target)
        finally:
            os.close(parent)
        return await self.stat(path)

    async def settle(self, path: str) -> None:
        """See :class:`smpd.fetch.remote.Remote`. Its content was synced before it got its name."""

        def settle(root: int) -> None:
            with _folder(root, path.rpartition("/")[0]) as parent:
                durable.sync(parent)

        await self._run(path, settle)

    def _sweep(self, parent: int) -> None:
        """Once for each folder: what is left there was left by a process that is gone."""
        found = os.fstat(parent)
        if (found.st_dev, found.st_ino) not in self._swept:
            if len(self._swept) == _SWEPT_MAX:
                self._swept.clear()
            self._swept.add((found.st_dev, found.st_ino))
            durable.sweep(parent)

    async def clear(self, asked: Clear) -> None:
        """See :class:`smpd.fetch.remote.Remote`."""
        if asked.part:
            folder, slash, _ = asked.path.rpartition("/")
            await self.delete(folder + slash + asked.part)

    async def delete(self, path: str, pin: str = "") -> None:
        """See :class:`smpd.fetch.remote.Remote`."""
        folder, _, name = path.rpartition("/")

        def delete(root: int) -> None:
            with contextlib.suppress(FileNotFoundError):
                if pin and _stat(root, path).pin != pin:
                    raise changed(path)
                with _folder(root, folder) as parent:
                    durable.remove(name, parent)

        await self._run(path, delete)

    async def move(self, path: str, pin: str, target: str) -> Outcome:
        """See :class:`smpd.fetch.remote.Remote`."""
        return await self._run(path, lambda root: _move(root, path, pin, target))

    async def watch(self, prefix: str, queue: str) -> AsyncGenerator[Seen, None]:
        """See :class:`smpd.fetch.remote.Remote`."""
        if queue:
            raise untold("a folder")
        from smpd.fetch.noticing import changes  # noqa: PLC0415 - for those alone who watch

        folder = prefix[: prefix.rfind("/") + 1]
        flags = os.O_RDONLY | os.O_DIRECTORY
        try:
            await self._run("", lambda root: os.close(open_beneath(root, folder or ".", flags)))
        except SmpError as error:
            if error.code != "no_such_object":
                raise
            raise missing_root(f"the folder {os.path.join(self._root, folder)}") from error
        async with contextlib.aclosing(changes(os.path.join(self._root, folder))) as found:
            async for _ in found:
                yield Seen()

    async def probe(self) -> dict[str, str]:
        """See :class:`smpd.fetch.remote.Remote`."""
        await self._run("", lambda root: os.close(open_beneath(root, ".", os.O_RDONLY | os.O_DIRECTORY)))
        return {"folder": self._root}


@contextlib.contextmanager
def _folder(root: int, path: str) -> Iterator[int]:
    fd = open_beneath(root, path or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def _open_file(root: int, path: str, flags: int) -> int:
    fd = open_beneath(root, path, flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EISDIR, "not a file")
    return fd


def _stat(root: int, path: str) -> ObjectInfo:
    fd = _open_file(root, path, os.O_PATH)
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    return ObjectInfo(path, found.st_size, stat_pin(found.st_size, found.st_mtime_ns), found.st_mtime)


def _entries(root: int, folder: str) -> list[ObjectInfo]:
    """What a folder holds. One that is not there holds nothing, as in a bucket."""
    try:
        fd = open_beneath(root, folder or ".", os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = []
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                if (name := spoken(os.fsencode(entry.name))) != entry.name:
                    with contextlib.suppress(OSError):
                        found.append(_unspeakable(entry, folder + name))
                    continue
                if not is_listed(entry.name, folder):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    found.append(ObjectInfo(f"{folder}{entry.name}/", 0))
                else:
                    # Removed since, no regular file, or a link that leads out.
                    with contextlib.suppress(OSError):
                        found.append(_stat(root, folder + entry.name))
    finally:
        os.close(fd)
    return found


def _unspeakable(entry: os.DirEntry[str], path: str) -> ObjectInfo:
    """What has a name that cannot be asked for: listed, also if it is a folder, so that whoever asks for it is told."""
    found = entry.stat(follow_symlinks=False)
    return ObjectInfo(path, found.st_size, stat_pin(found.st_size, found.st_mtime_ns), found.st_mtime)


def _make_folders(root: int, folder: str) -> int:
    """Open ``folder``, making what is missing of it durably."""
    parts = [part for part in folder.split("/") if part]
    for depth in range(len(parts)):
        with _folder(root, "/".join(parts[:depth])) as parent:
            durable.make_folder(parts[depth], 0o755, parent)
    return open_beneath(root, "/".join(parts) or ".", os.O_RDONLY | os.O_DIRECTORY)


def _publish(root: int, path: str, target: int, part: str, parent: int, replaces: str | None) -> None:
    try:
        if replaces and _pin(root, path) not in ("", replaces):
            raise taken(path)
        durable.publish(target, part, path.rpartition("/")[2], parent, replace=replaces != "")
    except FileExistsError as error:
        raise (taken if _is_file(root, path) else in_the_way)(path) from error


def _is_file(root: int, path: str) -> bool:
    with contextlib.suppress(OSError):
        _stat(root, path)
        return True
    return False


def _move(root: int, path: str, pin: str, target: str) -> Outcome:
    """Rename, and look afterwards: another version may have come in between, and is put back."""
    if (found := _pin(root, path)) != pin:
        return "replaced" if found else "gone"
    name, other = path.rpartition("/")[2], target.rpartition("/")[2]
    with _folder(root, path.rpartition("/")[0]) as parent:
        if stat.S_ISLNK(os.lstat(name, dir_fd=parent).st_mode):
            raise UsageError(
                "bad_name", f"{path} is a symbolic link, which is not moved", hint="leave it, or delete it"
            )
        into = _make_folders(root, target.rpartition("/")[0])
        try:
            durable.move(name, parent, other, into)
            if _pin(root, target) == pin:
                return "moved"
            with contextlib.suppress(FileExistsError):  # then one that is newer still is there
                durable.move(other, into, name, parent)
            return "replaced"
        except FileExistsError as error:
            raise taken(target) from error
        finally:
            os.close(into)


def _pin(root: int, path: str) -> str:
    try:
        return _stat(root, path).pin
    except FileNotFoundError:
        return ""


def _copy(source: int, target: int, start: int, count: int) -> None:
    """Copy inside the kernel; the target's own offset advances."""
    while count:
        sent = os.sendfile(target, source, start, count)
        if sent == 0:
            raise short_source()
        start, count = start + sent, count - sent
