"""What people and files of this machine give: configuration, secrets, names, records."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

from fuzz.sealed import text_of

Parse = Callable[[bytes], None]


def _file() -> tuple[str, Callable[[bytes], None]]:
    """A file in memory, and what writes it anew."""
    fd = os.memfd_create("fuzz")

    def write(data: bytes) -> None:
        os.ftruncate(fd, 0)
        os.pwrite(fd, data, 0)

    return f"/proc/self/fd/{fd}", write


def config() -> Parse:
    """A configuration file."""
    from smpd.configuring import check_config, load_config

    path, write = _file()

    def parse(data: bytes) -> None:
        write(data)
        check_config(load_config(path, {"HOME": "/nonexistent"}))

    return parse


def known_hosts() -> Parse:
    """The lines of a known_hosts file, by our own reader."""
    from smpctl.known_hosts import applies

    def parse(data: bytes) -> None:
        for line in data[:4096].decode(errors="replace").splitlines()[:20]:
            applies(line, "host.example", 22)
            applies(line, "host.example", 2222)

    return parse


def remote_url() -> Parse:
    """The URL of a remote."""
    from smpctl.remote_url import RemoteOptions, parse_url

    path, write = _file()
    write(b"host.example ssh-ed25519 AAAA\n")
    options = RemoteOptions(known_hosts=path)

    def parse(data: bytes) -> None:
        url = text_of(data)
        parse_url(url, options if url.startswith("sftp:") else RemoteOptions())

    return parse


def webhook() -> Parse:
    """The URL of a webhook, and on the next line the header that it is sent."""
    from smpd.links.webhook import parse_header, parse_url

    def parse(data: bytes) -> None:
        url, _, header = data.partition(b"\n")
        if header:
            line = parse_header(header)
            assert line.isascii()
            assert line.isprintable()
            assert line.partition(": ")[2]
        address = parse_url(text_of(url))
        assert 0 < address.port < 65536
        assert address.target.startswith("/")
        assert not set("\r\n \0") & set(address.host + address.target)

    return parse


def location() -> Parse:
    """``REMOTE:PATH``, and the name of an entry."""
    from smp_proto.sealed.entries import valid_entry_name
    from smpd.vault.remotes import parse_location

    def parse(data: bytes) -> None:
        text = text_of(data)
        if valid_entry_name(text):
            assert not os.path.isabs(text)
            assert os.path.normpath(os.path.join("/r", text)).startswith("/r/")
        parse_location(text, prefix=True)

    return parse


def secret() -> Parse:
    """The TOML of a remote's secret: the first byte says of which kind."""
    from smp_proto.control import S3Secret, SftpSecret
    from smpctl.remote_url import parse_secret

    def parse(data: bytes) -> None:
        kind = SftpSecret if data[:1] and data[0] & 1 else S3Secret
        parse_secret(bytearray(data[1:]), kind)

    return parse


def private_key() -> Parse:
    """The text of an SSH private key."""
    from smpctl.remote_url import encrypted

    def parse(data: bytes) -> None:
        encrypted(text_of(data))

    return parse


def record() -> Parse:
    """Records of the trust store and of remotes, as they come out of their seals: a damaged one is left out."""
    from smp_proto.errors import IntegrityError
    from smpd.jobs.database import Database
    from smpd.vault.remotes import RemoteStore
    from smpd.vault.trust import TrustStore

    class Open:
        """No seal at all."""

        def seal(self, plain: bytes, _context: str) -> bytes:
            return bytes(plain)

        def open(self, blob: bytes, _context: str) -> bytes:
            return blob

    seal: Any = Open()
    held: list[bytes] = [b""]

    class Rows(Database):
        def __init__(self) -> None:
            pass

        def rows(self, sql: str, values: Any = ()) -> Any:
            return [("r",)] if "name FROM" in sql else [(1, held[0])] if "trust" in sql else [(held[0],)]

    database = Rows()
    remotes, trust = RemoteStore(database, seal), TrustStore(database, seal)

    def parse(data: bytes) -> None:
        held[0] = data
        remotes.list()
        with contextlib.suppress(IntegrityError):
            remotes.get("r")
        with contextlib.suppress(IntegrityError):
            trust.read().lookup(b"k" * 16, "r:p", 1e9)

    return parse
