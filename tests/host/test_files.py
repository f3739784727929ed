"""Folders, the lock, durable files and secrets."""

import os
import shlex
import stat
import subprocess
import sys

import pytest

from smp_proto import durable
from smp_proto.durable import write_file
from smp_proto.errors import ResourceError, StateError, UsageError
from smpd.host.credentials import check_secret, read_secret
from smpd.host.folders import ensure_dir, lock_state
from smpd.host.formats import check_formats


def mode_of(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_ensure_dir_makes_it(tmp_path):
    """A folder is made with exactly the mode asked for, whatever the umask; doing it again changes nothing."""
    path = tmp_path / "deep" / "er" / "state"
    before = os.umask(0o077)
    try:
        ensure_dir(str(path), 0o750)
    finally:
        os.umask(before)
    ensure_dir(str(path), 0o750)
    assert mode_of(path) == 0o750


@pytest.mark.parametrize(
    ("mode", "fits"), [(0o700, True), (0o500, True), (0o750, False), (0o701, False), (0o777, False)]
)
def test_ensure_dir_checks_the_mode(tmp_path, mode, fits):
    """An existing folder may be stricter, never more open."""
    path = tmp_path / "d"
    path.mkdir()
    path.chmod(mode)
    if fits:
        ensure_dir(str(path))
        return
    with pytest.raises(ResourceError, match="gives others rights") as caught:
        ensure_dir(str(path))
    command = shlex.split(caught.value.hint.removeprefix("run: "))
    subprocess.run(command, check=True)
    ensure_dir(str(path))


def test_ensure_dir_refuses_links_and_files(tmp_path):
    """A symbolic link to a good folder, and a file, are refused."""
    (tmp_path / "good").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "good")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(ResourceError, match="is not a folder"):
            ensure_dir(str(tmp_path / name))
    with pytest.raises(ResourceError, match="cannot be made"):
        ensure_dir(str(tmp_path / "file" / "below"))


def test_ensure_dir_refuses_other_owners(tmp_path, monkeypatch):
    """A folder of another user, as anyone may leave one in /tmp, is refused."""
    (tmp_path / "d").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(ResourceError, match="belongs to user"):
        ensure_dir(str(tmp_path / "d"))


HOLD = """
import sys
from smpd.host.folders import lock_state
lock_state(sys.argv[1]); print("held", flush=True); sys.stdin.read()
"""


def test_lock(tmp_path):
    """One process holds the state folder; when it is killed, the next one may."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(StateError, match="another smpd"):
            lock_state(str(tmp_path))
        child.kill()
        child.wait()
    fd = lock_state(str(tmp_path))
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_lock_that_cannot_be_had(tmp_path, kind):
    """What is no file there, or cannot be made, as in a folder that is read-only, is the disk's fault, in a line."""
    lock = tmp_path / "lock"
    lock.mkdir() if kind == "folder" else lock.symlink_to("elsewhere")
    with pytest.raises(ResourceError, match="lock") as caught:
        lock_state(str(tmp_path))
    assert caught.value.code == "disk_failed"


def test_formats_that_cannot_be_read(tmp_path):
    """They are not taken for those of the first version."""
    (tmp_path / "formats.json").mkdir()
    with pytest.raises(ResourceError, match=r"formats\.json") as caught:
        check_formats(str(tmp_path))
    assert caught.value.code == "disk_failed"


def test_write_file(tmp_path):
    """A file is written with its mode, replaced whole, and leaves no temporary behind; path or descriptor alike."""
    write_file(str(tmp_path), "a", b"one", 0o640)
    fd = os.open(tmp_path, os.O_RDONLY)
    write_file(fd, "a", bytearray(b"two"))
    os.close(fd)
    assert (tmp_path / "a").read_bytes() == b"two"
    assert mode_of(tmp_path / "a") == 0o600
    assert os.listdir(tmp_path) == ["a"]


def test_write_file_syncs_content_then_name(tmp_path, monkeypatch):
    """The order is: content synced, renamed, folder synced; only then it returns."""
    steps = []
    real_sync, real_rename = os.fsync, os.rename
    monkeypatch.setattr(
        durable.os,
        "fsync",
        lambda fd: steps.append("dir" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file") or real_sync(fd),
    )
    monkeypatch.setattr(durable.os, "rename", lambda *a, **k: steps.append("rename") or real_rename(*a, **k))
    write_file(str(tmp_path), "a", b"x")
    assert steps == ["file", "rename", "dir"]


@pytest.mark.parametrize("broken", ["fsync", "rename", "fchmod"])
def test_write_file_that_fails_changes_nothing(tmp_path, monkeypatch, broken):
    """When the disk fails, the old content stays, no temporary is left and no descriptor leaks."""
    write_file(str(tmp_path), "a", b"old")
    before = os.listdir("/proc/self/fd")

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, broken, fail)
    with pytest.raises(OSError, match="No space"):
        write_file(str(tmp_path), "a", b"new")
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\0b"])
def test_write_file_takes_one_component(tmp_path, name):
    """A name that leads elsewhere is refused."""
    with pytest.raises(ValueError, match="one component"):
        write_file(str(tmp_path), name, b"x")


def test_write_file_does_not_follow_a_link(tmp_path):
    """A link of that name is replaced, not followed."""
    (tmp_path / "aim").write_text("aim")
    (tmp_path / "a").symlink_to(tmp_path / "aim")
    write_file(str(tmp_path), "a", b"x")
    assert (tmp_path / "aim").read_text() == "aim"


def test_read_secret(tmp_path):
    """A secret of ours arrives as a bytearray, exactly."""
    path = tmp_path / "k"
    path.write_bytes(bytes(range(256)))
    path.chmod(0o600)
    secret = read_secret(str(path))
    assert type(secret) is bytearray
    assert secret == bytes(range(256))


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o777])
def test_secret_open_to_others(tmp_path, mode):
    """A secret that others may read or write is refused, unless systemd guards its folder."""
    path = tmp_path / "k"
    path.write_bytes(b"s")
    path.chmod(mode)
    for use in (read_secret, check_secret):
        with pytest.raises(UsageError, match="open to others"):
            use(str(path))
    assert read_secret(str(path), {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == b"s"
    with pytest.raises(UsageError):
        read_secret(str(path), {"CREDENTIALS_DIRECTORY": str(tmp_path / "other")})


def test_secrets_that_are_none(tmp_path):
    """Nothing, too much, a folder, a pipe and a missing file are refused; none of them hangs."""
    (tmp_path / "empty").touch(mode=0o600)
    (tmp_path / "big").touch(mode=0o600)
    os.truncate(tmp_path / "big", 65_537)
    (tmp_path / "dir").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("empty", "big", "dir", "pipe", "none"):
        with pytest.raises(UsageError, match=f"secret file .*/{name} "):
            read_secret(str(tmp_path / name))
