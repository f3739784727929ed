"""Real storage servers for tests, on loopback, on ports the kernel picks: each a context manager.

``rclone_s3``, ``rclone_sftp`` and ``sshd`` serve a folder; ``moto_s3`` keeps objects in memory. Each yields a
:class:`Served` with what ``smpd.fetch`` needs to use it.
"""

import contextlib
import datetime
import getpass
import ipaddress
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import botocore.config
import botocore.session
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from smp_proto.control import AnyRemoteConfig, AnyRemoteSecret, S3Config, S3Secret, SftpConfig, SftpSecret

BUCKET = "scans"
USER = "sender"
ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
_FRESH = ["--dir-cache-time", "1ms"]  # with 20ms a new file is often missed; 0s spins


class Served(NamedTuple):
    """A running server: how to use it, and the folder it serves (of the bucket, for S3; none for moto)."""

    config: AnyRemoteConfig
    secret: AnyRemoteSecret | None
    path: Path | None = None
    process: subprocess.Popen[str] | None = None


def program(name: str) -> str:
    """The path of a program beside this interpreter, on PATH or in /usr/sbin; skips the test where there is none."""
    folders = [os.path.dirname(sys.executable), os.environ.get("PATH", ""), "/usr/sbin"]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def free_port() -> int:
    """A port that was free a moment ago, for servers that cannot report the one they got."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def _running(argv: Sequence[str], ready: str) -> Iterator[tuple[subprocess.Popen[str], re.Match[str]]]:
    """Run a server until the block ends; ``ready`` is the line, on either output, that says it listens."""
    env = {name: os.environ[name] for name in ("HOME", "PATH", "LANG") if name in os.environ}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    assert process.stdout is not None
    seen: list[str] = []
    try:
        for line in process.stdout:
            seen.append(line)
            if found := re.search(ready, line):
                break
        else:
            raise RuntimeError(f"{argv[0]} did not start:\n{''.join(seen)}")
        # A server whose log nobody reads stops once the pipe is full.
        drain = threading.Thread(target=deque, args=(process.stdout, 0), daemon=True)
        drain.start()
        yield process, found
        process.kill()
        drain.join()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def rclone_s3(path: Path, *extra: str, scheme: str = "http", port: int = 0) -> Iterator[Served]:
    """Serve ``path/scans`` as the bucket ``scans``. It answers ranged GETs with 200 and ignores If-Match."""
    (path / BUCKET).mkdir(parents=True, exist_ok=True)
    argv = [program("rclone"), "serve", "s3", str(path), "--addr", f"127.0.0.1:{port}", "--config", os.devnull]
    argv += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", *_FRESH, *extra]
    with _running(argv, rf"Starting s3 server on \[{scheme}://127.0.0.1:(\d+)/") as (process, found):
        config = S3Config(BUCKET, endpoint=f"{scheme}://127.0.0.1:{found[1]}", addressing="path")
        yield Served(config, S3Secret(ACCESS_KEY, SECRET_KEY), path / BUCKET, process)


@contextlib.contextmanager
def moto_s3() -> Iterator[Served]:
    """A stand-in for AWS with If-Match, ETags and multipart uploads, and the empty bucket ``scans``."""
    argv = [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with _running(argv, r"Running on (http://127.0.0.1:\d+)") as (process, found):
        served = Served(
            S3Config(BUCKET, endpoint=found[1], addressing="path"), S3Secret("key", "secret"), None, process
        )
        admin(served).create_bucket(Bucket=BUCKET)
        yield served


def admin(served: Served) -> Any:
    """A plain botocore client for looking at a bucket from outside."""
    return _aws("s3", served)


def sqs(served: Served) -> Any:
    """A plain botocore client for queues."""
    return _aws("sqs", served)


def _aws(service: str, served: Served) -> Any:
    config, secret = served.config, served.secret
    assert isinstance(config, S3Config)
    assert isinstance(secret, S3Secret)
    return botocore.session.Session().create_client(
        service,
        endpoint_url=config.endpoint,
        region_name=config.region,
        aws_access_key_id=secret.access_key,
        aws_secret_access_key=secret.secret_key,
        config=botocore.config.Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """An SSH key pair at ``path`` and ``path.pub``."""
    argv = [program("ssh-keygen"), "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path)]
    subprocess.run(argv, check=True, capture_output=True)
    return path


def known_host(key: Path, port: int, host: str = "127.0.0.1") -> str:
    """The known_hosts line for a host key."""
    kind, data = Path(f"{key}.pub").read_text().split()[:2]
    return f"[{host}]:{port} {kind} {data}\n"


@contextlib.contextmanager
def rclone_sftp(path: Path, keys: Path, port: int = 0) -> Iterator[Served]:
    """Serve ``path`` over SFTP (Go's implementation), with a password. ``keys`` is a folder for key files."""
    path.mkdir(parents=True, exist_ok=True)
    host_key = keys / "rclone_host_key"
    if not host_key.exists():
        make_key(host_key)
    argv = [program("rclone"), "serve", "sftp", str(path), "--addr", f"127.0.0.1:{port}", "--config", os.devnull]
    argv += ["--user", USER, "--pass", "correct horse", "--key", str(host_key), *_FRESH]
    argv += ["--authorized-keys", "", "--vfs-cache-mode", "off"]
    with _running(argv, r"SFTP server listening on 127.0.0.1:(\d+)") as (process, found):
        port = int(found[1])
        config = SftpConfig("127.0.0.1", USER, known_host(host_key, port), port)
        yield Served(config, SftpSecret(password="correct horse"), path, process)


_SSHD_CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {host_key}
AuthorizedKeysFile {authorized}
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
MaxStartups 100
Subsystem sftp internal-sftp -d {path}
"""


@contextlib.contextmanager
def sshd(path: Path, keys: Path, key_kind: str = "ed25519", ciphers: str = "") -> Iterator[Served]:
    """OpenSSH's server, run as this user, with a key for authentication and ``path`` as the start folder."""
    path.mkdir(parents=True, exist_ok=True)
    binary = program("sshd")
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)  # sshd, as root, wants it
    host_key, user_key = make_key(keys / "sshd_host_key", key_kind), make_key(keys / "user_key")
    for _ in range(5):
        port = free_port()
        config_file = keys / "sshd_config"
        authorized = f"{user_key}.pub"
        config = _SSHD_CONFIG.format(port=port, host_key=host_key, authorized=authorized, path=path)
        config_file.write_text(config + (f"Ciphers {ciphers}\n" if ciphers else ""))
        started = _running([binary, "-D", "-e", "-f", str(config_file)], r"Server listening on 127.0.0.1 port (\d+)")
        try:
            process, _ = started.__enter__()
        except RuntimeError as error:
            if "in use" in str(error):
                continue
            raise
        with contextlib.ExitStack() as stack:
            stack.push(started)
            config = SftpConfig("127.0.0.1", getpass.getuser(), known_host(host_key, port), port, root=str(path))
            yield Served(config, SftpSecret(private_key=user_key.read_text()), path, process)
        return
    raise RuntimeError("no port for sshd")


def make_certificate(folder: Path, name: str = "127.0.0.1") -> tuple[Path, Path]:
    """A self-signed certificate for an address, and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key_file.write_bytes(private)
    return cert_file, key_file
