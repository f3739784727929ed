"""A folder kept sealed in buckets, end to end: two remotes, one sealing, only what changed."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from box import Box, box
from counting_s3 import CountingS3, counting_s3
from faulty import until
from scene import client, faults, spool_empties
from servers import rclone_s3

from smp_proto.control import LocalConfig
from smp_proto.errors import NotFoundError, StateError, UsageError
from smp_proto.sealed.bundle import BundleReader
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpctl import Client
from smpctl.files import LocalFile
from smpctl.mirroring import Mirror, Mirrored, State


class Sender:
    """A sender's box with two remotes, a folder, and somebody who reads what arrives."""

    def __init__(self, machine: Box, folder: Path, lake: Path, attic: Path) -> None:
        self.box = machine
        self.reader = Identity.generate("reader")
        self.folder = folder
        self.places = {"lake": lake / "scans", "attic": attic}
        machine.env["XDG_STATE_HOME"] = str(folder.parent / "state-home")
        self.key = folder.parent / "reader.pub"
        self.key.write_text(self.reader.public.text())
        with client(machine) as ctl:
            self._box = PublicIdentity.parse(ctl.box_key().text)

    def write(self, name: str, content: bytes) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(content)

    def mirror(self, *, delete: bool = False) -> Mirrored:
        """A round, as the command does one."""
        home = self.folder.parent / "state-home" / "smp" / "mirror"
        with client(self.box) as ctl, State(str(self.folder), str(home)) as state:
            targets = [f"{name}:in/" for name in self.places]
            return Mirror(ctl, state, targets, [self.reader.public.text()]).round(delete=delete)

    def opened(self, folder: Path) -> dict[str, bytes]:
        """What lies there, by the names that the reader sees."""
        found: dict[str, bytearray] = {}
        for path in folder.rglob("*.smp"):
            data = memoryview(path.read_bytes())

            def read_into(offset: int, view: memoryview, data: memoryview = data) -> None:
                view[:] = data[offset : offset + len(view)]

            def take(entry: Any, _offset: int, piece: memoryview) -> None:
                found.setdefault(entry.name, bytearray()).extend(piece)

            with BundleReader(read_into, len(data), identities=[self.reader], trust=lambda _: self._box) as reader:
                reader.extract(take)
        return {name: bytes(content) for name, content in found.items()}


@pytest.fixture(scope="module")
def sender(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sender]:
    root = tmp_path_factory.mktemp("mirror")
    (root / "attic").mkdir()
    with rclone_s3(root / "lake") as served, box(root / "box", {"jobs": {"attempts": 1}}) as machine:
        with client(machine) as ctl:
            ctl.remote_add("lake", served.config, secret=served.secret)
            ctl.remote_add("attic", LocalConfig(str(root / "attic")))
        yield Sender(machine, root / "folder", root / "lake", root / "attic")
        assert not faults(machine)


def test_only_what_changed(sender: Sender) -> None:
    """Each file is sealed once for both, under a name that tells nothing; a second round does nothing."""
    files = {"a/Doe^Jane.dcm": b"one", "b.bin": b"two"}
    for name, content in files.items():
        sender.write(name, content)
    (sender.folder / "link").symlink_to("b.bin")
    command = ["mirror", sender.folder, "lake:in/", "attic:in/", "--to", sender.key]
    assert sender.box.json(*command)["sent"] == 2
    for place in sender.places.values():
        assert sender.opened(place / "in") == files
    lake, attic = ({path.name: path.read_bytes() for path in (p / "in").iterdir()} for p in sender.places.values())
    assert lake == attic  # one sealing
    assert not [name for name in lake if "Doe" in name]
    with client(sender.box) as ctl:
        assert len(ctl.jobs()) == 4
    sender.write("b.bin", b"three")
    sender.write("c.bin", b"new")
    assert sender.box.ctl(*command).stdout == b"2 sent, 1 unchanged, 0 removed, 0 failed\n"
    assert sender.opened(sender.places["lake"] / "in") == {**files, "b.bin": b"three", "c.bin": b"new"}
    spool_empties(sender.box)


