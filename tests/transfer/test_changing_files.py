"""A person's file that changes while smpd seals it, as a put or a mirror hands it over."""

import os
from pathlib import Path

import pytest

from smp_proto.errors import IntegrityError
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity
from smpd.transfer.sealing import check_regular, seal_descriptor

SIZE = 9 << 20


@pytest.mark.parametrize("becomes", [0, 1, SIZE - 1, SIZE + 1, SIZE * 2])
def test_a_file_that_changes_its_length_is_no_whole_one(tmp_path: Path, becomes: int) -> None:
    """Cut short or added to since it was handed over: it is not sealed as if that were all of it."""
    path = tmp_path / "scan"
    path.write_bytes(bytes(SIZE))
    fd = os.open(path, os.O_RDONLY)
    writer = BundleWriter(lambda _: None, sender=None, recipients=[Identity.generate().public])
    try:
        size = check_regular(fd, os.O_RDONLY, "scan")
        with pytest.raises(IntegrityError) as caught:
            seal_descriptor(writer, fd, size, "scan", "", lambda _: os.truncate(path, becomes))
        assert (caught.value.code, "scan" in caught.value.message) == ("source_changed", True)
    finally:
        writer.abort()
        os.close(fd)


@pytest.mark.parametrize("size", [0, 1, SIZE])
def test_one_that_does_not_is(tmp_path: Path, size: int) -> None:
    """Also an empty one."""
    path = tmp_path / "scan"
    path.write_bytes(bytes(size))
    fd = os.open(path, os.O_RDONLY)
    writer = BundleWriter(lambda _: None, sender=None, recipients=[Identity.generate().public])
    try:
        seal_descriptor(writer, fd, size, "scan", "", lambda _: None)
        assert writer._entries[0].size == size
    finally:
        writer.abort()
        os.close(fd)
