"""Local folders: reading, writing, and never a byte outside of the root."""

import contextlib
import os
import tempfile
from pathlib import Path

import anyio
import pytest
from fetch_link import fetch_in_process, fetch_process
from hypothesis import given, settings
from hypothesis import strategies as st

from smp_proto.control import LocalConfig, S3Secret
from smp_proto.errors import SmpError, UsageError
from smpd.fetch import beneath, local
from smpd.fetch.local import LocalRemote
from smpd.fetch.remote import check_path
from smpd.links.fetching import Look, Looked

DATA = os.urandom(3 << 20)


async def test_what_is_written_is_read(tmp_path: Path) -> None:
    """A write makes the folders it needs, replaces what was there, and comes back by its pin."""
    async with fetch_process(LocalConfig(str(tmp_path))) as link:
        await link.write("a/b/c.bin", b"old")
        info = await link.write("a/b/c.bin", DATA * 4)
        assert 12 << 20 == info.size == link.progress[-1]
        assert len(link.progress) == 2
        assert (tmp_path / "a/b/c.bin").read_bytes() == DATA * 4
        assert DATA[-500:] + DATA[:500] == await link.read("a/b/c.bin", info.pin, len(DATA) - 500, 1000, 3, 17)
        assert info == await link.stat("a/b/c.bin")
        (tmp_path / "a-b").write_bytes(b"1")
        (tmp_path / "a" / ".smp-0123456789abcdef.part").write_bytes(b"unfinished")
        assert [found.path for found in await link.list()] == ["a-b", "a/b/c.bin"]
        assert [found.path for found in await link.list(recursive=False)] == ["a-b", "a/"]
        assert [found.path for found in await link.list("a/", recursive=False)] == ["a/b/"]
        assert [info] == await link.list("a/b/c")
        assert await link.list("none/") == []
        await link.delete("a/b/c.bin")
        await link.delete("a/b/c.bin")
        assert list((tmp_path / "a/b").iterdir()) == []
        assert {"folder": str(tmp_path)} == (await link.probe()).facts


async def test_what_a_killed_process_brought_is_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the name and the sync of its folder: whoever finds the object may delete its source on that."""
    synced: list[str] = []
    sync = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        sync(fd)

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "ours").write_bytes(DATA)
    (tmp_path / "a" / "theirs").write_bytes(DATA[1:] + b"x")
    monkeypatch.setattr(os, "fsync", fsync)
    async with fetch_in_process(LocalConfig(str(tmp_path))) as link:
        with (tmp_path / "a" / "ours").open("rb") as file:
            for name in ("theirs", "ours"):
                look = Look(f"a/{name}", len(DATA))
                found = await link.caller.call(look, Looked, fds=[file.fileno()], timeout=60.0)
                assert (found.ours, synced) == (name == "ours", [str(tmp_path / "a")] * found.ours)


@pytest.mark.parametrize("number", [437, 100_437], ids=["openat2", "none"])
async def test_no_name_leads_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """With openat2 and without it, as below systemd's RestrictSUIDSGID=: folders are passed, links out never."""
    monkeypatch.setattr(beneath, "_SYS_OPENAT2", number)
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "a" / "b" / "in").write_bytes(b"inside")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to("..")
    (root / "down").symlink_to("a/b")
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        for path in ("a/b/in", "./a//b/./in"):
            with open(beneath.open_beneath(folder, path, os.O_RDONLY)) as file:
                assert file.read() == "inside"
        os.close(beneath.open_beneath(folder, ".", os.O_RDONLY | os.O_DIRECTORY))
        os.close(beneath.open_beneath(folder, "a/new", os.O_CREAT | os.O_WRONLY, 0o600))
        for path in ("out", "up/secret", "../secret", "a/../../secret"):
            with pytest.raises(OSError, match="cross-device|symbolic links|Not a directory"):
                beneath.open_beneath(folder, path, os.O_RDONLY)
        if number == 437:
            os.close(beneath.open_beneath(folder, "down/in", os.O_RDONLY))
        else:
            with pytest.raises(OSError, match="symbolic links|Not a directory"):
                beneath.open_beneath(folder, "down/in", os.O_RDONLY)
    finally:
        os.close(folder)
    assert (root / "a" / "new").stat().st_mode & 0o777 == 0o600


