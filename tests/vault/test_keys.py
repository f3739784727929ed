"""The files of the keys at a start: what is damaged or gone, and what is not made anew."""

import errno
import os
from pathlib import Path

import pytest

from smp_proto.errors import KeyFileError, ResourceError, UsageError
from smpd.config import Keys
from smpd.configuring import load_config
from smpd.state import open_state
from smpd.vault.keys import COPIES, CREDENTIAL, IDENTITY, STATE_KEY, load_keys


@pytest.mark.parametrize("where", [".", COPIES])
def test_a_credential_that_lost_its_bytes(tmp_path: Path, where: str) -> None:
    """A file of no length is what a power cut may leave: the other copy is enough."""
    tmp_path.chmod(0o700)
    was = bytes(load_keys(str(tmp_path), Keys()).state)
    good = (tmp_path / CREDENTIAL).read_bytes()
    (tmp_path / where / CREDENTIAL).write_bytes(b"")
    assert bytes(load_keys(str(tmp_path), Keys()).state) == was
    assert (tmp_path / where / CREDENTIAL).read_bytes() == good
    for each in (tmp_path, tmp_path / COPIES):
        (each / CREDENTIAL).write_bytes(b"")
    with pytest.raises(UsageError):
        load_keys(str(tmp_path), Keys())


def test_what_does_not_open_the_keys_is_named(tmp_path: Path) -> None:
    """After a restore without it, or with another: which folder, which file, and what to set."""
    keys = tmp_path / "keys"
    keys.mkdir(0o700)
    load_keys(str(keys), Keys())
    for where in (keys, keys / COPIES):
        (where / CREDENTIAL).unlink()
    (tmp_path / "other").write_bytes(bytes(32))
    (tmp_path / "other").chmod(0o600)
    for config, said in (
        (Keys(), f"the keys in {keys} are sealed, and nothing is configured"),
        (Keys(credential_file=str(tmp_path / "other")), f"the keys in {keys} do not open with {tmp_path / 'other'}"),
        (Keys(passphrase_file=str(tmp_path / "other")), f"the keys in {keys} do not open with {tmp_path / 'other'}"),
    ):
        with pytest.raises(KeyFileError) as caught:
            load_keys(str(keys), config)
        assert (caught.value.code, said in caught.value.message) == ("key_locked", True), caught.value.message
        assert "keys.credential_file" in caught.value.hint


@pytest.mark.parametrize("gone", [[IDENTITY], [IDENTITY, STATE_KEY], [STATE_KEY]])
def test_no_new_keys_for_an_old_state(tmp_path: Path, gone: list[str]) -> None:
    """They would open nothing of it; what is left of the old ones stays as it is, for who brings back the rest."""
    config = load_config(None, {"HOME": str(tmp_path), "SMPD_PATHS_STATE": str(tmp_path / "state")})
    (tmp_path / "state").mkdir(0o700)
    open_state(config).close()
    folder = tmp_path / "state" / "keys"
    kept = {name: (folder / name).read_bytes() for name in gone}
    for name in gone:
        for where in (folder, folder / COPIES):
            (where / name).unlink()
    left = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(KeyFileError, match="is missing"):
        open_state(config)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == left
    for name, data in kept.items():
        (folder / name).write_bytes(data)
    open_state(config).close()


def test_a_folder_made_for_the_audit_log(tmp_path: Path) -> None:
    """Where a disk of its own is mounted, say, and nothing lies in it yet, the start is the first all the same."""
    config = load_config(None, {"HOME": str(tmp_path), "SMPD_PATHS_STATE": str(tmp_path / "state")})
    (tmp_path / "state").mkdir(0o700)
    (tmp_path / "state" / "audit").mkdir(0o700)
    state = open_state(config)
    assert state.keys.created
    state.close()


@pytest.mark.parametrize("what", ["a folder", "a link"])
def test_a_key_file_that_is_none(tmp_path: Path, what: str) -> None:
    """What cannot be read is told as an error of the disk, with the folder's name."""
    config = load_config(None, {"HOME": str(tmp_path), "SMPD_PATHS_STATE": str(tmp_path / "state")})
    (tmp_path / "state").mkdir(0o700)
    open_state(config).close()
    file = tmp_path / "state" / "keys" / IDENTITY
    file.unlink()
    if what == "a folder":
        file.mkdir()
    else:
        file.symlink_to("nowhere")
    with pytest.raises(ResourceError, match="the keys in .*/state/keys"):
        open_state(config)


@pytest.mark.parametrize("name", [IDENTITY, STATE_KEY, CREDENTIAL])
@pytest.mark.parametrize("where", [".", COPIES])
def test_a_copy_that_the_disk_does_not_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, where: str
) -> None:
    """The other is enough: what cannot be read is set aside and made again. Where neither can be, nothing is made."""
    tmp_path.chmod(0o700)
    was = bytes(load_keys(str(tmp_path), Keys()).state)
    bad = {(tmp_path / where / name).stat().st_ino}
    good = (tmp_path / name).read_bytes()
    real = os.readv

    def readv(fd: int, buffers: list[bytearray]) -> int:  # there is no disk here with such a sector
        if os.fstat(fd).st_ino in bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, buffers)

    monkeypatch.setattr(os, "readv", readv)
    keys = load_keys(str(tmp_path), Keys())
    assert bytes(keys.state) == was
    assert any(f"{name} cannot be read" in note for note in keys.mended)
    assert (tmp_path / where / name).read_bytes() == good
    assert (tmp_path / where / f"{name}.damaged").stat().st_ino in bad
    assert load_keys(str(tmp_path), Keys()).mended == []
    bad |= {(each / name).stat().st_ino for each in (tmp_path, tmp_path / COPIES)}
    with pytest.raises(OSError, match="Input/output"):
        load_keys(str(tmp_path), Keys())


def test_a_first_start_that_was_cut_off(tmp_path: Path) -> None:
    """Without a state there is nothing to lose: keys that were half made are made anew."""
    tmp_path.chmod(0o700)
    load_keys(str(tmp_path), Keys()).wipe()
    for where in (tmp_path, tmp_path / COPIES):
        (where / IDENTITY).unlink()
    assert load_keys(str(tmp_path), Keys()).created
