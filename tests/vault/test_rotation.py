"""The box's identity is changed: killed at any step it has the old or the new one, opens what either can, and complains of nothing."""

import itertools
import os
import shutil
from pathlib import Path

import pytest

from smp_proto import durable
from smp_proto.errors import KeyFileError, ResourceError, StateError, UsageError
from smp_proto.sealed import keyfile
from smp_proto.sealed.keys import PublicIdentity
from smpd.config import Keys
from smpd.vault.keys import COPIES, CREDENTIAL, IDENTITY, RETIRED, STATE_KEY, BoxKeys, load_keys
from smpd.vault.rotation import Rotation

INFO = b"a test"
FILES_WRITTEN = 6  # the retired one, the new one, the state's key; each with its copy


class Killed(BaseException):
    """What a kill does to the calls after it: they are not made."""


class Box:
    """A folder of keys, and a secret wrapped for each identity that it ever had."""

    def __init__(self, folder: Path, config: Keys) -> None:
        self.folder, self.config = folder, config
        self.wrapped: dict[PublicIdentity, bytes] = {}
        self.state = b""

    def open(self) -> BoxKeys:
        """As at a start; all that was there before must open."""
        keys = load_keys(str(self.folder), self.config)
        assert keys.mended == []
        assert not list(self.folder.rglob("*.damaged*"))
        self.state = self.state or bytes(keys.state)
        assert keys.state == self.state
        self.wrapped.setdefault(keys.identity.public, keys.identity.public.wrap(bytearray(b"secret"), INFO))
        by_id = {each.public: each for each in keys.identities}
        for public, wrapped in self.wrapped.items():
            assert by_id[public].unwrap(wrapped, INFO) == b"secret"
        return keys

    def rotate(self, keys: BoxKeys) -> PublicIdentity:
        with Rotation(str(self.folder), self.config, keys) as rotation:
            rotation.commit()
            assert rotation.finish() == []
        return keys.identity.public


@pytest.fixture
def box(tmp_path: Path) -> Box:
    folder = tmp_path / "keys"
    folder.mkdir(0o700)
    return Box(folder, Keys())


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file with what seals the keys."""
    path = tmp_path / "secret"
    path.write_bytes(os.urandom(32).hex().encode())
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("kind", ["", "credential_file", "passphrase_file"])
def test_a_rotation(box: Box, secret: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The new identity signs, the old one opens and signs no more; so it is at once, and after each start."""
    monkeypatch.setattr(keyfile, "ARGON2_MEMORY_KIB", 8)
    box.config = Keys(**({kind: str(secret)} if kind else {}))
    keys = box.open()
    first = keys.identity
    second = box.rotate(keys)
    for _ in range(2):
        assert [each.public for each in keys.identities] == [second, first.public]
        assert second.verify(keys.identity.sign(b"x"), b"x")
        with pytest.raises(StateError, match="signs no more"):
            keys.identities[1].sign(b"x")
        keys.wipe()
        keys = box.open()
    third = box.rotate(keys)
    keys.wipe()
    assert [each.public for each in box.open().identities] == [third, second, first.public]
    for name in (IDENTITY, STATE_KEY, RETIRED.format(1), RETIRED.format(2)):
        assert (box.folder / name).read_bytes() == (box.folder / COPIES / name).read_bytes()


@pytest.mark.parametrize("renamed", [False, True], ids=["before", "after"])
def test_killed_at_any_step(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: bool) -> None:
    """After a kill at each file it starts with the old or the new identity, and another rotation goes through."""
    box.rotate(box.open())
    steps, publish, seen = itertools.count(), durable.publish, set()

    def dies(*arguments: object, **more: object) -> None:
        left[0] -= 1
        if left[0] == 0 and renamed:
            publish(*arguments, **more)
        if left[0] <= 0:
            raise Killed
        publish(*arguments, **more)

    for step in range(1, FILES_WRITTEN + 2):
        shutil.copytree(box.folder, tmp_path / f"keys-{next(steps)}", copy_function=shutil.copy2)
        copy = Box(tmp_path / f"keys-{step - 1}", box.config)
        copy.wrapped = dict(box.wrapped)
        keys, left = copy.open(), [step]
        before = keys.identity.public
        monkeypatch.setattr(durable, "publish", dies)
        killed = False
        try:
            copy.rotate(keys)
        except Killed:
            killed = True
        monkeypatch.setattr(durable, "publish", publish)
        assert killed == (step <= FILES_WRITTEN)
        after = copy.open()
        seen.add(after.identity.public == before)
        copy.rotate(after)
        copy.open()
    assert seen == {True, False}


