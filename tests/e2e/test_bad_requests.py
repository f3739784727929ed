"""Requests that make no sense, or would do harm: refused before anything is done, in words that say what to do."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from refusals import MARK, PLAIN, Bench

from smp_proto import control as c
from smp_proto.errors import CODES, SmpError
from smp_proto.sealed.keys import Identity
from smpctl import Client
from smpctl.files import LocalFile


def no_job(bench: Bench, *arguments: str | Path, code: str, about: str) -> str:
    """A verb that must be refused without a job; returns message and hint."""
    kept, jobs, spool = bench.kept(), len(bench.client.jobs(limit=10_000)), bench.spooled()
    done = bench.box.ctl(*arguments, "--json", check=False)
    answer = msgspec.json.decode(done.stdout)
    assert "error" in answer, answer
    error = answer["error"]
    assert (error["code"], done.returncode) == (code, CODES[code].family.exit_code), error
    assert about in error["message"], error
    assert error["hint"], error
    assert f"smpctl: {error['message']}" in done.stderr.decode()
    assert bench.kept() == kept
    assert len(bench.client.jobs(limit=10_000)) == jobs
    assert bench.spooled() == spool
    return str(error["message"] + error["hint"])


@pytest.mark.parametrize(
    ("place", "code", "about"),
    [
        ("scan.smp", "bad_request", "scan.smp"),
        (":scan.smp", "bad_request", ":scan.smp"),
        ("nope:scan.smp", "no_such_remote", "nope"),
        ("S3:scan.smp", "bad_name", "S3"),
        ("s3:/etc/passwd", "bad_name", "s3"),
        ("s3:a/../b", "bad_name", "s3"),
        ("disk:a//b", "bad_name", "two slashes"),
        ("s3:a\nb", "bad_name", "s3"),
        ("s3:" + "x" * 1025, "bad_name", "s3"),
        ("x" * 65 + ":a", "bad_name", "xxx"),
        ("", "bad_request", ""),
    ],
)
@pytest.mark.parametrize("verb", ["get", "run"])
def test_malformed_locations(bench: Bench, verb: str, place: str, code: str, about: str) -> None:
    """A location that names no object of a known remote makes no job."""
    no_job(bench, *(["run", "digest"] if verb == "run" else ["get"]), place, code=code, about=about)


@pytest.mark.parametrize(
    ("arguments", "code", "about"),
    [
        (["remote", "add", "A B", "file:///tmp"], "bad_name", "A B"),
        (["remote", "add", "..", "file:///tmp"], "bad_name", ".."),
        (["remote", "add", "s3", "file:///tmp"], "exists", "s3"),
        (["remote", "add", "x", "ftp://host/x"], "bad_request", "ftp://host/x"),
        (["remote", "add", "x", "s3://"], "bad_request", "bucket"),
        (["remote", "add", "x", "s3://b", "--endpoint", "nonsense", "--no-secret"], "bad_request", "nonsense"),
        (["remote", "add", "x", "sftp://host/x"], "bad_request", "user"),
        (["remote", "add", "x", "sftp://user:secret@host/x"], "bad_request", "password"),
        (["remote", "add", "x", "sftp://user@host:port/x"], "bad_request", "port"),
        (["remote", "test", "nope"], "no_such_remote", "nope"),
        (["remote", "remove", "nope"], "no_such_remote", "nope"),
        (["ls", "nope:"], "no_such_remote", "nope"),
        (["ls", "s3:../x"], "bad_name", "s3"),
        (["trust", "add", "x", "smp1pub:nonsense"], "no_such_key", "smp1pub:nonsense"),
        (["trust", "add", "x", "KEYFILE"], "key_invalid", ""),
        (["trust", "add", "Not A Name", "GOODKEY"], "bad_name", "Not A Name"),
        (["trust", "add", "x", "GOODKEY", "--prefix", "a/b"], "bad_request", "a/b"),
        (["trust", "add", "x", "GOODKEY", "--until", "tomorrow"], "bad_request", "tomorrow"),
        (["trust", "remove", "nope"], "no_such_key", "nope"),
        (["job", "show", "nope"], "no_such_job", "nope"),
        (["job", "show", ""], "no_such_job", ""),
        (["vault", "open", "nope", "-o", "OUT"], "no_such_object", "nope"),
        (["vault", "rm", "nope", "--yes"], "no_such_object", "nope"),
        (["put", "KEYFILE", "nope:x", "--to", "box"], "no_such_remote", "nope"),
        (["put", "KEYFILE", "s3:../x", "--to", "box"], "bad_name", "s3"),
        (["put", "KEYFILE", "s3:x", "--to", "nobody"], "no_such_key", "nobody"),
        (["put", "KEYFILE", "s3:x", "--to", "KEYFILE"], "key_invalid", ""),
        (["put", "MISSING", "s3:x", "--to", "box"], "no_such_file", "MISSING"),
        (["run", "digest", "s3:good.smp", "--to", "nope:x"], "no_such_remote", "nope"),
        (["run", "digest", "s3:good.smp", "--to", "s3:../x"], "bad_name", "s3"),
        (["run", "digest", "s3:good.smp", "--to", "s3:good.smp"], "bad_request", "s3:good.smp"),
        (["run", "digest", "s3:good.smp", "--for", "nobody"], "no_such_key", "nobody"),
        (["run", "digest", "s3:good.smp", "-p", "width"], "bad_parameter", "width"),
    ],
)
def test_malformed_arguments(bench: Bench, tmp_path: Path, arguments: list[str], code: str, about: str) -> None:
    """What a person can mistype."""
    stranger = Identity.generate("stranger").public.text()
    (tmp_path / "KEYFILE").write_text(stranger[:-20] + "\n")
    (tmp_path / "GOODKEY").write_text(stranger + "\n")
    paths = {name: tmp_path / name for name in ("KEYFILE", "GOODKEY", "OUT", "MISSING")}
    no_job(bench, *(paths.get(each, each) for each in arguments), code=code, about=about)


# ── a client that does not behave ──────────────────────────────────────────────────────────────────────────


def hand_over(bench: Bench, name: str, *fds: int, recipients: list[str] | None = None) -> SmpError:
    """A put by a client of one's own; returns the refusal."""
    before = bench.spooled()
    spec = c.PutSpec("disk:results/put.smp", recipients or [bench.public.text()])
    error = answered(bench, c.Submit(spec, os.urandom(8).hex()), c.PutFile(name, 5, last=True), list(fds))
    assert bench.spooled() == before
    return error


