"""``remote add``: what a URL and its options mean, and that secrets travel by no other way than those allowed."""

import base64
import contextlib
import hashlib
import hmac
import shutil
import subprocess
from pathlib import Path

import pytest
from client.conftest import Smpctl
from client.standin import StandIn
from hypothesis import given
from hypothesis import strategies as st
from servers import make_certificate

from smp_proto import control as c
from smp_proto.control import SftpConfig
from smp_proto.errors import KeyFileError, RemoteError, SmpError, UsageError
from smpctl.known_hosts import applies, lines_for
from smpctl.remote_url import RemoteOptions, encrypted, parse_url, secret_for

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPlaceholderPlaceholderPlaceholderPlacehold"
SECRET = 'access_key = "AK"\nsecret_key = "hush"\n'


def added(daemon: StandIn) -> c.RemoteAdd:
    """The one request to add a remote."""
    (found,) = [each for each in daemon.seen if isinstance(each, c.RemoteAdd)]
    return found


@pytest.fixture
def adding(daemon: StandIn) -> StandIn:
    """A stand-in that takes any remote."""
    daemon.answers[c.RemoteAdd] = c.RemoteView("lab", "zero-knowledge", c.LocalConfig("/"), True)
    return daemon


def test_s3_with_everything(smpctl: Smpctl, adding: StandIn, home: Path) -> None:
    """Bucket and prefix come from the URL, the rest from options, the secret from a file."""
    (home / "secret").write_text(SECRET)
    certificate = make_certificate(home)[0].read_text()
    (home / "ca").write_text(f"# Krankenhaus München\n{certificate}")
    options = ["--endpoint", "https://s3.local:9000", "--region", "eu-1", "--addressing", "path", "--ca-file", "ca"]
    ran = smpctl("remote", "add", "lab", "s3://scans/2026/x", *options, "--secret-file", "secret", "--mode", "standard")
    assert ran.code == 0, ran.err
    config = c.S3Config(
        "scans", "2026/x", "https://s3.local:9000", "eu-1", "path", ca_pem=f"# Krankenhaus München\n{certificate}"
    )
    assert added(adding) == c.RemoteAdd("lab", config, "standard", c.S3Secret("AK", "hush"))
    assert "chmod 600" in ran.err
    assert "hush" not in ran.out + ran.err


