"""R20: servers that are not who they should be. Nothing is told to them: no request, no name, no credential."""

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import asyncssh
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fetch_link import Link, fetch_in_process

from smp_proto.control import S3Config, S3Secret, SftpConfig, SftpSecret
from smp_proto.errors import SmpError
from smpd.fetch import http, sftp_login
from smpd.links.fetching import Deadlines
from torture.harness import Experiment, Trial, Trials, replaced

CASES = (
    "certificate expired",
    "certificate for another name",
    "certificate of an unknown authority",
    "certificate signed by itself",
    "host key unknown",
    "host key changed",
)
DEADLINES = Deadlines(stall_s=2.0)
PIN = "etag:10:0123456789abcdef"
_TLS_HANDSHAKE = 0x16  # RFC 8446 §5.1


class Heard(NamedTuple):
    """What a stranger was told."""

    plain: list[bytes]  # what came that is no TLS, or came inside of it
    logins: list[str]  # users, once a login was begun


class _Maker:
    """Certificates: an authority that is known, and what it did or did not sign."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.authority = self._sign("the authority", self.key, self.key, "the authority", days=(-9, 9), authority=True)
        self.pem = self.authority.public_bytes(serialization.Encoding.PEM).decode()

    def context(self, case: str, folder: Path) -> ssl.SSLContext:
        """What a server of this case has."""
        key = ec.generate_private_key(ec.SECP256R1())
        days = (-9, -2) if "expired" in case else (-9, 9)
        host = "127.0.0.9" if "another name" in case else "127.0.0.1"
        signer, issuer = self.key, "the authority"
        if "unknown authority" in case:
            signer = ec.generate_private_key(ec.SECP256R1())
        elif "by itself" in case:
            signer, issuer = key, host
        found = self._sign(host, key, signer, issuer, days=days)
        (folder / "cert.pem").write_bytes(found.public_bytes(serialization.Encoding.PEM))
        (folder / "key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        return context

    @staticmethod
    def _sign(
        name: str,
        key: ec.EllipticCurvePrivateKey,
        signer: ec.EllipticCurvePrivateKey,
        issuer: str,
        *,
        days: tuple[int, int],
        authority: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=days[0]))
            .not_valid_after(now + datetime.timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            address = x509.IPAddress(ipaddress.ip_address(name))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(signer, hashes.SHA256())


@contextlib.asynccontextmanager
async def _tls_server(context: ssl.SSLContext, heard: Heard) -> AsyncIterator[int]:
    """Speaks TLS, and notes every byte that is told to it; before it a port that notes what is no TLS at all."""

    async def inside(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            if data := await reader.read(1 << 16):
                heard.plain.append(data)
        writer.close()

    secure = await asyncio.start_server(inside, "127.0.0.1", 0, ssl=context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*secure.sockets[0].getsockname())

        async def down() -> None:
            while data := await there.read(1 << 16):
                writer.write(data)
            writer.close()

        async def up() -> None:
            first = await reader.read(1 << 16)
            if first and first[0] != _TLS_HANDSHAKE:
                heard.plain.append(first)
            while first:
                back.write(first)
                first = await reader.read(1 << 16)
            back.close()

        await asyncio.gather(up(), down(), return_exceptions=True)
        writer.close()
        back.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with secure, server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def _ssh_server(key: asyncssh.SSHKey, heard: Heard) -> AsyncIterator[int]:
    """Takes any password, and notes who began to log in."""

    class Server(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            heard.logins.append(username)
            return True

        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            heard.plain.append(password.encode())
            return True

    server = await asyncssh.create_server(Server, "127.0.0.1", 0, server_host_keys=[key], sftp_factory=True)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def _all_refused(link: Link, heard: Heard) -> None:
    """Each thing that can be asked is refused as untrusted, says what to do, and tells the server nothing."""
    acts: dict[str, Callable[[], Awaitable[Any]]] = {
        "stat": lambda: link.stat("a.smp"),
        "read": lambda: link.read("a.smp", PIN, 0, 10),
        "tail": lambda: link.tail("a.smp", 10),
        "list": link.list,
        "write": lambda: link.write("a.smp", b"sealed"),
        "delete": lambda: link.delete("a.smp"),
        "probe": link.probe,
    }
    for name, act in acts.items():
        try:
            await act()
        except SmpError as error:
            assert error.code == "remote_untrusted", f"{name}: {error.code}: {error.message}"
            assert not error.retryable, f"{name} would be tried again"
            assert "127.0.0.1" in error.message, error.message
            assert error.hint, f"{name} does not say what to do"
        else:
            raise AssertionError(f"{name} was done")
    assert not heard.plain, f"the stranger was told {heard.plain[0][:80]!r}"
    assert not heard.logins, "a login was begun"


async def _try(case: str, trial: Trial, maker: _Maker) -> None:
    heard = Heard([], [])
    if "key" not in case:
        async with _tls_server(maker.context(case, trial.folder), heard) as port:
            config = S3Config("b", endpoint=f"https://127.0.0.1:{port}", addressing="path", ca_pem=maker.pem)
            async with fetch_in_process(config, S3Secret("key", "secret"), deadlines=DEADLINES) as link:
                await _all_refused(link, heard)
        return
    key = asyncssh.generate_private_key("ssh-ed25519")
    async with _ssh_server(key, heard) as port:
        known = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        host = "127.0.0.1" if "changed" in case else "127.0.0.9"
        lines = f"[{host}]:{port} {known}"
        async with fetch_in_process(SftpConfig("127.0.0.1", "u", lines, port), SftpSecret(password="secret")) as link:
            await _all_refused(link, heard)


async def _main(trials: Trials) -> None:
    maker = await anyio.to_thread.run_sync(_Maker)
    for trial in trials:
        with trial:
            with anyio.fail_after(60):
                await _try(CASES[trial.number % len(CASES)], trial, maker)


def run(trials: Trials) -> None:
    """Each case once."""
    anyio.run(_main, trials)


# ── faults that it must find ───────────────────────────────────────────────────────────────────────────────

_trust = http.trust


def _any_certificate(ca_pem: str) -> ssl.SSLContext:
    context = _trust(ca_pem)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _any_name(ca_pem: str) -> ssl.SSLContext:
    context = _trust(ca_pem)
    context.check_hostname = False
    return context


_connect = http.Pool._connect


async def _plain_if_need_be(pool: http.Pool) -> Any:
    try:
        return await _connect(pool)
    except SmpError:
        pool.origin = pool.origin._replace(secure=False)
        return await _connect(pool)


def _on_first_use(self: object, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
    return True


EXPERIMENT = Experiment(
    "R20",
    "an unknown and a changed host key; a certificate expired, for another name, of nobody known, signed by itself",
    "refused with what to do; nothing told to the server, no other way tried",
    len(CASES),
    len(CASES),
    run,
    {
        "any certificate is taken": lambda: replaced(http, "trust", _any_certificate),
        "the name is not compared": lambda: replaced(http, "trust", _any_name),
        "plain HTTP will do": lambda: replaced(http.Pool, "_connect", _plain_if_need_be),
        "a host key is trusted on first use": lambda: replaced(
            sftp_login._Witness, "validate_host_public_key", _on_first_use
        ),
    },
    planted_trials=len(CASES),
)