def test_a_disk_that_fails(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it fails before the identity is in its place or after: the box goes on, and another try goes through."""
    keys, give_name, failing = box.open(), durable.give_name, [True]

    def fails(part: str, name: str, *rest: object, **more: object) -> None:
        if failing[0] and name == IDENTITY:
            give_name(part, name, *rest, **more)  # and then the folder cannot be synced
            raise OSError(5, "Input/output error")
        give_name(part, name, *rest, **more)

    first = keys.identity.public
    monkeypatch.setattr(durable, "give_name", fails)
    with Rotation(str(box.folder), box.config, keys) as rotation, pytest.raises(ResourceError, match="the keys"):
        rotation.commit()
    assert keys.identity.public == first
    failing[0] = False
    second = box.rotate(keys)
    keys.wipe()
    assert [each.public for each in box.open().identities] == [second, first]


def test_copies_that_cannot_be_written(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new identity is in use; doctor says so, and the next start makes the copies."""
    keys = box.open()
    with Rotation(str(box.folder), box.config, keys) as rotation:
        rotation.commit()
        with monkeypatch.context() as patch:
            patch.setattr(durable, "publish", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
            assert "restart smpd" in rotation.finish()[0]
    keys.wipe()
    keys = box.open()
    assert keys.identity.public == rotation.identity.public
    assert (box.folder / IDENTITY).read_bytes() == (box.folder / COPIES / IDENTITY).read_bytes()


def test_what_is_damaged_is_still_told(box: Box) -> None:
    """A retired file that lost bytes is mended from its copy, and one that is gone for good keeps the box from starting."""
    keys = box.open()
    box.rotate(keys)
    box.rotate(keys)
    keys.wipe()
    (box.folder / RETIRED.format(1)).write_bytes(b"noise")
    (box.folder / COPIES / IDENTITY).write_bytes(b"noise")
    keys = load_keys(str(box.folder), box.config)
    assert len(keys.mended) == 2
    assert len(keys.identities) == 3
    for where in (box.folder, box.folder / COPIES):
        (where / RETIRED.format(1)).unlink()
    with pytest.raises(KeyFileError, match=r"retired-1\.key is missing"):
        load_keys(str(box.folder), box.config)


@pytest.mark.parametrize("lost", ["gone", "another"])
def test_without_the_secret_nothing_is_changed(box: Box, secret: Path, lost: str) -> None:
    """The secret is read again: without the right one there is an error, and the files stay."""
    box.config = Keys(credential_file=str(secret))
    keys = box.open()
    before = {path: path.read_bytes() for path in box.folder.rglob("*.key")}
    if lost == "gone":
        secret.unlink()
    else:
        secret.write_bytes(os.urandom(32))
    with pytest.raises((KeyFileError, UsageError), match="cannot be read|does not open with that any more"):
        Rotation(str(box.folder), box.config, keys)
    assert {path: path.read_bytes() for path in box.folder.rglob("*.key")} == before
    assert keys.identity.sign(b"x")
    assert not keys.changing.locked()


def test_its_own_secret_is_not_made_anew(box: Box) -> None:
    """A box whose credential beside the key is gone refuses, too."""
    keys = box.open()
    for where in (box.folder, box.folder / COPIES):
        (where / CREDENTIAL).unlink()
    with pytest.raises(KeyFileError, match="does not open with that any more"):
        Rotation(str(box.folder), box.config, keys)


def test_one_at_a_time(box: Box) -> None:
    """While one is under way another is refused."""
    keys = box.open()
    with Rotation(str(box.folder), box.config, keys), pytest.raises(StateError, match="being changed"):
        Rotation(str(box.folder), box.config, keys)
