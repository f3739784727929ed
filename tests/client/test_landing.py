"""R15: whatever the names of entries are and whatever lies in the folder, nothing is written outside it."""

import errno
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from client.standin import ITEM_ID, StandIn, entry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smp_proto import control as c
from smp_proto import durable
from smp_proto.errors import IntegrityError, ResourceError, SmpError, StateError, UsageError
from smpctl import Client
from smpctl.landing import Landing

HOSTILE = [
    "..", "../x", "a/../../x", "/etc/x", "//x", "a//b", "a/", "", ".", "./x", "a/./b", "x\0y", "a\nb", "a\x1b[2Jb",
    "..\\x", "C:\\x", "\ud800", "\u2028x", "x" * 256, "d/" * 600 + "x", "n" * 4096, "a/..", "../", "\x7f",
    ".smp-0123456789abcdef.part", ".smp-0123456789abcdef.part/x",  # what the next landing would sweep
]  # fmt: skip


def land(dest: Path, contents: dict[str, bytes], *, overwrite: bool = False) -> None:
    """All of it, as the clients do."""
    with Landing(dest, overwrite=overwrite) as landing:
        landing.plan(contents)
        for name, data in contents.items():
            fd = landing.create(name)
            os.write(fd, data)
            os.close(fd)
        landing.commit({name: len(data) for name, data in contents.items()})


def tree(folder: Path) -> list[str]:
    """Everything below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_names_are_refused(tmp_path: Path, name: str) -> None:
    """A name that leads elsewhere, or that a terminal would obey, is refused before anything is made."""
    with pytest.raises(UsageError) as caught:
        land(tmp_path / "out", {"good": b"x", name: b"evil"})
    assert caught.value.code == "bad_name"
    assert caught.value.message.isprintable()
    assert tree(tmp_path) == []


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\ud800" not in name], ids=ascii)
def test_hostile_names_from_a_daemon(daemon: StandIn, tmp_path: Path, name: str) -> None:
    """The same by way of the client, when a daemon's list holds them; it is not even asked to open the item."""
    daemon.answers[c.VaultEntries] = c.Entries([entry(name, 4)])
    (tmp_path / "in").mkdir()
    with Client(daemon.path) as client, pytest.raises(UsageError):
        client.vault_open(ITEM_ID, tmp_path / "in/out")
    assert tree(tmp_path / "in") == []
    assert not any(isinstance(each, c.VaultOpen) for each in daemon.seen)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(st.sampled_from("./\\aA\0é~ \u0301ß"), max_size=12) | st.sampled_from(HOSTILE), max_size=4))
