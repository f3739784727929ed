"""The configuration: defaults, files, overrides, refusals, and that each key is documented."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_proto.errors import UsageError
from smpd.__main__ import main
from smpd.config import MIB, SECTIONS, Permission, known_keys
from smpd.configuring import check_config, load_config
from smpd.host.places import default_file, default_paths

ROOT = Path(__file__).parents[2]
PERSON = {"HOME": "/home/ada"}


def write(folder: Path, text: str) -> str:
    path = folder / "config.toml"
    path.write_text(text)
    return str(path)


def refusal(folder: Path, text: str = "", environ: dict[str, str] | None = None) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_config(write(folder, text), PERSON | (environ or {}))
    assert caught.value.code == "bad_config"
    return caught.value


@pytest.fixture
def as_person(monkeypatch):
    """Pretend to be an ordinary user."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.fixture
def as_root(monkeypatch):
    """Pretend to be root."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_defaults_of_a_person(as_person):
    """Without a file everything has a default, below the person's XDG folders."""
    environ = PERSON | {"XDG_RUNTIME_DIR": "/run/user/1000", "XDG_STATE_HOME": "/data/state"}
    config = load_config(None, environ)
    assert config.paths.state == "/data/state/smpd"
    assert config.paths.socket == "/run/user/1000/smpd/smpd.sock"
    assert config.fetch.slot_bytes == 8 * MIB
    assert len(config.compute.processors) == 6
    assert (config.jobs.attempts, config.jobs.backoff_base_s, config.jobs.backoff_max_s) == (4, 2.0, 60.0)


def test_fallbacks_of_a_person(as_person):
    """Without XDG variables: below HOME, and a runtime folder of one's own in /tmp."""
    assert default_paths(PERSON) == {"state": "/home/ada/.local/state/smpd", "runtime": "/tmp/smpd-1000"}
    assert default_file(PERSON) == "/home/ada/.config/smpd/config.toml"
    assert default_file(PERSON | {"XDG_CONFIG_HOME": "/c"}) == "/c/smpd/config.toml"


def test_defaults_of_the_system(as_root):
    """Root uses the system's folders, whatever XDG says."""
    assert default_paths(PERSON | {"XDG_RUNTIME_DIR": "/x"}) == {"state": "/var/lib/smpd", "runtime": "/run/smpd"}
    assert default_file(PERSON) == "/etc/smpd/config.toml"


def test_defaults_under_systemd(as_person, tmp_path):
    """systemd's folders win, the first of a list; its credential unlocks the keys unless another way is set."""
    (tmp_path / "smpd.key").write_bytes(b"k")
    environ = PERSON | {
        "STATE_DIRECTORY": "/var/lib/smpd:/var/lib/other",
        "RUNTIME_DIRECTORY": "/run/smpd",
        "CONFIGURATION_DIRECTORY": "/nowhere/smpd",
        "CREDENTIALS_DIRECTORY": str(tmp_path),
    }
    config = load_config(None, environ)
    assert (config.paths.state, config.paths.socket) == ("/var/lib/smpd", "/run/smpd/smpd.sock")
    assert config.keys.credential_file == str(tmp_path / "smpd.key")
    assert default_file(environ) == "/nowhere/smpd/config.toml"
    assert default_file({"STATE_DIRECTORY": "/s"}) == "/etc/smpd/config.toml"


def test_overrides_win_and_origins_are_told(tmp_path):
    """Environment over file over default; `check_config` prints each value and its origin, as TOML."""
    path = write(tmp_path, '[fetch]\nslots = 4\nprocesses = 3\n[paths]\nruntime = "/r"\n')
    config = load_config(path, PERSON | {"SMPD_FETCH_SLOTS": "8", "SMPD_COMPUTE_PROCESSORS": "digest, x.y"})
    assert (config.fetch.slots, config.fetch.processes, config.paths.socket) == (8, 3, "/r/smpd.sock")
    assert config.compute.processors == ("digest", "x.y")
    text = check_config(config)
    assert "slots = 8  # SMPD_FETCH_SLOTS" in text
    assert f"processes = 3  # {path}" in text
    assert "attempts = 4  # default" in text
    assert "state = " in text
    shown = tomllib.loads(text)
    assert {f"{section}.{key}" for section, keys in shown.items() for key in keys} == set(known_keys())


