"""Logging in to an SSH server. The host key must be a known one; nothing is trusted on first use."""

import contextlib
import os

import anyio
import asyncssh

from smp_proto.control import SftpConfig, SftpSecret
from smp_proto.errors import RemoteError, UsageError
from smpd.fetch.dialling import dial
from smpd.fetch.remote import ANEW, unreachable
from smpd.links.fetching import Deadlines

KEEPALIVE_S = 15
_SSH_PORT = 22
# asyncssh would choose chacha20, which is two to three times slower here.
_CIPHERS = [
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
    "aes128-ctr",
]
GONE = (
    asyncssh.SFTPConnectionLost,
    asyncssh.SFTPNoConnection,
    asyncssh.DisconnectError,
    asyncssh.ChannelOpenError,
    OSError,
    TimeoutError,
)


class _Witness(asyncssh.SSHClient):
    """Refuses every host key that is not known, and remembers it for the message."""

    def __init__(self) -> None:
        self.seen: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.seen = key
        return False


class Login:
    """How to log in to one server.

    Raises:
        UsageError: ``bad_config``, the known_hosts text is none.
    """

    def __init__(self, config: SftpConfig, secret: SftpSecret | None, deadlines: Deadlines) -> None:
        self._config = config
        self._secret = secret or SftpSecret()
        self._deadlines = deadlines
        self.where = f"{config.host}:{config.port}"
        try:
            self._known = asyncssh.import_known_hosts(config.known_hosts)
        except ValueError as error:
            raise UsageError("bad_config", "the known_hosts text has a line that is none", hint=self._scan) from error
        self._keys: list[asyncssh.SSHKey | asyncssh.SSHKeyPair] | None = None
        self._agent: asyncssh.SSHAgentClient | None = None
        self.facts: dict[str, str] = {}  # of the connection that was made last

    @property
    def _scan(self) -> str:
        return (
            f"get the key with: ssh-keyscan -p {self._config.port} {self._config.host}; compare its fingerprint"
            f" with what the server's administrator says; then: {ANEW} --known-hosts FILE"
        )

    async def connect(self) -> asyncssh.SSHClientConnection:
        """A new connection, logged in.

        Raises:
            RemoteError: remote_untrusted, remote_auth, remote_unreachable, remote_failed.
            OSError, TimeoutError, asyncssh.DisconnectError: the server is not there or does not answer.
        """
        witness = _Witness()
        keys = await self._client_keys()
        try:
            with anyio.fail_after(self._deadlines.connect_s + self._deadlines.login_s):
                connection = await asyncssh.connect(
                    self._config.host,
                    self._config.port,
                    sock=await dial(self._config.host, self._config.port),
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
                    login_timeout=self._deadlines.login_s,
                )
        except asyncssh.HostKeyNotVerifiable as error:
            raise self._untrusted(witness.seen) from error
        except (asyncssh.KeyExchangeFailed, asyncssh.ConnectionLost, ConnectionResetError) as error:
            raise await self._no_exchange(error) from error
        except asyncssh.PermissionDenied as error:
            raise RemoteError(
                "remote_auth",
                f"{self.where} refused the credentials of {self._config.user}",
                hint=f"check the user and the key or password, then: {ANEW}",
            ) from error
        seen = {"server": "server_version", "cipher": "recv_cipher"}
        self.facts = {name: str(connection.get_extra_info(info, "")) for name, info in seen.items()}
        return connection

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
                    f"the private key for {self.where} cannot be read, or its passphrase is wrong",
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
        return RemoteError("remote_untrusted", f"the host key of {self.where} {was}: it is {found}", hint=self._scan)

    async def _no_exchange(self, error: Exception) -> RemoteError:
        """Why the server ended the key exchange: mostly because it has no key of the kind that is known."""
        with contextlib.suppress(*GONE), anyio.fail_after(self._deadlines.connect_s):
            seen = await asyncssh.get_server_host_key(self._config.host, self._config.port, config=None)
            if seen is not None and seen not in self._known_keys:
                return self._untrusted(seen)
        if isinstance(error, asyncssh.KeyExchangeFailed):
            return RemoteError("remote_failed", f"{self.where} shares no algorithm with us", retryable=False)
        return unreachable(self.where, "closed the connection before the login")

    def close(self) -> None:
        """Let go of the agent."""
        if self._agent is not None:
            self._agent.close()