def answered(bench: Bench, request: c.Request, message: object, fds: list[int]) -> SmpError:
    """Send a request and one message of it; returns the error that has to come."""
    with Client(str(bench.box.socket)) as client:
        try:
            with client._open(request) as exchange:
                exchange.send(message, fds)
                exchange.result(msgspec.Raw)
        except SmpError as error:
            return error
    raise AssertionError("it was not refused")


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/../../b", "", ".", "a\0b", "a\nb", "x" * 2000, "a\\b"])
def test_put_of_a_name_that_leads_elsewhere(bench: Bench, tmp_path: Path, name: str) -> None:
    """An entry that nobody could open safely is not sealed."""
    (tmp_path / "file").write_bytes(MARK)
    kept = bench.kept()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        error = hand_over(bench, name, fd)
    finally:
        os.close(fd)
    assert error.code == "bad_name"
    assert bench.kept() == kept


def test_put_of_what_is_no_file(bench: Bench, tmp_path: Path) -> None:
    """A FIFO would hold a thread for ever, a folder has no bytes, one open for writing shows nothing of the caller's right."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(MARK)
    for path, flags in (
        (tmp_path / "fifo", os.O_RDWR | os.O_NONBLOCK),
        (tmp_path, os.O_RDONLY),
        (tmp_path / "file", os.O_WRONLY),
        (Path("/dev/zero"), os.O_RDONLY),
        (tmp_path / "file", os.O_PATH),
    ):
        fd = os.open(path, flags)
        try:
            error = hand_over(bench, "name", fd)
        finally:
            os.close(fd)
        assert (error.code, error.exit_code) == ("bad_request", 2), path
        assert error.hint


def test_put_without_or_with_two_descriptors(bench: Bench, tmp_path: Path) -> None:
    """A file of a put comes with exactly one."""
    (tmp_path / "file").write_bytes(MARK)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert hand_over(bench, "name").code == "protocol"
        assert hand_over(bench, "name", fd, fd).code == "protocol"
    finally:
        os.close(fd)


def test_put_for_nobody_too_many_or_no_key(bench: Bench, tmp_path: Path) -> None:
    """Recipients are checked before a byte is sealed."""
    (tmp_path / "file").write_bytes(MARK)
    key = bench.public.text()
    for recipients, code in (
        ([key[:-4]], "key_invalid"),
        (["smp1pub:" + "A" * 1670], "key_invalid"),
        ([""], "key_invalid"),
    ):
        with pytest.raises(SmpError) as refused:
            bench.client.put([LocalFile("a", str(tmp_path / "file"))], "disk:results/x", recipients)
        assert refused.value.code == code
        assert refused.value.hint
    with pytest.raises(SmpError) as refused:
        bench.client.put([LocalFile("a", str(tmp_path / "file"))], "disk:results/x", [])
    assert refused.value.code == "bad_request"
    many = [key] * 1100
    with pytest.raises(SmpError) as refused:
        bench.client.put([LocalFile("a", str(tmp_path / "file"))], "disk:results/x", many)
    assert refused.value.exit_code == 2, refused.value
    assert refused.value.hint


def test_open_into_what_is_there(bench: Bench, tmp_path: Path) -> None:
    """A file that is there is not replaced, a planted link not followed, and what it points at not touched."""
    view = bench.client.wait(bench.client.submit(c.GetSpec("s3:good.smp")).id)
    assert view.result
    item, out = view.result.vault_id, tmp_path / "out"
    name = bench.client.vault_entries(item)[0].name
    out.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for plant in ("file", "link", "dangling", "folder"):
        path = out / name
        if plant == "file":
            path.write_text("mine")
        elif plant == "folder":
            path.mkdir()
        else:
            path.symlink_to(precious if plant == "link" else tmp_path / "not there")
        no_job(bench, "vault", "open", item, "-o", out, code="exists", about=name)
        assert precious.read_text() == "mine"
        assert not (tmp_path / "not there").exists()
        assert os.listdir(out) == [name]
        if plant == "link":  # --force replaces the link, not what it points at
            bench.box.ctl("vault", "open", item, "-o", out, "--force")
            assert precious.read_text() == "mine"
            assert path.read_bytes() == PLAIN
        path.rmdir() if plant == "folder" else path.unlink()
    (tmp_path / "link").symlink_to(tmp_path)
    bench.client.vault_remove(item)


def test_open_by_a_client_of_ones_own(bench: Bench, tmp_path: Path) -> None:
    """Descriptors that are no files open for writing are refused."""
    view = bench.client.wait(bench.client.submit(c.GetSpec("s3:good.smp")).id)
    assert view.result
    item = view.result.vault_id
    name = bench.client.vault_entries(item)[0].name
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    for path, flags, entry, code in (
        (tmp_path / "fifo", os.O_RDWR | os.O_NONBLOCK, name, "bad_request"),
        (tmp_path / "file", os.O_RDONLY, name, "bad_request"),
        (tmp_path / "file", os.O_WRONLY, "no such entry", "bad_request"),
    ):
        fd = os.open(path, flags)
        error = answered(bench, c.VaultOpen(item), c.OpenInto(entry, last=True), [fd])
        os.close(fd)
        assert error.code == code, error
        assert (tmp_path / "file").read_bytes() == b""
    bench.client.vault_remove(item)


# ── a second daemon ────────────────────────────────────────────────────────────────────────────────────────


def smpd(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """Start a daemon that must not come up."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("SMPD_")} | environ
    return subprocess.run(
        [sys.executable, "-m", "smpd", *map(str, arguments)], env=env, capture_output=True, timeout=60, check=False
    )


def test_two_daemons(bench: Bench, tmp_path: Path) -> None:
    """Neither on the same state nor on the same socket; the first one does not notice."""
    done = smpd("--config", bench.box.config)
    assert done.returncode == CODES["exists"].family.exit_code
    assert str(bench.box.state).encode() in done.stderr
    assert b"hint: " in done.stderr
    done = smpd("--config", bench.box.config, SMPD_PATHS_STATE=str(tmp_path / "state"))
    assert done.returncode == CODES["exists"].family.exit_code, done.stderr
    assert str(bench.box.socket).encode() in done.stderr
    assert b"hint: " in done.stderr
    assert b"Traceback" not in done.stderr


def test_something_else_at_the_socket(bench: Bench, tmp_path: Path) -> None:
    """A file in the socket's place is not removed."""
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run" / "s").write_text("mine")
    environ = {"SMPD_PATHS_STATE": str(tmp_path / "state"), "SMPD_PATHS_SOCKET": str(tmp_path / "run" / "s")}
    (tmp_path / "empty.toml").write_text("")
    done = smpd("--config", tmp_path / "empty.toml", **environ)
    assert done.returncode == 10, done.stderr
    assert (tmp_path / "run" / "s").read_text() == "mine"