def test_what_is_gone_goes_when_asked(sender: Sender) -> None:
    """Without --delete it stays."""
    sender.write("gone.bin", b"x")
    sender.mirror()
    (sender.folder / "gone.bin").unlink()
    assert sender.mirror().gone == 1
    assert sender.mirror(delete=True).removed == 1
    for place in sender.places.values():
        assert "gone.bin" not in sender.opened(place / "in")
    assert sender.mirror(delete=True).removed == 0


def test_what_comes_back_is_sent_again(sender: Sender) -> None:
    """Also where it is as it was: the daemon still has the job that was done before it was removed, or replaced."""
    back, away = sender.folder / "back.bin", sender.folder.parent / "away.bin"
    sender.write("back.bin", b"one")
    first = back.stat()
    sender.mirror()
    back.rename(away)
    assert sender.mirror(delete=True).removed == 1
    away.rename(back)
    assert sender.mirror().sent == 1
    for place in sender.places.values():
        assert sender.opened(place / "in")["back.bin"] == b"one"
    for content, at in ((b"two", first.st_mtime_ns + 1), (b"one", first.st_mtime_ns)):
        back.write_bytes(content)
        os.utime(back, ns=(at, at))
        assert sender.mirror().sent == 1
        for place in sender.places.values():
            assert sender.opened(place / "in")["back.bin"] == content


def test_killed_while_it_removes(sender: Sender, tmp_path: Path) -> None:
    """What is remembered at that moment does not say that the object is there."""
    file = tmp_path / "f" / "a"
    file.parent.mkdir()
    file.write_bytes(b"1")
    (tmp_path / "f" / "b").write_bytes(b"2")
    public, home = sender.reader.public.text(), tmp_path / "home"
    left: dict[Path, bytes] = {}
    with client(sender.box) as ctl:
        with State(str(tmp_path / "f"), str(home)) as state:
            mirror = Mirror(ctl, state, ["attic:killed/"], [public])
            assert mirror.round().sent == 2
            file.rename(tmp_path / "away")
            remove = ctl.rm

            def removing(location: str) -> None:
                remove(location)
                left.update((path, path.read_bytes()) for path in home.glob("*.json"))

            ctl.rm = removing  # type: ignore[method-assign]
            assert mirror.round(delete=True).removed == 1
        for path, data in left.items():
            path.write_bytes(data)
        (tmp_path / "away").rename(file)
        with State(str(tmp_path / "f"), str(home)) as state:
            assert Mirror(ctl, state, ["attic:killed/"], [public]).round().sent == 1
    assert sender.opened(sender.places["attic"] / "killed") == {"a": b"1", "b": b"2"}


class Killed:
    """A mirror into a bucket that was killed as soon as the daemon had taken its second file, ``goes``.

    Args:
        held: whether what the daemon asks of the bucket is held from then on, until ``go`` is set.
    """

    def __init__(self, ctl: Client, store: CountingS3, folder: Path, key: str, target: str, *, held: bool) -> None:
        self._ctl, self._folder, self._key, self._target = ctl, folder, key, target
        self.file, self.go = folder / "f" / "goes", threading.Event()
        self.file.parent.mkdir()
        (folder / "f" / "stays").write_bytes(b"1")
        put, left = ctl.put, dict[Path, bytes]()
        assert self.round().sent == 1
        (self.stays,) = store.objects

        def killed(*args: Any, **options: Any) -> Any:
            self.job = put(*args, **options).id
            left.update((path, path.read_bytes()) for path in (folder / "home").glob("*.json"))
            raise KeyboardInterrupt

        if held:
            store.before = lambda method, *_: self.go.wait(60.0) if method == "HEAD" else None
        self.file.write_bytes(b"2")
        ctl.put = killed  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            self.round()
        ctl.put = put  # type: ignore[method-assign]
        for path, data in left.items():
            path.write_bytes(data)

    def round(self, *, delete: bool = False) -> Mirrored:
        with State(str(self._folder / "f"), str(self._folder / "home")) as state:
            return Mirror(self._ctl, state, [self._target], [self._key]).round(delete=delete)