@pytest.mark.parametrize("held", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"])
def test_certificates_that_are_none(smpctl: Smpctl, adding: StandIn, home: Path, held: str) -> None:
    """They are told when they are given, and not when the remote is first used."""
    (home / "ca").write_text(held)
    ran = smpctl("remote", "add", "lab", "s3://b", "--no-secret", "--ca-file", "ca")
    assert (ran.code, "ca holds no certificate" in ran.err, adding.seen) == (2, True, [])


def test_more_certificates_than_are_taken(smpctl: Smpctl, adding: StandIn, home: Path) -> None:
    """A file that is too long is refused, and not cut off where a certificate happens to end."""
    (home / "ca").write_text(make_certificate(home)[0].read_text() * 600)
    ran = smpctl("remote", "add", "lab", "s3://b", "--no-secret", "--ca-file", "ca")
    assert (ran.code, "the certificate ca is over 256 KiB" in ran.err, adding.seen) == (2, True, [])


def test_another_secret(smpctl: Smpctl, adding: StandIn, home: Path) -> None:
    """It is said that the remote is kept already."""
    assert smpctl("remote", "add", "lab", "s3://b", "--replace", "--secret-stdin", stdin=SECRET).code == 0
    assert added(adding) == c.RemoteAdd("lab", c.S3Config("b"), "zero-knowledge", c.S3Secret("AK", "hush"), True)


def test_s3_from_standard_input(smpctl: Smpctl, adding: StandIn, home: Path) -> None:
    """The same form on standard input, with a session token."""
    text = SECRET + 'session_token = "t"\n'
    assert smpctl("remote", "add", "lab", "s3://b", "--secret-stdin", stdin=text).code == 0
    assert added(adding).secret == c.S3Secret("AK", "hush", "t")


@pytest.mark.parametrize(
    "text",
    [
        "hush",
        'secret_key = "hush"',
        'access_key = 1\nsecret_key = "hush"',
        SECRET + "x=1",
        f"{SECRET}x = {'[' * 5000}",
        f"{SECRET}x = {'9' * 5000}",
    ],
)
def test_a_malformed_secret_is_not_quoted(smpctl: Smpctl, adding: StandIn, text: str) -> None:
    """A secret of another form is refused without a word of it in any output."""
    ran = smpctl("remote", "add", "lab", "s3://b", "--secret-stdin", "--json", stdin=text)
    assert ran.code == 2
    assert "hush" not in ran.out + ran.err
    assert "access_key" in ran.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["s3://b"], "--secret-stdin"),
        (["s3://b", "--secret-stdin", "--secret-file", "x"], "use one of them"),
        (["s3://"], "names no bucket"),
        (["s3://key:hush@b", "--no-secret"], "holds a password"),
        (["sftp://host/x", "--no-secret"], "no user"),
        (["ftp://host/x"], "is no remote"),
        (["sftp://ann@host/x", "--region", "x"], "means nothing for sftp"),
        (["s3://b", "--use-agent"], "means nothing for s3"),
        (["/srv", "--secret-stdin"], "no credentials"),
        (["file:///srv/scans#2"], "%23"),
        (["file:///srv/scans?"], "%3F"),
        (["s3://b/a#b", "--no-secret"], "%23"),
        (["s3://b?versions", "--no-secret"], "%3F"),
        (["sftp://ann@host/a?b#c", "--no-secret"], "%23"),
    ],
)
def test_what_makes_no_sense_is_refused(smpctl: Smpctl, adding: StandIn, args: list[str], said: str) -> None:
    """Options that contradict each other or the URL are said, and nothing is sent."""
    ran = smpctl("remote", "add", "lab", *args, stdin="")
    assert (ran.code, said in ran.err) == (2, True), ran.err
    assert adding.seen == []


def test_folders(smpctl: Smpctl, adding: StandIn, home: Path) -> None:
    """A file URL and a bare path are folders, made absolute."""
    assert smpctl("remote", "add", "lab", "file:///srv/a%20b%23%3F/").code == 0
    assert added(adding).config == c.LocalConfig("/srv/a b#?")
    adding.seen.clear()
    assert smpctl("remote", "add", "lab", "/srv/a#b?c").code == 0
    assert added(adding).config == c.LocalConfig("/srv/a#b?c")
    adding.seen.clear()
    assert smpctl("remote", "add", "lab", "here").code == 0
    assert added(adding).config == c.LocalConfig(str(home / "here"))


def test_sftp_takes_the_hosts_lines_and_a_key(smpctl: Smpctl, adding: StandIn, home: Path) -> None:
    """Only the lines of that host go along, with the private key from its own file."""
    (home / ".ssh").mkdir()
    (home / ".ssh/known_hosts").write_text(f"other {KEY}\nnas.lan,10.0.0.7 {KEY} one\n[nas.lan]:2222 {KEY} two\n")
    (home / "id").write_text("-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----\n")
    assert smpctl("remote", "add", "n", "sftp://ann@NAS.lan/data", "--identity-file", "id").code == 0
    found = added(adding)
    assert found.config == c.SftpConfig("nas.lan", "ann", f"nas.lan,10.0.0.7 {KEY} one\n", 22, "/data")
    assert found.secret == c.SftpSecret((home / "id").read_text())
    adding.seen.clear()
    args = ["remote", "add", "n", "sftp://ann@nas.lan:2222/data", "--secret-stdin"]
    assert smpctl(*args, stdin='password = "hush"').code == 0
    found = added(adding)
    assert found.config == c.SftpConfig("nas.lan", "ann", f"[nas.lan]:2222 {KEY} two\n", 2222, "/data")
    assert found.secret == c.SftpSecret(password="hush")