def test_what_is_shown_can_be_loaded(tmp_path):
    """The text of `check_config` is a configuration that gives the same values."""
    config = load_config(write(tmp_path, ""), PERSON | {"SMPD_LOG_LEVEL": "debug"})
    again = load_config(write(tmp_path, check_config(config)), PERSON)
    assert msgspec.structs.replace(again, origins={}) == msgspec.structs.replace(config, origins={})


@pytest.mark.parametrize(
    ("text", "environ", "message", "hint"),
    [
        ("[fetch]\nslotz = 4\n", {}, "sets fetch.slotz", "did you mean fetch.slots?"),
        ("[fetsh]\nslots = 4\n", {}, "section [fetsh]", "did you mean fetch?"),
        ("[zzz]\n", {}, "section [zzz]", "docs/reference/configuration.md"),
        ("fetch = 4\n", {}, "sets fetch to a value", "write [fetch]"),
        ("", {"SMPD_FETCH_SLOTZ": "4"}, "SMPD_FETCH_SLOTZ", "did you mean SMPD_FETCH_SLOTS?"),
        ("", {"SMPD_FETCH_SLOTS": "many"}, "fetch.slots in SMPD_FETCH_SLOTS: Expected `int`", ""),
        ('[fetch]\nslots = "4"\n', {}, "fetch.slots in ", ""),
        ("[fetch]\nslots = 1\n", {}, "Expected `int` >= 2", ""),
        ("[fetch]\nslot_bytes = 1_500_000\n", {}, "multiple of 1048576", ""),
        ("[fetch]\nslot_bytes = 0\n", {}, "fetch.slot_bytes", ""),
        ("[fetch]\nidle_s = nan\n", {}, "fetch.idle_s", ""),
        ("[fetch]\nidle_s = inf\n", {}, "fetch.idle_s", ""),
        ("[jobs]\nattempts = 0\n", {}, "jobs.attempts", ""),
        ('[log]\nlevel = "loud"\n', {}, "log.level in ", 'write "debug" or "info" or "warning" or "error"'),
        ('[fetch]\nprocesses = "many"\n', {}, "fetch.processes in ", 'write "auto"'),
        ("[limits.lake]\nbytes_per_s = -1\n", {}, "limits.lake.bytes_per_s in ", ""),
        ('[permissions.x]\nusers = ["a"]\nread = ["A"]\n', {}, "permissions.x.read[0] in ", ""),
        ('[notify]\ncommand = ["tell"]\n', {}, "notify.command", "absolute path"),
        ('[notify]\ncommand = ["/bin/tell", ""]\n', {}, "notify.command", ""),
        ('[notify]\nurl = "http://hooks.example.org/hunter2"\n', {}, "notify.url would send over http", "plain_http"),
        ('[notify]\nurl = "https://u:hunter2@h.example/"\n', {}, "notify.url is not", "notify.header_file"),
        ('[notify]\nurl = "ftp://h.example/"\n', {}, "notify.url is not", "https://HOST/PATH"),
        ('[notify]\nurl = "https://h.example:70000/"\n', {}, "notify.url has the port 70000", "65535"),
        ('[notify]\nheader_file = "/x"\n', {}, "notify.url is not", "set notify.url"),
        ('[notify]\nurl = "https://h/"\nheader_file = "x"\n', {}, "notify.header_file is 'x'", "absolute path"),
        ('[notify]\nurl = "https://h/"\nheader_file = "/no/file"\n', {}, "/no/file cannot be read", ""),
        ("[jobs]\nbackoff_base_s = 90\n", {}, "jobs.backoff_max_s is less than jobs.backoff_base_s", ""),
        ("[control]\nconnections_user_max = 100\n", {}, "control.connections_user_max is more", ""),
        ('[control]\nsocket_mode = "0666"\n', {}, "control.socket_mode", ""),
        ('[control]\nadmin_group = "a b"\n', {}, "control.admin_group", ""),
        ('[compute]\nsandbox = "maybe"\n', {}, "compute.sandbox", ""),
        ('[compute]\ndevice = "cuda:x"\n', {}, "compute.device", ""),
        ('[compute]\nprocessors = ["a", "a"]\n', {}, "compute.processors names a processor twice", ""),
        ('[log]\nlevel = "loud"\n', {}, "log.level", ""),
        ('[paths]\nstate = "relative"\n', {}, "paths.state is 'relative'", "absolute"),
        ('[paths]\nstate = "/a\\u0000b"\n', {}, "paths.state", "absolute"),
        ('[paths]\nsocket = ""\n', {}, "paths.socket is ''", "absolute"),
        ("", {"SMPD_PATHS_STATE": ""}, "paths.state is ''", "absolute"),
        (f'[paths]\nsocket = "/{"x" * 107}"\n', {}, "paths.socket is longer", "shorter"),
        ('[keys]\npassphrase = "hunter2"\n', {}, "keys.passphrase,", "did you mean keys.passphrase_file?"),
        ('[keys]\npassphrase_file = "/no/such/file"\n', {}, "/no/such/file cannot be read", ""),
        ("[fetch\n", {}, "is no TOML", ""),
        (f"[fetch]\nslots = {'9' * 5000}\n", {}, "is no TOML", ""),
        (f"[fetch]\nslots = {'[' * 5000}\n", {}, "is no TOML", ""),
        ("\ufffd[", {}, "is no TOML", ""),
    ],
)
def test_refusals(tmp_path, text, environ, message, hint):
    """Each mistake is refused with the key and place named."""
    error = refusal(tmp_path, text, environ)
    assert message in error.message
    assert hint in error.hint
    assert "hunter2" not in error.message + error.hint


