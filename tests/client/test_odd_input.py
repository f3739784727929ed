"""What nobody should type, and output that cannot be written: one line, a hint, the documented code, no traceback."""

import array
import fcntl
import json
import os
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
from client.conftest import PASSPHRASE, Ran, Smpctl
from client.standin import StandIn, job

from smp_proto import control as c
from smp_proto.aio import Exchange

HUGE = str(1 << 64)
NO_TEXT = os.fsdecode(b"x\xff")


def refused(ran: Ran, code: int) -> None:
    """One line, and one with a hint."""
    assert ran.code == code, ran.err
    message, hint = ran.err.splitlines()
    assert message.startswith("smpctl: ")
    assert hint.startswith("hint: ")


def test_what_is_long_is_not_repeated_whole(smpctl: Smpctl) -> None:
    """A time of thousands of digits."""
    ran = smpctl("events", "--since", "9" * 5000)
    refused(ran, 2)
    assert len(ran.err) < 200


@pytest.mark.parametrize("name", ["k" * 65, "-k", "a/b", ""])
def test_a_name_that_no_key_can_have(smpctl: Smpctl, name: str) -> None:
    """It is told before a passphrase is asked for, and for what it is."""
    ran = smpctl("keys", "new", "--", name)
    refused(ran, 2)
    assert "is no name for a key" in ran.err


@pytest.mark.parametrize(
    "args",
    [
        ["jobs", "-n", HUGE],
        ["events", "--since", HUGE],
        ["traces", "print", "-n", HUGE],
        ["events", "--since", "9" * 5000],
        ["mirror", "folder", "lab:m/", "--to", "x", "--watch", "--every", "9" * 400 + "h"],
        ["run", "digest", "lab:a.smp", "-p", f"width={HUGE}"],
        ["run", "digest", "lab:a.smp", "-p", f"width=-{HUGE}"],
        ["run", "digest", "lab:a.smp", "-p", NO_TEXT + "=1"],
        ["get", f"lab:{NO_TEXT}"],
        ["get", "lab:a", "--key", NO_TEXT],
        ["remote", "test", NO_TEXT],
        ["sync", "add", "s", f"lab:{NO_TEXT}/"],
        ["mirror", NO_TEXT, "lab:m/", "--to", "x"],
        ["seal", "pass", "-o", "", "--to", "x"],
        ["seal", "pass", "-o", "folder/", "--to", "x"],
    ],
)
def test_what_cannot_be_asked(smpctl: Smpctl, daemon: StandIn, home: Path, key_file: Path, args: list[str]) -> None:
    """A number that no message holds, text that is not UTF-8, a file without a name: told before anything is done."""
    (home / NO_TEXT).mkdir()
    if args[0] in ("seal", "mirror"):
        smpctl("keys", "new", "x", "--credential-file", "credential")
        (home / "folder").mkdir()
    if args[0] == "seal":
        args = [*args, "--credential-file", "credential"]
    refused(smpctl(*args), 2)
    plain = smpctl(*args, "--json")
    assert plain.json["error"]["code"] == "bad_request"
    assert daemon.seen == []


def test_a_target_without_a_name(smpctl: Smpctl, home: Path, key_file: Path) -> None:
    """What is to be written is asked for, and not to be made."""
    smpctl("keys", "new", "x", "--credential-file", "credential")
    (home / "a").write_text("a")
    sealed = smpctl("seal", "a", "-o", "a.smp", "--to", "x", "--credential-file", "credential")
    assert sealed.code == 0, sealed.err
    ran = smpctl("open", "a.smp", "-o", "", "--credential-file", "credential")
    assert ran.code == 2
    assert "hint: name a file or a folder" in ran.err


def test_a_long_argument_is_not_repeated_whole(smpctl: Smpctl, daemon: StandIn) -> None:
    """What went wrong with it can be read all the same, on a screen."""
    for args in (["jobs", "-n", "7" * 60_000 + "x"], ["x" * 60_000], ["run", "digest", "lab:a", "-p", "x" * 60_000]):
        ran = smpctl(*args)
        refused(ran, 2)
        assert len(ran.err) < 2000
    assert "is not a valid integer" in smpctl("jobs", "-n", "7" * 60_000 + "x").err


