"""Files that are whole or absent: order, failures, and what a crash leaves."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smp_proto import durable


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed from now on, in order."""
    seen: list[str] = []
    sync, link, rename = os.fsync, os.link, os.rename
    kinds = {stat.S_IFDIR: "folder", stat.S_IFREG: "file"}
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(kinds[stat.S_IFMT(os.fstat(fd).st_mode)]) or sync(fd))
    monkeypatch.setattr(os, "link", lambda *a, **k: seen.append("link") or link(*a, **k))
    monkeypatch.setattr(os, "rename", lambda *a, **k: seen.append("rename") or rename(*a, **k))
    return seen


@pytest.mark.parametrize(("replace", "act"), [(True, "rename"), (False, "link")])
def test_content_then_name_then_folder(folder: int, monkeypatch: pytest.MonkeyPatch, replace: bool, act: str) -> None:
    """A new file is synced, named, and its folder synced, in that order, whether it may replace one or not."""
    seen = steps(monkeypatch)
    with durable.new_file(folder, "a", replace=replace) as fd:
        durable.write_all(fd, b"content")
    assert seen == ["file", act, "folder"]


def test_a_file_is_not_replaced_unasked(folder: int, tmp_path: Path) -> None:
    """The one that is there stays, and no part is left."""
    (tmp_path / "a").write_bytes(b"theirs")
    with pytest.raises(FileExistsError), durable.new_file(folder, "a", replace=False):
        pass
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"theirs")]


def test_a_folder_is_made_durably(folder: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder above is synced, also when the folder is there: a crash may have come between the two."""
    seen = steps(monkeypatch)
    durable.make_folder("d", 0o700, folder)
    durable.make_folder(str(tmp_path / "d"), 0o700)
    assert seen == ["folder", "folder"]


def test_removing_twice_is_durable_twice(folder: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that is gone already may be gone in memory only."""
    (tmp_path / "a").touch()
    seen = steps(monkeypatch)
    durable.remove("a", folder)
    durable.remove("a", folder)
    assert (seen, os.listdir(tmp_path)) == (["folder", "folder"], [])


def test_what_is_reread_comes_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Synced first, since pages that wait to be written are not dropped; then the pages go."""
    order: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: order.append("sync"))
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, at, size, what: order.append(f"drop {at} {size} {what}"))
    with open(tmp_path / "a", "wb") as file:
        durable.reread(file.fileno())
    assert order == ["sync", f"drop 0 0 {os.POSIX_FADV_DONTNEED}"]


MAKER = """
import os, sys
from smp_proto import durable
folder = os.open(sys.argv[1], os.O_RDONLY)
fd, _ = durable.create_part(folder)
os.write(fd, b"half")
stage, _ = durable.create_stage(folder)
os.close(os.open("0", os.O_WRONLY | os.O_CREAT, dir_fd=stage))
print("made", flush=True)
sys.stdin.read()
"""


def test_what_a_crash_leaves_is_swept(folder: int, tmp_path: Path) -> None:
    """Parts stay while their maker lives, and go once it was killed; what is called otherwise, or is a link, stays."""
    aim = tmp_path / "aim"
    aim.mkdir()
    (aim / "0").touch()
    (tmp_path / ".smp-0123456789abcdef.part").symlink_to(aim)
    others = [".smp-x.part", ".smp-0123456789abcdef.parts", "a.part"]
    for name in others:
        (tmp_path / name).touch()
    kept = sorted(["aim", ".smp-0123456789abcdef.part", *others])
    with subprocess.Popen(
        [sys.executable, "-c", MAKER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as maker:
        assert maker.stdout
        assert maker.stdout.readline() == "made\n"
        durable.sweep(folder)
        assert len(os.listdir(tmp_path)) == len(kept) + 2
        maker.send_signal(signal.SIGKILL)
    durable.sweep(folder)
    assert sorted(os.listdir(tmp_path)) == kept
    assert os.listdir(aim) == ["0"]


def test_others_parts_are_not_swept(folder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that several users write to each sweeps their own."""
    fd, part = durable.create_part(folder)
    os.close(fd)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    durable.sweep(folder)
    assert os.listdir(folder) == [part]


@pytest.mark.parametrize("make", [durable.create_part, durable.create_stage])
def test_a_part_that_is_swept_as_it_is_made(folder: int, monkeypatch: pytest.MonkeyPatch, make) -> None:
    """Between making and locking it another process may take it for left behind: then it is made again."""
    real, raced = durable._hold, []

    def hold(fd: int) -> bool:
        if not raced:
            raced.append(fd)
            durable.sweep(folder)
            assert os.listdir(folder) == []
        return real(fd)

    monkeypatch.setattr(durable, "_hold", hold)
    fd, part = make(folder)
    assert os.listdir(folder) == [part]
    durable.sweep(folder)
    assert os.listdir(folder) == [part]
    os.close(fd)
