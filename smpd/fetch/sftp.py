"""An SFTP server, through asyncssh. The host key must be a known one; nothing is trusted on first use.

One SSH connection moves no more than its window (2 MiB) in a round trip, so parallel reads take one each.
"""

import contextlib
import os
import posixpath
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from typing import NamedTuple, TypeVar

import anyio
import asyncssh
from asyncssh import constants as protocol

from smp_proto.control import ObjectInfo, SftpConfig, SftpSecret
from smp_proto.errors import RemoteError, SmpError, UsageError
from smpd.fetch.pins import stat_pin
from smpd.fetch.remote import (
    ANEW,
    DEADLINES,
    Deadlines,
    Progress,
    changed,
    is_listed,
    missing,
    missing_root,
    read_source,
    tail_of,
    temporary_name,
    unreachable,
    walk_folders,
)

WRITE_BYTES = 2 << 20  # sent as parallel requests; each has to be done within the stall deadline
KEEPALIVE_S = 15
_CLEANUP_S = 10.0
_SECOND_NS = 1_000_000_000
_SSH_PORT = 22
# asyncssh would choose chacha20, which is two to three times slower here.
_CIPHERS = [
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
    "aes128-ctr",
]
_GONE = (
    asyncssh.SFTPConnectionLost,
    asyncssh.SFTPNoConnection,
    asyncssh.DisconnectError,
    asyncssh.ChannelOpenError,
    OSError,
    TimeoutError,
)
_ABSENT = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath, asyncssh.SFTPNotADirectory, asyncssh.SFTPFileIsADirectory)
_DENIED = (asyncssh.SFTPPermissionDenied, asyncssh.SFTPWriteProtect, asyncssh.SFTPCannotDelete)
_FULL = (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded)
T = TypeVar("T")


class _Line(NamedTuple):
    """An authenticated connection with its SFTP session."""

    connection: asyncssh.SSHClientConnection
    sftp: asyncssh.SFTPClient


class _Witness(asyncssh.SSHClient):
    """Refuses every host key that is not known, and remembers it for the message."""

    def __init__(self) -> None:
        self.seen: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.seen = key
        return False