def test_a_file_that_is_named_must_exist(tmp_path):
    """--config with a missing or unreadable file is refused; a missing default file is fine."""
    with pytest.raises(UsageError, match="does not exist"):
        load_config(str(tmp_path / "none"), PERSON)
    with pytest.raises(UsageError, match="cannot be read"):
        load_config(str(tmp_path), PERSON)
    assert (
        load_config(None, {"XDG_CONFIG_HOME": str(tmp_path), "CONFIGURATION_DIRECTORY": str(tmp_path)}).fetch.slots
        == 16
    )


def test_secret_files(tmp_path):
    """A secret file open to others is refused with the command that mends it; two ways to unlock are refused."""
    secret = tmp_path / "secret"
    secret.write_text("s")
    text = f'[keys]\npassphrase_file = "{secret}"\n'
    for mode in (0o644, 0o640, 0o604):
        secret.chmod(mode)
        assert "chmod 0600" in refusal(tmp_path, text).hint
    secret.chmod(0o600)
    path = write(tmp_path, text)
    assert load_config(path, PERSON).keys.passphrase_file == str(secret)
    assert "both set" in refusal(tmp_path, text + f'credential_file = "{secret}"\n').message


@given(st.sampled_from(sorted(known_keys())), st.text("0123456789abc.-e_,[ ", max_size=12))
def test_any_override_is_taken_or_refused(key, text):
    """Whatever an override says, the answer is a configuration or `bad_config`."""
    try:
        load_config(
            None, {"HOME": "/h", "CONFIGURATION_DIRECTORY": "/none", f"SMPD_{key.replace('.', '_').upper()}": text}
        )
    except UsageError as error:
        assert error.code == "bad_config"