def test_any_names_stay_inside(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    """Names of awkward parts land below the folder, all of them, or none does."""
    root = tmp_path_factory.mktemp("r")
    (root / "out").mkdir()
    contents = dict.fromkeys(names, b"x")
    try:
        land(root / "out", contents)
    except UsageError:
        assert tree(root) == ["out"]
    else:
        files = [path for path in (root / "out").rglob("*") if path.is_file()]
        assert {str(path.relative_to(root / "out")) for path in files} == set(contents)
        assert os.listdir(root) == ["out"]


@pytest.mark.parametrize(
    "names",
    [("a", "A"), ("straße", "STRASSE"), ("\u00e9", "e\u0301"), ("a", "a/b"), ("A/x", "a/y/z", "a/Y")],
    ids=ascii,
)
def test_names_that_one_file_system_takes_for_one(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Names that differ only by case or normal form, or where one is the other's folder, are refused together."""
    with pytest.raises(UsageError):
        land(tmp_path / "out", dict.fromkeys(names, b""))
    assert tree(tmp_path) == []


def test_unicode_names_are_kept_as_they_are(tmp_path: Path) -> None:
    """A good name of any script lands under exactly that name, in either normal form."""
    names = ["Ärzte/スキャン.dcm", unicodedata.normalize("NFD", "é") + "/x", "-rf", ".hidden", "a b", "~", "$HOME", "*"]
    land(tmp_path / "out", dict.fromkeys(names, b"x"))
    found = {str(each.relative_to(tmp_path / "out")) for each in (tmp_path / "out").rglob("*") if each.is_file()}
    assert found == set(names)


PLANTS = ["link to a folder", "dangling link", "link to a file", "link in the middle"]


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_planted_links_are_not_followed(tmp_path: Path, plant: str, overwrite: bool) -> None:
    """A link where a folder or a file of ours should be leads nowhere: what it points to stays as it was."""
    outside, dest = tmp_path / "outside", tmp_path / "dest"
    outside.mkdir()
    dest.mkdir()
    (outside / "victim").write_text("untouched")
    name = {"link to a folder": "d/new", "link in the middle": "a/d/new"}.get(plant, "x")
    if plant == "link to a folder":
        (dest / "d").symlink_to(outside)
    elif plant == "link in the middle":
        (dest / "a").mkdir()
        (dest / "a/d").symlink_to("../../outside")
    else:
        (dest / "x").symlink_to(outside / ("victim" if plant == "link to a file" else "nothing"))
    try:
        land(dest, {name: b"evil"}, overwrite=overwrite)
    except SmpError as error:
        assert error.code == "exists"
    else:  # the link itself was replaced
        assert overwrite
        assert (dest / "x").is_file()
        assert not (dest / "x").is_symlink()
    assert tree(outside) == ["victim"]
    assert (outside / "victim").read_text() == "untouched"


@pytest.mark.parametrize("plant", ["folder", "full folder", "file above", "pipe"])
def test_what_cannot_be_replaced_is_seen_before_anything_is(tmp_path: Path, plant: str) -> None:
    """Where a folder or a pipe is in the way, or a file where a folder has to be, nothing is replaced."""
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "a").write_text("old")
    last = "z/x" if plant == "file above" else "z"
    if plant == "file above":
        (dest / "z").write_text("old")
    elif plant == "pipe":
        os.mkfifo(dest / "z")
    else:
        (dest / "z").mkdir()
    if plant == "full folder":
        (dest / "z/theirs").write_text("old")
    before = tree(dest)
    with pytest.raises(StateError) as caught:
        land(dest, {"a": b"new", "b": b"new", last: b"new"}, overwrite=True)
    assert (caught.value.code, bool(caught.value.hint)) == ("exists", True)
    assert (dest / "a").read_text() == "old"
    assert tree(dest) == before


def test_files_are_replaced_when_asked(tmp_path: Path) -> None:
    """A regular file of the name is, and what has another name stays."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_text("old")
    (tmp_path / "d/b").write_text("old")
    land(tmp_path, {"d/a": b"new"}, overwrite=True)
    assert [(tmp_path / "d" / name).read_text() for name in "ab"] == ["new", "old"]


def test_a_link_planted_while_the_daemon_writes(tmp_path: Path) -> None:
    """A folder swapped for a link between create and commit is not followed either."""
    outside = tmp_path / "outside"
    outside.mkdir()
    with pytest.raises(StateError), Landing(tmp_path / "dest") as landing:
        landing.plan(["d/x"])
        os.close(landing.create("d/x"))
        os.rename(tmp_path / "dest/d", tmp_path / "dest/moved")
        (tmp_path / "dest/d").symlink_to(outside)
        landing.commit({"d/x": 0})
    assert tree(outside) == []


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    """The name taken between plan and commit is not taken away from its owner."""
    with pytest.raises(StateError), Landing(tmp_path / "dest") as landing:
        landing.plan(["x"])
        os.close(landing.create("x"))
        (tmp_path / "dest/x").write_text("theirs")
        landing.commit({"x": 0})
    assert tree(tmp_path / "dest") == ["x"]
    assert (tmp_path / "dest/x").read_text() == "theirs"


def test_without_a_commit_nothing_stays(tmp_path: Path) -> None:
    """Files, the folders made for them and the destination itself go; what was there before stays."""
    (tmp_path / "dest/old").mkdir(parents=True)
    with pytest.raises(IntegrityError), Landing(tmp_path / "dest") as landing:
        for name in ("old/a", "new/deep/b"):
            os.close(landing.create(name))
        raise IntegrityError("corrupt", "x")
    assert tree(tmp_path) == ["dest", "dest/old"]


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_commit_that_is_cut_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """By Ctrl-C, or as one name cannot be given: those that have theirs already lose it, but not what others put there."""
    real, linked = os.link, 0

    def link(*args: Any, **kwargs: Any) -> None:
        nonlocal linked
        real(*args, **kwargs)
        linked += 1
        if linked == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest/theirs").write_text("theirs")
    with pytest.raises(KeyboardInterrupt):
        land(tmp_path / "dest", {"a": b"1", "d/b": b"2", "c": b"3"})
    assert tree(tmp_path / "dest") == ["theirs"]


def test_files_are_private_and_synced_before_they_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are 0600 and folders 0700; each file is synced before its link, folders after, also the one above."""
    order: list[str] = []
    for call in ("fsync", "link"):
        real = getattr(os, call)

        def noted(*args: object, call: str = call, real: object = real, **kwargs: object) -> None:
            order.append(call)
            real(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(os, call, noted)
    land(tmp_path / "dest", {"d/a": b"1", "b": b"2"})
    assert order == ["fsync", "fsync", "link", "link", "fsync", "fsync", "fsync"]
    assert (tmp_path / "dest/d").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "dest/d/a").stat().st_mode & 0o777 == 0o600


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where links are not to be had a rename does, still not over a file that is there."""

    def none(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EPERM, "operation not permitted")

    monkeypatch.setattr(os, "link", none)
    land(tmp_path / "dest", {"a": b"1"})
    assert (tmp_path / "dest/a").read_bytes() == b"1"
    fd = os.open(tmp_path / "dest", os.O_RDONLY)
    with pytest.raises(FileExistsError):
        durable.give_name("a", "a", fd, replace=False)
    os.close(fd)


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EIO, "disk_failed")])
def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str) -> None:
    """A disk that is full or broken is that error, and leaves nothing."""
    real = os.open

    def failing(path: str, flags: int, *args: object, **kwargs: object) -> int:
        if flags & os.O_EXCL:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(ResourceError) as caught:
        land(tmp_path / "dest", {"d/a": b"1"})
    assert caught.value.code == code
    assert tree(tmp_path) == []