async def test_a_change_is_seen(tmp_path: Path) -> None:
    """A file that was replaced, or is shorter than the range, is not read."""
    (tmp_path / "x").write_bytes(b"first")
    async with fetch_in_process(LocalConfig(str(tmp_path))) as link:
        info = await link.stat("x")
        for pin, start, length in ((info.pin, 3, 3), ("stat:5:1", 0, 5), ("stat:4:1", 0, 4), ("stat:5:1", 0, 0)):
            with pytest.raises(SmpError) as caught:
                await link.read("x", pin, start, length)
            assert caught.value.code == "source_changed"


async def test_what_cannot_be_had(tmp_path: Path) -> None:
    """What is missing, is a folder or a FIFO, or has no root, is said so; nothing hangs."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    async with fetch_in_process(LocalConfig(str(tmp_path))) as link:
        for path in ("none", "folder", "fifo", "file/below"):
            for act in (link.stat(path), link.read(path, "stat:1:1", 0, 1)):
                with pytest.raises(SmpError) as caught:
                    await act
                assert (path, "no_such_object") == (path, caught.value.code)
        with pytest.raises(SmpError) as caught:
            await link.stat("x" * 300)
        assert caught.value.code == "bad_name"
        assert [info.path for info in await link.list()] == ["file"]
    async with fetch_in_process(LocalConfig(str(tmp_path / "gone"))) as link:
        for act in (link.stat("x"), link.probe(), link.list(), link.write("x", b"1")):
            with pytest.raises(SmpError) as caught:
                await act
            assert caught.value.code == "no_such_bucket"


async def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """A source that is too short, and a cancelled write, leave the old file and no temporary one."""
    async with fetch_process(LocalConfig(str(tmp_path))) as link:
        await link.write("x", b"old")
        with pytest.raises(SmpError) as caught:
            await link.write("x", b"12345", size=6)
        assert caught.value.code == "bad_request"
        await link.write_and_cancel("x", bytes(40 << 20))
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() in (b"old", bytes(40 << 20))


async def test_links_that_stay_inside_are_followed(tmp_path: Path) -> None:
    """A symbolic link within the root is an object; one that leads out is none, to read, write, list or delete."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "file").write_bytes(b"inside")
    (root / "good").symlink_to("file")
    (root / "out").symlink_to("../outside/secret")
    (root / "absolute").symlink_to(outside / "secret")
    (root / "folder").symlink_to("../outside")
    async with fetch_in_process(LocalConfig(str(root))) as link:
        assert await link.read("good", (await link.stat("good")).pin, 0, 6) == b"inside"
        assert [info.path for info in await link.list()] == ["file", "good"]
        for path in ("out", "absolute", "folder/secret"):
            for act in (link.stat(path), link.read(path, "stat:6:1", 0, 6)):
                with pytest.raises(SmpError) as caught:
                    await act
                assert caught.value.code == "bad_name"
        for act in (link.write("folder/new", b"1"), link.delete("folder/secret")):
            with pytest.raises(SmpError) as caught:
                await act
            assert caught.value.code == "bad_name"
        await link.write("out", b"replaces the link itself")
    assert os.listdir(outside) == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"


NAMES = st.lists(
    st.sampled_from(["..", ".", "", "a", "b", "up", "abs", "loop", "è", "\0", "x" * 300, "a\n"]), min_size=1, max_size=5
).map("/".join)


def tree(base: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in base.rglob("*")}