class SftpRemote:
    """A folder of an SFTP server."""

    def __init__(
        self, config: SftpConfig, secret: SftpSecret | None, connections: int, deadlines: Deadlines = DEADLINES
    ) -> None:
        self._config = config
        self._secret = secret or SftpSecret()
        self._deadlines = deadlines
        self._where = f"{config.host}:{config.port}"
        try:
            self._known = asyncssh.import_known_hosts(config.known_hosts)
        except ValueError as error:
            raise UsageError("bad_config", "the known_hosts text has a line that is none", hint=self._scan) from error
        self._permits = anyio.Semaphore(connections)
        self._connecting = anyio.Lock()
        self._idle: list[_Line] = []
        self._keys: list[asyncssh.SSHKey | asyncssh.SSHKeyPair] | None = None
        self._agent: asyncssh.SSHAgentClient | None = None
        self._facts: dict[str, str] = {}

    # ── connecting ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def _scan(self) -> str:
        return (
            f"get the key with: ssh-keyscan -p {self._config.port} {self._config.host}; compare its fingerprint"
            f" with what the server's administrator says; then: {ANEW} --known-hosts FILE"
        )

    @contextlib.asynccontextmanager
    async def _line(self, path: str = "") -> AsyncIterator[asyncssh.SFTPClient]:
        """A connection of our own for the length of a block. It is kept unless anything odd happened."""
        async with self._permits:
            self._idle = [line for line in self._idle if not line.connection.is_closed()]
            with self._translated(path):
                line = self._idle.pop() if self._idle else await self._connect()
                keep = False
                try:
                    yield line.sftp
                    keep = True
                except asyncssh.SFTPError as error:
                    keep = not isinstance(error, _GONE)  # the server said no, in good order
                    raise
                finally:
                    if keep:
                        self._idle.append(line)
                    else:
                        line.connection.abort()

    async def _connect(self) -> _Line:
        witness = _Witness()
        # One at a time: sshd drops some of many that have not authenticated yet (MaxStartups).
        async with self._connecting:
            keys = await self._client_keys()
            try:
                with anyio.fail_after(self._deadlines.connect_s + self._deadlines.stall_s):
                    connection = await asyncssh.connect(
                        self._config.host,
                        self._config.port,
                        config=None,
                        username=self._config.user,
                        password=self._secret.password or None,
                        client_keys=keys or None,
                        known_hosts=self._known,
                        client_factory=lambda: witness,
                        encryption_algs=_CIPHERS,
                        compression_algs=None,
                        x509_trusted_certs=None,
                        agent_path=None,
                        gss_kex=False,
                        gss_auth=False,
                        disable_trivial_auth=True,
                        keepalive_interval=KEEPALIVE_S,
                        connect_timeout=self._deadlines.connect_s,
                        login_timeout=self._deadlines.stall_s,
                    )
            except asyncssh.HostKeyNotVerifiable as error:
                raise self._untrusted(witness.seen) from error
            except (asyncssh.KeyExchangeFailed, asyncssh.ConnectionLost, ConnectionResetError) as error:
                raise await self._no_exchange(error) from error
            except asyncssh.PermissionDenied as error:
                raise RemoteError(
                    "remote_auth",
                    f"{self._where} refused the credentials of {self._config.user}",
                    hint=f"check the user and the key or password, then: {ANEW}",
                ) from error
        try:
            with anyio.fail_after(self._deadlines.stall_s):
                line = _Line(connection, await connection.start_sftp_client())
        except BaseException:
            connection.abort()
            raise
        seen = {"server": "server_version", "cipher": "recv_cipher"}
        self._facts = {name: str(connection.get_extra_info(info, "")) for name, info in seen.items()}
        return line

    async def _client_keys(self) -> list[asyncssh.SSHKey | asyncssh.SSHKeyPair]:
        if self._keys is not None:
            return self._keys
        keys: list[asyncssh.SSHKey | asyncssh.SSHKeyPair] = []
        secret = self._secret
        if secret.private_key:
            try:
                # In a thread: a passphrase costs its key derivation.
                keys.append(
                    await anyio.to_thread.run_sync(
                        asyncssh.import_private_key, secret.private_key, secret.passphrase or None
                    )
                )
            except ValueError:
                # Not chained: the library's error may quote the key.
                raise RemoteError(
                    "remote_auth",
                    f"the private key for {self._where} cannot be read, or its passphrase is wrong",
                    hint=f"give it again with: {ANEW}",
                ) from None
        if self._config.use_agent:
            try:
                with anyio.fail_after(self._deadlines.connect_s):
                    self._agent = await asyncssh.connect_agent(os.environ.get("SSH_AUTH_SOCK", ""))
                    keys += await self._agent.get_keys()
            except (OSError, ValueError, TimeoutError) as error:
                raise RemoteError(
                    "remote_auth",
                    "the SSH agent does not answer",
                    hint=f"start the daemon with SSH_AUTH_SOCK set, or give a key with: {ANEW}",
                ) from error
        self._keys = keys
        return keys

    @property
    def _known_keys(self) -> list[asyncssh.SSHKey]:
        port = self._config.port if self._config.port != _SSH_PORT else None
        keys, authorities, *_ = self._known.match(self._config.host, "", port)
        return [*keys, *authorities]

    def _untrusted(self, seen: asyncssh.SSHKey | None) -> RemoteError:
        found = f"{seen.get_algorithm()} {seen.get_fingerprint()}" if seen else "a certificate or revoked key"
        was = "has changed" if self._known_keys else "is not known"
        return RemoteError("remote_untrusted", f"the host key of {self._where} {was}: it is {found}", hint=self._scan)

    async def _no_exchange(self, error: Exception) -> RemoteError:
        """Why the server ended the key exchange: mostly because it has no key of the kind that is known."""
        with contextlib.suppress(*_GONE), anyio.fail_after(self._deadlines.connect_s):
            seen = await asyncssh.get_server_host_key(self._config.host, self._config.port, config=None)
            if seen is not None and seen not in self._known_keys:
                return self._untrusted(seen)
        if isinstance(error, asyncssh.KeyExchangeFailed):
            return RemoteError("remote_failed", f"{self._where} shares no algorithm with us", retryable=False)
        return unreachable(self._where, "closed the connection before the login")

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
        except _GONE as error:
            why = "does not answer" if isinstance(error, TimeoutError) else "is not there or closed the connection"
            raise unreachable(self._where, why) from error
        except asyncssh.SFTPError as error:
            raise RemoteError("remote_failed", f"the server failed on {where}: {type(error).__name__}") from error

    @property
    def _root_name(self) -> str:
        return f"the folder {self._config.root or 'of the login'} at {self._where}"

    def _full(self, path: str) -> str:
        return posixpath.join(self._config.root, path) or "."

    async def _within(self, call: Awaitable[T]) -> T:
        with anyio.fail_after(self._deadlines.stall_s):
            return await call

    async def aclose(self) -> None:
        """Close the idle connections and the agent."""
        for line in self._idle:
            line.connection.abort()
        if self._agent is not None:
            self._agent.close()

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────

    async def stat(self, path: str) -> ObjectInfo:
        """See :class:`smpd.fetch.remote.Remote`."""
        async with self._line(path) as sftp:
            return _info(path, await self._within(sftp.stat(self._full(path))))

    async def tail(self, path: str, into: memoryview) -> ObjectInfo:
        """See :class:`smpd.fetch.remote.Remote`."""
        return await tail_of(self, path, into)

    async def read(self, path: str, pin: str, offset: int, into: memoryview) -> None:
        """See :class:`smpd.fetch.remote.Remote`."""
        async with self._line(path) as sftp:
            file = await self._within(sftp.open(self._full(path), "rb", block_size=-1, max_requests=-1))
            blocks = await self._within(file.read_parallel(len(into), offset))
            received = 0
            while True:
                try:
                    start, data = await self._within(anext(blocks))
                except StopAsyncIteration:
                    break
                start -= offset
                if start + len(data) > len(into):
                    raise RemoteError("remote_failed", f"the server sent more of {path} than was asked for")
                into[start : start + len(data)] = data
                received += len(data)
            # Afterwards, which covers a change before and one meanwhile.
            if received != len(into) or _info(path, await self._within(file.stat())).pin != pin:
                raise changed(path)
            await self._within(file.close())

    def walk(self, prefix: str, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        """See :class:`smpd.fetch.remote.Remote`."""
        return walk_folders(prefix, recursive, self._entries)

    async def _entries(self, folder: str) -> list[ObjectInfo]:
        found: list[ObjectInfo] = []
        async with self._line() as sftp:
            names = sftp.scandir(self._full(folder))
            with contextlib.suppress(*(_ABSENT if folder else ())):
                while True:
                    try:
                        entry = await self._within(anext(names))
                    except StopAsyncIteration:
                        break
                    found += await self._entry(sftp, folder, str(entry.filename), entry.attrs)
        return found

    async def _entry(
        self, sftp: asyncssh.SFTPClient, folder: str, name: str, attrs: asyncssh.SFTPAttrs
    ) -> list[ObjectInfo]:
        if not name or "/" in name or "\0" in name:
            raise RemoteError("remote_failed", f"{self._where} listed a name that is none")
        if not is_listed(name, folder):
            return []
        if attrs.type == protocol.FILEXFER_TYPE_DIRECTORY:
            return [ObjectInfo(f"{folder}{name}/", 0)]
        with contextlib.suppress(*_ABSENT, SmpError):  # a link that leads nowhere or to a folder
            if attrs.type == protocol.FILEXFER_TYPE_SYMLINK:
                attrs = await self._within(sftp.stat(self._full(folder + name)))
            return [_info(folder + name, attrs)]
        return []

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────

    async def write(self, path: str, fd: int, size: int, progress: Progress) -> ObjectInfo:
        """See :class:`smpd.fetch.remote.Remote`."""
        target = self._full(path)
        folder = posixpath.dirname(target)
        temporary = posixpath.join(folder, temporary_name())
        async with self._line(path) as sftp:
            if folder:
                await self._within(sftp.makedirs(folder, exist_ok=True))
            try:
                await self._send(sftp, temporary, fd, size, progress)
                await self._publish(sftp, temporary, target)
            except BaseException:
                with anyio.move_on_after(_CLEANUP_S, shield=True), contextlib.suppress(Exception):
                    await sftp.remove(temporary)
                raise
        info = await self.stat(path)
        if info.size != size:
            raise changed(path)
        return info

    async def _send(self, sftp: asyncssh.SFTPClient, path: str, fd: int, size: int, progress: Progress) -> None:
        file = await self._within(sftp.open(path, "xb", block_size=-1, max_requests=-1))
        try:
            for start in range(0, size, WRITE_BYTES):
                data = await read_source(fd, min(WRITE_BYTES, size - start), start)
                await self._within(file.write(data, start))
                await progress(start + len(data))
            with contextlib.suppress(asyncssh.SFTPOpUnsupported):
                await self._within(file.fsync())
        except BaseException:
            # Some servers write a removed file out when it is closed, so it is closed first.
            with anyio.move_on_after(_CLEANUP_S, shield=True), contextlib.suppress(Exception):
                await file.close()
            raise
        await self._within(file.close())

    async def _publish(self, sftp: asyncssh.SFTPClient, temporary: str, target: str) -> None:
        try:
            await self._within(sftp.posix_rename(temporary, target))
        except asyncssh.SFTPOpUnsupported:
            # Plain rename does not replace.
            with contextlib.suppress(*_ABSENT):
                await self._within(sftp.remove(target))
            await self._within(sftp.rename(temporary, target))

    async def delete(self, path: str) -> None:
        """See :class:`smpd.fetch.remote.Remote`."""
        async with self._line(path) as sftp:
            with contextlib.suppress(*_ABSENT):
                await self._within(sftp.remove(self._full(path)))

    async def probe(self) -> dict[str, str]:
        """See :class:`smpd.fetch.remote.Remote`."""
        async with self._line() as sftp:
            names = sftp.scandir(self._full(""))
            with contextlib.suppress(StopAsyncIteration):
                await self._within(anext(names))
            await self._within(names.aclose())  # type: ignore[attr-defined]  # a generator, declared as an iterator
            return {"sftp": f"version {sftp.version}", **self._facts}


def _info(path: str, attrs: asyncssh.SFTPAttrs) -> ObjectInfo:
    """Size and pin from a server's attributes, which may leave out anything."""
    if attrs.type not in (protocol.FILEXFER_TYPE_REGULAR, protocol.FILEXFER_TYPE_UNKNOWN):
        raise asyncssh.SFTPNoSuchFile("no regular file")
    if attrs.size is None or attrs.mtime is None:
        raise RemoteError("remote_failed", "the server tells no size or time of its files", retryable=False)
    mtime_ns = int(attrs.mtime) * _SECOND_NS + (attrs.mtime_ns or 0)
    return ObjectInfo(path, attrs.size, stat_pin(attrs.size, mtime_ns), mtime_ns / _SECOND_NS)