@pytest.mark.parametrize("arrived", [True, False])
def test_what_was_on_its_way_when_it_was_killed_is_removed(sender: Sender, tmp_path: Path, arrived: bool) -> None:
    """The file is gone before it learned that the object is there, or while the job still runs: neither stays."""
    with counting_s3() as (store, served), client(sender.box) as ctl:
        ctl.remote_add("gone", served.config, secret=served.secret)
        killed = Killed(ctl, store, tmp_path, sender.reader.public.text(), "gone:in/", held=not arrived)
        if arrived:
            assert ctl.wait(killed.job).state == "done"
        killed.file.unlink()
        assert killed.round(delete=True).removed == 1
        killed.go.set()
        assert ctl.wait(killed.job).state == ("done" if arrived else "cancelled")
        assert list(store.objects) == [killed.stays]
        ctl.remote_remove("gone")


@pytest.mark.parametrize(("somebody_elses", "state"), [(False, "cancelled"), (True, "paused")])
def test_an_older_version_on_its_way_when_it_was_killed_does_not_arrive(
    sender: Sender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, somebody_elses: bool, state: str
) -> None:
    """Its job waits still when the file has changed and was sent again: it would replace what is there by then.

    What another user sends to that place is theirs, also where this one could cancel it.
    """
    with counting_s3() as (store, served), client(sender.box) as ctl:
        ctl.remote_add("older", served.config, secret=served.secret)
        killed = Killed(ctl, store, tmp_path, sender.reader.public.text(), "older:in/", held=True)
        assert ctl.pause(killed.job).state == "paused"
        killed.go.set()
        killed.file.write_bytes(b"a newer version")
        if somebody_elses:
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert killed.round().sent == 1
        assert ctl.job(killed.job).state == state
        assert list(store.effects.values()) == [1, 1]
        if somebody_elses:
            ctl.cancel(killed.job)
        ctl.remote_remove("older")


