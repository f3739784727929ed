"""Storage that cannot be used: wrong credentials, nothing there, and servers that are not who they should be."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from refusals import Bench
from scene import add_remote
from servers import Served, free_port, known_host, make_certificate, make_key, rclone_s3, rclone_sftp

from smp_proto.control import S3Config, S3Secret, SftpConfig, SftpSecret
from smp_proto.errors import CODES


@pytest.fixture(scope="module")
def sftp(bench_of_the_run: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server for SFTP with the good object on it."""
    with rclone_sftp(tmp_path_factory.mktemp("sftp"), tmp_path_factory.mktemp("keys")) as served:
        assert served.path
        (served.path / "good.smp").write_bytes(bench_of_the_run.good)
        yield served


def refused(bench: Bench, name: str, served: Served, code: str, about: str, path: str = "good.smp") -> str:
    """Test, list, get and put with such a remote: one error, one exit code, and what to do; returns the hint."""
    add_remote(bench.box, name, served)
    expected = CODES[code].family.exit_code
    for verb in (["remote", "test", name], ["ls", f"{name}:"]) if path == "good.smp" else ():
        done = bench.box.ctl(*verb, "--json", check=False)
        error = msgspec.json.decode(done.stdout)["error"]
        assert (error["code"], done.returncode) == (code, expected), done.stderr
        assert about in error["message"]
        assert error["hint"]
    view = bench.refuse("get", f"{name}:{path}", "--export", bench.folder / "out", code=code, about=f"{name}:{path}")
    assert view.error
    assert about in view.error.message
    assert "NAME" not in view.error.hint.replace("--profile NAME", "")
    letter = bench.folder / "letter.txt"
    letter.write_text("a letter")
    if path == "good.smp":
        view = bench.refuse("put", letter, f"{name}:new.smp", "--to", "box", code=code, about=f"{name}:new.smp")
        assert bench.spool_of(view, ".out")  # it was acknowledged, so it is kept to be sent later
    bench.box.ctl("remote", "remove", name)
    assert view.error
    return view.error.hint


def test_wrong_s3_secret(bench: Bench) -> None:
    """The key is known and the secret is not: the credentials are refused, and not shown."""
    served = bench.s3._replace(secret=S3Secret("AKIAIOSFODNN7EXAMPLE", "not the secret at all"))
    refused(bench, "secret", served, "remote_auth", "scans")
    assert b"not the secret" not in bench.box.log.read_bytes()


def test_wrong_sftp_password(bench: Bench, sftp: Served) -> None:
    """A password that the server refuses."""
    refused(bench, "password", sftp._replace(secret=SftpSecret(password="battery staple")), "remote_auth", "127.0.0.1")
    assert b"battery staple" not in bench.box.log.read_bytes()


def test_no_such_bucket(bench: Bench) -> None:
    """A bucket that is not there."""
    assert isinstance(bench.s3.config, S3Config)
    config = msgspec.structs.replace(bench.s3.config, bucket="other")
    refused(bench, "bucket", bench.s3._replace(config=config), "no_such_bucket", "other")


def test_no_such_folder(bench: Bench, tmp_path: Path) -> None:
    """A local folder that is not there."""
    bench.box.ctl("remote", "add", "folder", f"file://{tmp_path}/none")
    bench.refuse("get", "folder:a.smp", code="no_such_bucket", about=f"{tmp_path}/none")
    bench.box.ctl("remote", "remove", "folder")


@pytest.mark.parametrize("remote", ["s3", "disk", "sftp"])
def test_no_such_object(bench: Bench, sftp: Served, remote: str) -> None:
    """An object that is not there; the hint lists the remote by its name."""
    if remote == "sftp":
        add_remote(bench.box, "sftp", sftp)
    view = bench.refuse("get", f"{remote}:nope/a.smp", code="no_such_object", about=f"{remote}:nope/a.smp")
    assert view.error
    assert f"smpctl ls {remote}:" in view.error.hint
    if remote == "sftp":
        bench.box.ctl("remote", "remove", "sftp")


def test_a_host_that_does_not_resolve(bench: Bench, sftp: Served) -> None:
    """No name server knows these hosts."""
    assert isinstance(bench.s3.config, S3Config)
    assert isinstance(sftp.config, SftpConfig)
    config = msgspec.structs.replace(bench.s3.config, endpoint="http://storage.invalid:9000")
    refused(bench, "nohost", bench.s3._replace(config=config), "remote_unreachable", "storage.invalid")
    hosts = sftp.config.known_hosts.replace("127.0.0.1", "files.invalid")
    other = msgspec.structs.replace(sftp.config, host="files.invalid", known_hosts=hosts)
    refused(bench, "nohost", sftp._replace(config=other), "remote_unreachable", "files.invalid")


def test_a_port_that_refuses(bench: Bench, sftp: Served) -> None:
    """Nothing listens there."""
    assert isinstance(bench.s3.config, S3Config)
    assert isinstance(sftp.config, SftpConfig)
    port = free_port()
    config = msgspec.structs.replace(bench.s3.config, endpoint=f"http://127.0.0.1:{port}")
    refused(bench, "noport", bench.s3._replace(config=config), "remote_unreachable", str(port))
    hosts = sftp.config.known_hosts.replace(str(sftp.config.port), str(port))
    other = msgspec.structs.replace(sftp.config, port=port, known_hosts=hosts)
    refused(bench, "noport", sftp._replace(config=other), "remote_unreachable", "127.0.0.1")


def test_host_key_unknown(bench: Bench, sftp: Served, tmp_path: Path) -> None:
    """No line for the host in known_hosts: the remote is not even added; the hint says how the key is had."""
    assert isinstance(sftp.config, SftpConfig)
    hosts = tmp_path / "known_hosts"
    hosts.write_text("")
    url = f"sftp://sender@127.0.0.1:{sftp.config.port}/"
    done = bench.box.ctl("remote", "add", "who", url, "--known-hosts", hosts, "--no-secret", "--json", check=False)
    error = msgspec.json.decode(done.stdout)["error"]
    assert (error["code"], done.returncode) == ("remote_untrusted", 6)
    assert "127.0.0.1" in error["message"]
    assert "ssh-keyscan" in error["hint"]


def test_host_key_changed(bench: Bench, sftp: Served, tmp_path: Path) -> None:
    """Another host key than the one kept: the connection ends before the password is sent."""
    assert isinstance(sftp.config, SftpConfig)
    line = known_host(make_key(tmp_path / "other"), sftp.config.port)
    config = msgspec.structs.replace(sftp.config, known_hosts=line)
    hint = refused(bench, "changed", sftp._replace(config=config), "remote_untrusted", "127.0.0.1")
    assert "fingerprint" in hint or "host key" in hint


def test_certificate_not_trusted(bench: Bench, tmp_path: Path) -> None:
    """A certificate that nobody vouches for."""
    cert, key = make_certificate(tmp_path)
    with rclone_s3(tmp_path / "s3", "--cert", str(cert), "--key", str(key), scheme="https") as served:
        hint = refused(bench, "tls", served, "remote_untrusted", "127.0.0.1")
    assert "--ca-file" in hint