def test_names_that_are_not_text_show_in_every_form(smpctl: Smpctl, home: Path, key_file: Path) -> None:
    """A file whose name is not UTF-8 is named in an error and in a result, for people and as JSON."""
    smpctl("keys", "new", "x", "--credential-file", "credential")
    refused(smpctl("seal", NO_TEXT, "-o", "a", "--to", "x"), 5)
    assert "x\udcff" in smpctl("seal", NO_TEXT, "-o", "a", "--to", "x", "--json").json["error"]["message"]
    seal = ["seal", "pass", "--to", "x", "--credential-file", "credential", "-o"]
    assert smpctl(*seal, NO_TEXT + "1").out.startswith("x\\udcff1: 1 files")
    assert smpctl(*seal, NO_TEXT + "2", "--json").json["file"] == NO_TEXT + "2"


@pytest.mark.parametrize("levels", [1050, 2100])
def test_a_folder_of_very_many_levels(smpctl: Smpctl, home: Path, key_file: Path, levels: int) -> None:
    """What lies too deep for the name of an entry, or for a path, is refused."""
    smpctl("keys", "new", "x", "--credential-file", "credential")
    at = os.open(home, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=at))
    os.close(at)
    try:
        ran = smpctl("seal", "-o", "a", "d", "--to", "x", "--credential-file", "credential")
        assert (ran.code, "hint: " in ran.err, "Traceback" in ran.err) == (2, True, False), ran.err
        assert not (home / "a").exists()
    finally:
        subprocess.run(["rm", "-r", home / "d"], check=True)


@pytest.mark.parametrize(
    "args", [["jobs"], ["jobs", "--json"], ["--help"], ["jobs", "--help"], ["keys", "--json", "x"]]
)
def test_a_reader_that_goes_away(home: Path, daemon: StandIn, args: list[str]) -> None:
    """Who closes the pipe gets no complaint; the code is that of a program that SIGPIPE ended."""
    daemon.answers[c.JobsRequest] = c.Jobs([job(id=f"{number:016}") for number in range(100)])
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "smpctl", *args], stdout=writer, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("args", [["jobs"], ["jobs", "--json"], ["--help"], ["status"], ["job", "show", "x", "--json"]])
@pytest.mark.parametrize("where", [">/dev/full", ">&-", "<&- >/dev/full", "<&- >&-"])
def test_output_that_cannot_be_written(home: Path, daemon: StandIn, args: list[str], where: str) -> None:
    """A full disk behind standard output, or none at all, is said; in the latter case nothing is done."""
    script = f'exec "$@" {where}'
    done = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-m", "smpctl", *args], stderr=subprocess.PIPE, text=True
    )
    refused(Ran(done.returncode, "", done.stderr), 2 if ">&-" in where else 8)
    assert "standard output" in done.stderr
    assert (daemon.seen == []) == (">&-" in where or "--help" in args)


@pytest.mark.parametrize("full", [True, False])
def test_remarks_that_cannot_be_written_stop_nothing(home: Path, key_file: Path, smpctl: Smpctl, full: bool) -> None:
    """On a full disk, or to a reader that went: what was asked for is done, and the code says how it went."""
    smpctl("keys", "new", "x", "--credential-file", "credential")
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as disk:

        def code(*args: str) -> int:
            command = [sys.executable, "-m", "smpctl", *args]
            return subprocess.run(
                command, cwd=home, stdout=subprocess.DEVNULL, stderr=disk if full else writer
            ).returncode

        assert code("seal", "pass", "-o", "a.smp", "--to", "x", "--credential-file", "credential") == 0
        assert (home / "a.smp").exists()
        assert code("open", "a.smp", "-o", "out", "--credential-file", "credential") == 0
        assert code("keys", "export", "x") == 0
        assert code("keys", "export", "nobody") == 5
        assert code("nonsense") == 2
    os.close(writer)


