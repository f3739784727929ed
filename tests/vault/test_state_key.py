"""The key of the state: wrapped for the box, and signed by it, since anybody can wrap one of theirs."""

from pathlib import Path

import pytest

from smp_proto.errors import KeyFileError
from smp_proto.sealed.filekey import random_secret
from smp_proto.sealed.keys import WRAPPED_BYTES, Identity
from smpd.config import Keys
from smpd.vault.keys import COPIES, IDENTITY, STATE_KEY, BoxKeys, load_keys, wrap_state


class Folder:
    """A folder of keys that was opened once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = bytes(self.open().state)
        self.files = [where / STATE_KEY for where in (path, path / COPIES)]
        self.data = self.files[0].read_bytes()

    def open(self) -> BoxKeys:
        return load_keys(str(self.path), Keys())

    def foreign(self) -> bytes:
        """What somebody can make who reads no secret."""
        public = Identity.peek((self.path / IDENTITY).read_bytes())
        return public.wrap(random_secret(32), b"smpd state key")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    path = tmp_path / "keys"
    path.mkdir(0o700)
    return Folder(path)


def test_one_of_an_older_smp_is_signed(folder: Folder) -> None:
    """It opens, is told of once, and has the signature from then on."""
    for file in folder.files:
        file.write_bytes(folder.data[:WRAPPED_BYTES])
    for signed in (False, True):
        keys = folder.open()
        assert (keys.signed, bytes(keys.state), keys.mended) == (signed, folder.state, [])
    assert {len(file.read_bytes()) for file in folder.files} == {WRAPPED_BYTES + 64}


@pytest.mark.parametrize("at", [0, 1])
def test_one_of_somebody_else(folder: Folder, at: int) -> None:
    """Beside a signed one it does not count, and is kept for whoever looks; alone it is told of."""
    foreign = folder.foreign()
    folder.files[at].write_bytes(foreign)
    keys = folder.open()
    assert (keys.signed, bytes(keys.state)) == (True, folder.state)
    assert folder.files[at].with_name(f"{STATE_KEY}.damaged").read_bytes() == foreign
    assert f"{folder.files[at]} was damaged" in " ".join(keys.mended)
    assert {file.read_bytes() for file in folder.files} == {folder.data}
    for file in folder.files:
        file.write_bytes(foreign)
    assert not folder.open().signed


def test_another_signature(folder: Folder) -> None:
    """It is none."""
    eve = Identity.generate("eve")
    forged = folder.foreign() + wrap_state(eve, random_secret(32))[WRAPPED_BYTES:]
    for file in folder.files:
        file.write_bytes(forged)
    with pytest.raises(KeyFileError, match=r"state\.key is damaged"):
        folder.open()
