"""A person's file that changes while smpd seals it, as a put or a mirror hands it over."""

import os
from pathlib import Path

import pytest

from smp_proto.errors import IntegrityError
from smpd.transfer.sealing import HandedFile

SIZE = 9 << 20


@pytest.mark.parametrize("becomes", [0, 1, SIZE - 1, SIZE + 1, SIZE * 2])
def test_a_file_that_changes_its_length_is_no_whole_one(tmp_path: Path, becomes: int) -> None:
    """Cut short or added to since it was handed over: it is not sealed as if that were all of it."""
    path = tmp_path / "scan"
    path.write_bytes(bytes(SIZE))
    with path.open("rb") as file:
        content = HandedFile(file.fileno(), "scan")
        content.read()
        os.truncate(path, becomes)
        with pytest.raises(IntegrityError) as caught:
            while not content.over:
                content.read()
        assert (caught.value.code, "scan" in caught.value.message) == ("source_changed", True)


@pytest.mark.parametrize("size", [0, 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, SIZE])
def test_one_that_does_not_is(tmp_path: Path, size: int) -> None:
    """Also an empty one, and one that fills what is read at once."""
    path = tmp_path / "scan"
    written = os.urandom(size)
    path.write_bytes(written)
    found = bytearray()
    with path.open("rb") as file:
        content = HandedFile(file.fileno(), "scan")
        while not content.over:
            view = content.read()
            found += view
        assert found == written
        content.close()
        assert not any(view)


def test_one_of_the_kernels_own_is_told_of_as_that() -> None:
    """Those of /proc have no length and hold something; nobody writes to them."""
    with open("/proc/cpuinfo", "rb") as file:
        content = HandedFile(file.fileno(), "cpuinfo")
        with pytest.raises(IntegrityError, match="says that it is 0 bytes long, and holds more") as caught:
            content.read()
        assert caught.value.hint == "seal a copy of it"