@pytest.mark.parametrize("encoding", ["ascii", "ascii:surrogateescape", "latin-1", "utf-8"])
def test_json_is_utf_8(home: Path, daemon: StandIn, encoding: str) -> None:
    """Whatever a terminal would be written to in: a program reads it."""
    source = "lab:ü-中-\U0001f600.smp"
    daemon.answers[c.JobsRequest] = c.Jobs([job(source=source)])
    done = subprocess.run(
        [sys.executable, "-m", "smpctl", "jobs", "--json"],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        stdout=subprocess.PIPE,
    )
    assert (done.returncode, json.loads(done.stdout.decode())["source"]) == (0, source)


def test_no_standard_input_or_error(home: Path, daemon: StandIn) -> None:
    """Where these are closed, nothing of ours takes their place, and the verb works."""
    script = 'exec "$@" <&- 2>&-'
    done = subprocess.run(["sh", "-c", script, "sh", sys.executable, "-m", "smpctl", "status"], stdout=subprocess.PIPE)
    assert (done.returncode, b"9.9.9" in done.stdout) == (0, True)
    done = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-m", "smpctl", "keys", "import", "-", "--name", "a"]
    )
    assert done.returncode == 12


def test_keys_and_secrets_out_of_pipes(smpctl: Smpctl, home: Path) -> None:
    """A key, a recipient and a passphrase may be pipes, which are read once, and come in pieces."""
    (home / "first").write_text(smpctl("keys", "new", "x", "--passphrase-file", "pass").out)
    (home / "x.pub").write_text(smpctl("keys", "export", "x").out)
    halves = PASSPHRASE.encode()[:3], PASSPHRASE.encode()[3:]

    def passphrase(path: Path) -> None:
        with path.open("wb", buffering=0) as file:
            for half in halves:
                file.write(half)
                drained(file.fileno())

    def piped(*args: str, pipe: Path, write: object) -> Ran:
        os.mkfifo(pipe)
        thread = threading.Thread(target=write, args=(pipe,), daemon=True)  # type: ignore[arg-type]
        thread.start()
        ran = smpctl(*args)
        thread.join(10)
        return ran

    def public(path: Path) -> None:
        path.write_bytes((home / "x.pub").read_bytes())

    ran = piped("keys", "import", "p1", "--name", "y", pipe=home / "p1", write=public)
    assert ran.code == 0, ran.err
    seal = ["seal", "first", "-o", "a", "--to"]
    ran = piped(*seal, "p2", "--from", "x", "--passphrase-file", "pass", pipe=home / "p2", write=public)
    assert ran.code == 0, ran.err
    ran = piped("open", "a", "-o", "out", "--as", "x", "--passphrase-file", "p3", pipe=home / "p3", write=passphrase)
    assert ran.code == 0, ran.err


def drained(fd: int) -> None:
    """Wait until the reader of a pipe has taken what was written."""
    left = array.array("i", [1])
    while left[0]:
        fcntl.ioctl(fd, termios.FIONREAD, left)


def test_a_folder_of_no_name_is_not_the_one_at_hand(
    smpctl: Smpctl, daemon: StandIn, home: Path, key_file: Path
) -> None:
    """An empty variable has nothing mirrored."""
    smpctl("keys", "new", "x", "--credential-file", "credential")
    refused(smpctl("mirror", "", "lab:m/", "--to", "x", "--delete"), 5)
    assert daemon.seen == []


def test_all_of_the_records(smpctl: Smpctl, daemon: StandIn) -> None:
    """Of any number that is more than there are."""

    async def lines(_request: c.AuditRead, exchange: Exchange) -> c.AuditProof:
        await exchange.send(c.AuditLines([b'{"seq":0}\n']))
        return c.AuditProof([], "", b"")

    daemon.answers[c.AuditRead] = lines
    ran = smpctl("audit", "tail", "-n", HUGE, "--json")
    assert (ran.code, ran.json) == (0, {"seq": 0}), ran.err