@settings(max_examples=150, deadline=None)
@given(NAMES | st.text(max_size=20))
def test_no_path_leads_outside(path: str) -> None:
    """Whatever the path, writing, reading and deleting it leave what is outside the root as it was."""

    async def attempt(base: Path) -> None:
        root = base / "root"
        (root / "a").mkdir(parents=True)
        (base / "b").write_bytes(b"outside")
        (base / "a").mkdir()
        (root / "up").symlink_to("..")
        (root / "abs").symlink_to(base)
        (root / "loop").symlink_to("loop")
        outside = {name: data for name, data in tree(base).items() if not name.startswith(str(root))}
        remote = LocalRemote(LocalConfig(str(root)))

        async def progress(done: int) -> None:
            pass

        source = os.open(base / "b", os.O_RDONLY)
        try:
            for act in (
                lambda: remote.write(path, source, 7, progress),
                lambda: remote.stat(path),
                lambda: remote.delete(path),
            ):
                with contextlib.suppress(SmpError):
                    check_path(path)
                    await act()
        finally:
            os.close(source)
        assert outside == {name: data for name, data in tree(base).items() if not name.startswith(str(root))}

    with tempfile.TemporaryDirectory() as folder:
        anyio.run(attempt, Path(folder))


@given(st.text())
def test_checked_paths_have_no_way_up(path: str) -> None:
    """A path that passes is relative, without dots as parts, without NUL, and short."""
    with contextlib.suppress(UsageError):
        check_path(path)
        assert path
        assert not path.startswith("/")
        assert not {".", ".."} & set(path.split("/"))
        assert "\0" not in path


async def test_a_local_remote_has_no_secret(tmp_path: Path) -> None:
    """A secret of another kind is refused."""
    with pytest.raises(SmpError, match="not of this remote's kind"):
        async with fetch_process(LocalConfig(str(tmp_path)), S3Secret("a", "b")):
            pass


async def test_a_name_that_is_not_utf_8_is_told(tmp_path: Path) -> None:
    """It is listed, escaped, and refused when it is asked for; what lies beside it is as ever."""
    (tmp_path / "good").write_bytes(b"1")
    with open(os.fsencode(tmp_path) + b"/bad\xff.smp", "wb") as file:
        file.write(b"22")
    os.mkdir(os.fsencode(tmp_path) + b"/in\xe4")
    with open(os.fsencode(tmp_path) + b"/in\xe4/below", "wb"):
        pass
    async with fetch_process(LocalConfig(str(tmp_path))) as link:
        found = {info.path: info for info in await link.list()}
        assert list(found) == ["bad\\xff.smp", "good", "in\\xe4"]
        assert found["bad\\xff.smp"].size == 2
        for path in ("bad\\xff.smp", "in\\xe4"):
            for act in (link.stat(path), link.read(path, found[path].pin, 0, found[path].size)):
                with pytest.raises(SmpError, match="is not UTF-8") as caught:
                    await act
                assert (caught.value.code, caught.value.retryable) == ("bad_name", False)
        assert await link.read("good", found["good"].pin, 0, 1) == b"1"
        with pytest.raises(SmpError, match="has no object"):  # this one may be written: it is not there
            await link.stat("new\\xff.smp")
        written = await link.write("new\\xff.smp", b"3")
        assert await link.read("new\\xff.smp", written.pin, 0, 1) == b"3"


async def test_very_many_folders_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which ones were is not kept of all of them for ever, and it is nothing to sweep one again."""
    monkeypatch.setattr(local, "_SWEPT_MAX", 3)

    async def progress(done: int) -> None:
        pass

    remote = LocalRemote(LocalConfig(str(tmp_path)))
    with (tmp_path / "source").open("w+b") as source:
        source.write(b"1")
        source.flush()
        for name in [*(f"{number}/x" for number in range(8)), "0/y"]:
            await remote.write(name, source.fileno(), 1, progress)
    assert len(remote._swept) <= 3


async def test_an_empty_part_is_no_folder(tmp_path: Path) -> None:
    """A bucket tells ``a//b`` from ``a/b``: what is to be the one must not become the other."""
    async with fetch_process(LocalConfig(str(tmp_path))) as link:
        await link.write("a/b", b"1")
        for act in (link.write("a//b", b"2"), link.stat("a//b"), link.list("a//"), link.delete("a//b")):
            with pytest.raises(UsageError) as caught:
                await act
            assert caught.value.code == "bad_name"
        assert (tmp_path / "a" / "b").read_bytes() == b"1"
