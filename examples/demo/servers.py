"""The two storage servers: other people's programs (rclone), with keys made here and ports picked by the kernel."""

import os
import secrets
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from examples.demo.stage import Stage, write_private

BUCKET = "studies"
USER = "clinic"


class Storage(NamedTuple):
    """How to reach the servers; credentials are in files of the folder.

    Attributes:
        endpoint: URL of the S3 server.
        sftp_port: of the SFTP server, on 127.0.0.1.
    """

    endpoint: str
    sftp_port: int


def start(stage: Stage) -> Storage:
    """Start both, and write what the box and the sender need to use them.

    The host key is made here and handed to the server, so that ``known_hosts`` is true without asking the network.
    """
    folder = stage.folder
    for name in ("storage/s3/" + BUCKET, "storage/sftp"):
        (folder / name).mkdir(parents=True)
    _key_pair(folder / "storage" / "host_key")
    _key_pair(folder / "ssh_key")
    access, secret = f"AK{secrets.token_hex(9).upper()}", secrets.token_urlsafe(30)
    endpoint = stage.start(
        "storage",
        *("rclone", "serve", "s3", "storage/s3", "--addr", "127.0.0.1:0", "--config", os.devnull),
        ready=r"Starting s3 server on \[(http://127\.0\.0\.1:\d+)/",
        log="storage/s3.log",
        # A list in CSV form; not an argument, which every user of this machine could read.
        environment={"RCLONE_AUTH_KEY": f'"{access},{secret}"'},
    )[1]
    port = stage.start(
        "storage",
        *("rclone", "serve", "sftp", "storage/sftp", "--addr", "127.0.0.1:0", "--config", os.devnull),
        # 0s would have it spin for as long as it runs.
        *("--user", USER, "--authorized-keys", "ssh_key.pub", "--key", "storage/host_key", "--dir-cache-time", "1ms"),
        ready=r"SFTP server listening on 127\.0\.0\.1:(\d+)",
        log="storage/sftp.log",
    )[1]
    kind, key = (folder / "storage" / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    write_private(folder / "lake.toml", f'access_key = "{access}"\nsecret_key = "{secret}"\n'.encode())
    write_private(folder / "rclone.conf", _rclone_conf(endpoint, access, secret, port).encode())
    return Storage(endpoint, int(port))


def _key_pair(path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    Path(f"{path}.pub").write_bytes(public + b"\n")


def _rclone_conf(endpoint: str, access: str, secret: str, port: str) -> str:
    return f"""[lake]
type = s3
provider = Rclone
endpoint = {endpoint}
access_key_id = {access}
secret_access_key = {secret}

[ward]
type = sftp
host = 127.0.0.1
port = {port}
user = {USER}
key_file = ssh_key
known_hosts_file = known_hosts
shell_type = none
"""