@pytest.mark.parametrize("args", [["keys", "list"], ["keys", "new", "y"], ["mirror", ".", "lab:m/", "--to", "x.pub"]])
def test_a_place_of_ours_that_is_none(
    smpctl: Smpctl, daemon: StandIn, home: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    """Where a file is in the way of keys, or of what is remembered, that is said."""
    smpctl("keys", "new", "x", "--credential-file", "credential")
    (home / "x.pub").write_text(smpctl("keys", "export", "x").out)
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(home / "pass"))
    refused(smpctl(*args, *(["--credential-file", "credential"] if args[1] == "new" else [])), 8)


def test_a_fault_of_our_own_is_one(smpctl: Smpctl, daemon: StandIn) -> None:
    """What nobody foresaw ends with the code for that, and as an object in JSON; what there is to report is shown."""
    daemon.answers[c.JobsRequest] = c.Jobs([job(created=float("1e300"))])
    ran = smpctl("jobs", "--json")
    assert ran.code == 0
    daemon.answers[c.JobRequest] = job(created=1e300)
    ran = smpctl("job", "show", "0198c0de")
    assert ran.code == 70, ran
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("hint: ")


@pytest.mark.parametrize(
    "args",
    [
        ["trust", "add", "x", "x.pub", "--until", ""],
        ["trust", "add", "x", ""],
        ["audit", "verify", "--checkpoint", ""],
        ["audit", "verify", "--key", "", "--dir", ""],
        ["get", "lab:a", "--export", ""],
        ["run", "digest", "lab:a", "--to", ""],
        ["vault", "ls", "--job", ""],
        ["remote", "add", "r", "s3://b", "--no-secret", "--endpoint", ""],
        ["inspect", "x.pub", "--as", ""],
        ["seal", "pass", "-o", "x.smp", "--to", "x", "--place", ""],
        ["processors", ""],
        ["status", "--socket", ""],
        ["--socket", "", "status"],
    ],
)
def test_what_is_empty_is_not_left_out(smpctl: Smpctl, daemon: StandIn, home: Path, args: list[str]) -> None:
    """A variable that is not set must not give trust for good, skip a checkpoint, or keep an export in the vault."""
    refused(smpctl(*args), 2)
    assert smpctl(*args, "--json").json["error"]["code"] == "bad_request"
    assert daemon.seen == []


@pytest.mark.parametrize("until", ["1970-01-01T00:00+00:00", "0001-01-01", "9999-12-31T23:59:59"])
def test_an_end_that_no_clock_tells(
    smpctl: Smpctl, daemon: StandIn, home: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch, until: str
) -> None:
    """The beginning of 1970 is no way to say "for good"; what is beyond all dates somewhere is told as that."""
    monkeypatch.setenv("TZ", "America/New_York")
    smpctl("keys", "new", "x", "--credential-file", "credential")
    refused(smpctl("trust", "add", "x", "--until", until), 2)
    assert daemon.seen == []


def test_what_unlocks_a_key_is_named(smpctl: Smpctl, home: Path) -> None:
    """A file that holds too little is told by its name, and with what to do."""
    (home / "short").write_bytes(b"x" * 31)
    (home / "blank").write_text("\npassphrase\n")
    for option, name in (("--credential-file", "short"), ("--passphrase-file", "blank")):
        ran = smpctl("keys", "new", "x", option, name)
        refused(ran, 2)
        assert f" {name} " in ran.err


def test_a_noun_alone_in_json(smpctl: Smpctl, home: Path) -> None:
    """Whoever asked for JSON gets the error as that, others the verbs; choices are told on one line."""
    ran = smpctl("--json", "keys")
    refused(ran, 2)
    assert ran.json["error"]["hint"] == "see: smpctl keys --help"
    assert "Commands:" in smpctl("keys").err
    refused(ran := smpctl("completion"), 2)
    assert "Choose from: bash, zsh, fish" in ran.err


def test_what_is_no_number_of_seconds(smpctl: Smpctl, daemon: StandIn) -> None:
    """NaN is in no range, and no range says so."""
    refused(smpctl("top", "--interval", "nan"), 2)
    assert daemon.seen == []