def test_one_that_may_not_be_read_is_told_of(tmp_path: Path, sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted as failed; root may read anything, so the file's own opening refuses."""
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_bytes(b"1")
    notes: list[str] = []

    def refuse(file: LocalFile) -> tuple[int, int]:
        raise NotFoundError("no_such_file", f"{file.path} cannot be read: permission denied")

    with client(sender.box) as ctl, State(str(tmp_path / "f"), str(tmp_path / "home")) as state:
        mirror = Mirror(ctl, state, ["attic:closed/"], [sender.reader.public.text()], note=notes.append)
        with monkeypatch.context() as patch:
            patch.setattr(LocalFile, "open", refuse)
            found = mirror.round()
        assert (found.sent, found.failed, found.exit_code) == (0, 1, NotFoundError.exit_code)
        assert "cannot be read" in notes[0]
        assert mirror.round().sent == 1


def test_one_remote_that_is_full_of_trouble(sender: Sender) -> None:
    """The other has what it is to have; the next round sends to the first alone."""
    attic = sender.places["attic"]
    sender.write("early.bin", b"early")
    sender.mirror()
    (attic / "in").rename(attic / "elsewhere")
    (attic / "in").write_bytes(b"no folder")
    sender.write("late.bin", b"late")
    found = sender.mirror()
    assert (found.sent, found.failed, found.exit_code) == (0, 1, 6)
    (attic / "in").unlink()
    (attic / "elsewhere").rename(attic / "in")
    found = sender.mirror()
    assert (found.sent, found.failed) == (1, 0)
    for place in sender.places.values():
        assert sender.opened(place / "in")["late.bin"] == b"late"
    assert sender.mirror().sent == 0


def test_a_file_that_is_being_written_waits(sender: Sender, tmp_path: Path) -> None:
    """With --watch a file is taken once two looks agree; what changed while it was read is sent again."""
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_bytes(b"1")
    with client(sender.box) as ctl, State(str(tmp_path / "f"), str(tmp_path / "home")) as state:
        public = sender.reader.public.text()
        mirror = Mirror(ctl, state, ["attic:watched/"], [public])
        assert mirror.round(settled=True).sent == 0
        (tmp_path / "f" / "a").write_bytes(b"12")
        assert mirror.round(settled=True).sent == 0
        put = ctl.put

        def changing(*args: Any, **kwargs: Any) -> Any:
            job = put(*args, **kwargs)
            (tmp_path / "f" / "a").write_bytes(b"123")
            return job

        ctl.put = changing  # type: ignore[method-assign]
        mirror.round(settled=True)
        ctl.put = put  # type: ignore[method-assign]
        assert mirror.round().sent == 1
        assert mirror.round().same == 1
        jobs = len(ctl.jobs(limit=1000))
        (tmp_path / "f" / "b").write_bytes(b"4")
        ctl.wait = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            mirror.round()
        del ctl.wait
        assert mirror.round().sent == 1  # by the job that there is
        assert len(ctl.jobs(limit=1000)) == jobs + 1
        (tmp_path / "f" / "b").unlink()
        assert mirror.round(delete=True).removed == 1
        kept = (tmp_path / "f").rename(tmp_path / "unmounted")
        (tmp_path / "f").mkdir()
        assert mirror.round(delete=True).gone == 1
        (tmp_path / "f").rmdir()
        kept.rename(tmp_path / "f")
        assert sender.opened(sender.places["attic"] / "watched") == {"a": b"123"}
        with pytest.raises(StateError, match="another smpctl"), State(str(tmp_path / "f"), str(tmp_path / "home")):
            pass
        with pytest.raises(NotFoundError), State(str(tmp_path / "nothing"), str(tmp_path / "home")):
            pass
        for wrong in (["attic:x"], ["attic:x/"] * 2, []):
            with pytest.raises(UsageError):
                Mirror(ctl, state, wrong, [public])
        with pytest.raises(UsageError, match="other kind of names"):
            Mirror(ctl, state, ["attic:watched/"], [public], named=True)


def interrupted(*_: object) -> None:
    """Ctrl-C."""
    raise KeyboardInterrupt


def test_it_goes_on_watching(sender: Sender, tmp_path: Path) -> None:
    """Whatever a round breaks at may have passed by the next: here the folder is away for a while."""
    folder = tmp_path / "f"
    folder.mkdir()
    command = [sys.executable, "-m", "smpctl", "mirror", folder, "attic:away/", "--to", sender.key, "--watch"]
    with subprocess.Popen([*command, "--every", "1s"], env=sender.box.env, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            (folder / "a").write_bytes(b"1")
            until(lambda: process.poll() is not None or list(sender.places["attic"].glob("away/*.smp")))
            folder.rename(tmp_path / "unmounted")
            assert b"does not exist; tried again in 1 s" in process.stderr.readline()
            (tmp_path / "unmounted").rename(folder)
            (folder / "b").write_bytes(b"2")
            until(lambda: process.poll() is not None or len(list(sender.places["attic"].glob("away/*.smp"))) == 2)
            assert process.poll() is None
        finally:
            process.terminate()


def test_names_and_damage(sender: Sender, tmp_path: Path) -> None:
    """--names shows the paths; a memory that is damaged is said so, and nothing is uploaded."""
    (tmp_path / "f" / "d").mkdir(parents=True)
    (tmp_path / "f" / "d" / "x").write_bytes(b"1")
    flags = ["attic:named/", "--to", sender.key, "--names", "--json"]
    assert sender.box.ctl("mirror", tmp_path / "f", *flags).returncode == 0
    assert (sender.places["attic"] / "named" / "d" / "x.smp").exists()
    home = Path(sender.box.env["XDG_STATE_HOME"]) / "smp" / "mirror"
    memory = max((path for path in home.iterdir() if path.suffix == ".json"), key=os.path.getmtime)
    assert memory.stat().st_mode & 0o077 == 0
    memory.write_bytes(b"{")
    done = sender.box.ctl("mirror", tmp_path / "f", *flags, check=False)
    assert done.returncode == 7
    assert str(memory) in done.stderr.decode()