def test_each_key_is_documented():
    """docs/reference/configuration.md has a row for each key, with its default, and none besides."""
    text = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \|\s*`?([^|`]*?)`?\s*\|", text, re.MULTILINE))
    assert sorted(rows) == sorted(known_keys())
    for name, kind in SECTIONS.items():
        for field in msgspec.structs.fields(kind):
            default = field.default
            if default != "":
                shown = " ".join(default) if isinstance(default, tuple) else str(default)
                shown = shown.lower() if isinstance(default, bool) else shown
                assert rows[f"{name}.{field.name}"].strip() == shown, field.name


def test_no_key_can_hold_a_secret():
    """Keys that speak of secrets name files."""
    for key in known_keys():
        if re.search("pass|secret|credential|token", key):
            assert key.endswith("_file")


def test_the_clients_variable_is_left_alone(tmp_path):
    """SMPD_SOCKET tells smpctl where to look; a person who has it set can still start a daemon."""
    plain = load_config(write(tmp_path, ""), PERSON)
    assert load_config(write(tmp_path, ""), PERSON | {"SMPD_SOCKET": "/elsewhere"}) == plain


PERMISSIONS = """
[permissions.radiology]
groups = ["radiology"]
users = ["müller", "DOM\\\\anna b"]
read = ["pacs", "lake-*"]
run = ["image.*"]
[permissions.all]
groups = ["it"]
read = ["*"]
jobs = "all"
"""


def test_permissions_are_read_and_shown(tmp_path):
    """Tables come as they are written, what is left out is nothing, and what is shown can be loaded."""
    config = load_config(write(tmp_path, PERMISSIONS), PERSON)
    table = config.permissions["radiology"]
    assert (table.users, table.read, table.write, table.jobs) == (
        ("müller", "DOM\\anna b"),
        ("pacs", "lake-*"),
        (),
        "own",
    )
    assert config.permissions["all"].jobs == "all"
    again = load_config(write(tmp_path, check_config(config)), PERSON)
    assert again.permissions == config.permissions
    assert load_config(write(tmp_path, ""), PERSON).permissions == {}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[permissions]\nread = ['a']\n", "sets permissions.read to a value", "[permissions.NAME]"),
        ("[permissions.x]\nread = ['a']\n", "permissions.x in", "write groups"),
        ("[permissions.x]\ngroups = ['g']\nraed = ['a']\n", "permissions.x.raed", "did you mean read?"),
        ("[permissions.x]\ngroups = ['g']\nread = 'a'\n", "permissions.x.read in", ""),
        ("[permissions.x]\ngroups = ['g']\nread = ['a:b']\n", "permissions.x.read[0] in", ""),
        ("[permissions.x]\ngroups = ['g']\nread = ['']\n", "permissions.x.read[0] in", ""),
        ("[permissions.x]\ngroups = ['g']\nread = ['*a']\n", "permissions.x.read[0] in", ""),
        ("[permissions.x]\ngroups = ['g']\njobs = 'some'\n", "permissions.x.jobs in", ""),
        ("[permissions.'x y']\ngroups = ['g']\n", "permissions.x y", ""),
        ("[permission.x]\ngroups = ['g']\n", "section [permission]", "did you mean permissions?"),
    ],
)
def test_wrong_permissions_are_refused(tmp_path, text, message, hint):
    """A mistake in a table is named, and never read as leave to do something."""
    error = refusal(tmp_path, text)
    assert message in error.message
    assert hint in error.hint


def test_each_permission_is_documented():
    """docs/reference/configuration.md names every key of a table."""
    text = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    part = text[text.index("## `[permissions.NAME]`") : text.index("## `[fetch]`")]
    for field in msgspec.structs.fields(Permission):
        assert re.search(rf"^\|.*`{field.name}`.*\|$", part, re.MULTILINE), field.name
        assert re.search(rf"^{field.name} = ", part, re.MULTILINE), field.name
    example = tomllib.loads(part.split("```toml\n")[1].split("```")[0])
    assert msgspec.convert(example["permissions"]["radiology"], Permission).read == ("pacs",)


def test_accounts_that_do_not_exist_are_named(tmp_path, capsys, monkeypatch):
    """By check-config: of tables, and of roles where somebody wrote the group."""
    text = PERMISSIONS + '[control]\nadmin_group = "no-such-admins"\n'
    monkeypatch.setattr("sys.argv", ["smpd", "--config", write(tmp_path, text), "check-config"])
    for name in [name for name in os.environ if name.startswith("SMPD_")]:
        monkeypatch.delenv(name)
    main()
    shown = capsys.readouterr().out
    assert "# control.admin_group names the group no-such-admins, which does not exist here" in shown
    assert "# permissions.radiology names the user müller, which does not exist here" in shown
    assert "operator_group names" not in shown
    assert tomllib.loads(shown)["permissions"]["radiology"]["run"] == ["image.*"]


def test_who_reads_what_it_checked_may_have_enough(tmp_path: Path) -> None:
    """As with any program that prints; no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "smpd", "--config", write(tmp_path, ""), "check-config"]
    ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, b"")


@pytest.mark.parametrize(("where", "code"), [(">/dev/full", 8), (">&-", 2)])
def test_what_cannot_be_shown_is_told(tmp_path: Path, where: str, code: int) -> None:
    """A full disk behind standard output, or none at all: one line and a hint, as of smpctl."""
    command = [sys.executable, "-m", "smpd", "--config", write(tmp_path, ""), "check-config"]
    ran = subprocess.run(["sh", "-c", f'exec "$@" {where}', "sh", *command], stderr=subprocess.PIPE, text=True)
    message, hint = ran.stderr.splitlines()
    assert (ran.returncode, message[:21], hint[:6]) == (code, "smpd: standard output", "hint: ")