def test_an_unknown_host_is_not_trusted(smpctl: Smpctl, adding: StandIn, home: Path) -> None:
    """R20: a host that is not known is refused, with how to add it after checking; nothing is sent."""
    ran = smpctl("remote", "add", "n", "sftp://ann@nas:2222/x", "--use-agent", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (6, "remote_untrusted")
    assert "ssh-keyscan -p 2222 nas" in ran.err
    assert adding.seen == []


def test_a_revoked_key_alone_makes_no_known_host(tmp_path: Path) -> None:
    """@revoked lines go along with others but do not make a host known."""
    (tmp_path / "k").write_text(f"@revoked nas {KEY}\n")
    with pytest.raises(RemoteError):
        lines_for("nas", 22, str(tmp_path / "k"))
    (tmp_path / "k").write_text(f"@revoked nas {KEY}\n@cert-authority *.lan,nas {KEY}\n")
    assert len(lines_for("nas", 22, str(tmp_path / "k")).splitlines()) == 2


def hashed(name: str, salt: bytes = b"0123456789abcdefghij") -> str:
    """A host name as ssh-keygen -H writes it."""
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


@pytest.mark.parametrize(
    ("names", "host", "port", "expected"),
    [
        ("nas", "nas", 22, True),
        ("nas", "NAS", 22, True),
        ("nas", "nas", 2222, False),
        ("[nas]:2222", "nas", 2222, True),
        ("[nas]:2222", "nas", 22, False),
        ("*.lan", "nas.lan", 22, True),
        ("*.lan,!nas.lan", "nas.lan", 22, False),
        ("!nas.lan,*.lan", "nas.lan", 22, False),
        ("n?s", "nas", 22, True),
        ("n?s", "nass", 22, False),
        ("[n]as", "nas", 22, False),
        (hashed("nas"), "nas", 22, True),
        (hashed("[nas]:2222"), "nas", 2222, True),
        (hashed("nas"), "nas2", 22, False),
        ("|1|!!|x", "nas", 22, False),
        ("# nas", "nas", 22, False),
    ],
)
def test_known_hosts_lines(names: str, host: str, port: int, expected: bool) -> None:
    """Names, patterns, negations, ports and hashes as sshd(8) has them."""
    assert applies(f"{names} {KEY}\n", host, port) is expected


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")
def test_hashed_by_openssh(tmp_path: Path) -> None:
    """A file that OpenSSH itself hashed is read; a key it made is told apart by its passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "id"], check=True)
    (tmp_path / "k").write_text(f"nas.lan {(tmp_path / 'id.pub').read_text()}")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", tmp_path / "k"], check=True, capture_output=True)
    assert lines_for("nas.lan", 22, str(tmp_path / "k")).startswith("|1|")
    assert not encrypted((tmp_path / "id").read_text())
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "hush5", "-f", tmp_path / "id"], check=True, capture_output=True)
    assert encrypted((tmp_path / "id").read_text())


@given(st.text(max_size=60), st.text(max_size=10))
def test_any_known_hosts_line(line: str, host: str) -> None:
    """No line makes the reader fail."""
    assert applies(line, host, 22) in (True, False)


@given(
    st.text(max_size=40) | st.builds("{}://{}".format, st.sampled_from(["s3", "sftp", "file"]), st.text(max_size=30))
)
def test_any_url(url: str) -> None:
    """Whatever is given for a URL is a configuration or an error with a hint."""
    found: object
    try:
        found = parse_url(url, RemoteOptions(known_hosts="/nonexistent"))
    except SmpError as error:
        found = error
    assert isinstance(found, c.RemoteConfig) or (isinstance(found, UsageError | RemoteError) and found.hint)


def test_list_test_remove(smpctl: Smpctl, adding: StandIn) -> None:
    """The listing shows URLs; testing says what the server said; removing names it."""
    sftp = c.SftpConfig("nas", "ann", "", 2222, "/d")
    views = [
        c.RemoteView("a", "standard", c.S3Config("b", "p", "http://x"), True),
        c.RemoteView("n", "zero-knowledge", sftp, False),
    ]
    adding.answers |= {c.RemoteList: c.Remotes(views), c.RemoteTest: c.RemoteTested("a", 12.3, {"server": "MinIO"})}
    lines = smpctl("remote", "list").out.splitlines()
    assert lines[1].split() == ["a", "s3://b/p", "at", "http://x", "standard", "kept"]
    assert lines[2].split() == ["n", "sftp://ann@nas:2222/d", "zero-knowledge", "none"]
    assert smpctl("remote", "test", "a").out == "a works, 12 ms, server MinIO\n"
    assert smpctl("remote", "remove", "a").code == 0
    assert adding.seen[-1] == c.RemoteRemove("a")


def test_trust(smpctl: Smpctl, daemon: StandIn, home: Path) -> None:
    """Trust sends the public key of a ring name or file, with prefixes and an end."""
    from smp_proto.sealed.keys import Identity

    ann = Identity.generate("ann").public
    (home / "ann.pub").write_text(ann.text())
    view = c.TrustView("ann", ann.key_id.hex(), ann.fingerprint(), 1.0)
    daemon.answers |= {c.TrustAdd: view, c.TrustRemove: view, c.TrustList: c.Trusted([view])}
    ran = smpctl("trust", "add", "ann", "ann.pub", "--prefix", "lab:in/", "--until", "2030-01-01T00:00+00:00")
    assert (ran.code, ann.fingerprint() in ran.out) == (0, True)
    assert daemon.seen[-1] == c.TrustAdd("ann", ann.text(), ["lab:in/"], 1893456000.0)
    for moment in ("soon", "0001-01-01", "9999-12-31T23:59:59-05:00"):
        assert smpctl("trust", "add", "ann", "ann.pub", "--until", moment).code == 2
    assert smpctl("trust", "add", "nobody").code == 5
    assert ann.fingerprint() in smpctl("trust", "list").out
    assert smpctl("trust", "remove", "ann").code == 0


@pytest.mark.parametrize("url", ["~nobody\0", "s3://b\0/x", "sftp://u@h/%00", "/srv/a\0b"])
def test_a_url_with_a_nul_is_refused(url: str) -> None:
    """No scheme lets one through to a file or a user database."""
    with pytest.raises(UsageError, match="NUL") as caught:
        parse_url(url, RemoteOptions())
    assert caught.value.code == "bad_request"


def test_a_key_that_is_no_ascii_is_damaged() -> None:
    """Text within the markers that base64 cannot be."""
    with pytest.raises(KeyFileError) as caught:
        encrypted("-----BEGIN OPENSSH PRIVATE KEY-----\nä\n-----END OPENSSH PRIVATE KEY-----\n")
    assert caught.value.code == "key_invalid"


@pytest.mark.parametrize("way", ["secret_file", "secret_stdin", "identity_file"])
def test_no_core_has_a_secret_that_was_given(home: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Dumps are off before it is read, whichever way it comes."""
    told: list[str] = []
    for module in ("smpctl.remote_url", "smpctl.session"):
        monkeypatch.setattr(f"{module}.forbid_dumps", lambda: told.append(way))
    (home / "secret").write_text('password = "hush"\n')
    (home / "key").write_text("-----BEGIN PRIVATE KEY-----\n")
    (home / "secret").chmod(0o600)
    with (home / "secret").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        given = {"secret_file": str(home / "secret"), "secret_stdin": True, "identity_file": str(home / "key")}[way]
        with contextlib.suppress(KeyFileError):  # the key is none
            secret_for(SftpConfig("host", "me", ""), RemoteOptions(**{way: given}))
    assert told


@pytest.mark.parametrize(
    "args",
    [
        ["sftp://ann:hunter2@host:99999/x"],
        ["sftp://ann:hunter2@[host/x"],
        ["s3://b", "--endpoint", "https://ann:hunter2@host"],
        ["s3://b", "--endpoint", "ftp://ann:hunter2@host"],
    ],
)
def test_a_password_in_a_url_that_is_none_is_not_repeated(smpctl: Smpctl, args: list[str]) -> None:
    """A log of what went wrong is no place for it."""
    ran = smpctl("remote", "add", "lake", *args, "--no-secret", "--json")
    assert ran.code == 2
    assert "hunter2" not in ran.out + ran.err
