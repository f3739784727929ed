"""The spool file alone: past the page cache where the disk allows it, and right in any case."""

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from smpd.host.space import Space
from smpd.opening import ranges as opening
from smpd.transfer.spool import Spool

MIB = 1 << 20
CONTENT = os.urandom(2 * MIB + 777)
Pwrite = Callable[[int, Any, int], int]


async def written(path: Path) -> bytes:
    """The content in three pieces, the last of which is no whole number of pages, in a buffer such as openers use."""
    with closing(Space(str(path.parent), MIB)) as space:
        spool = await Spool.open(space, str(path), len(CONTENT), None)
    try:
        for start in reversed(range(0, len(CONTENT), MIB)):
            piece = CONTENT[start : start + MIB]
            opening._buffers.sealed[: len(piece)] = piece
            spool.write(opening._buffers.sealed[: len(piece)], start)
    finally:
        spool.close()
    return path.read_bytes()


def counting(monkeypatch: pytest.MonkeyPatch, refuse: int = 0) -> list[bool]:
    """Notes of each write whether it went past the page cache; ``refuse`` is what such a one fails with."""
    pwrite: Pwrite = os.pwrite
    direct: list[bool] = []

    def watched(fd: int, data: Any, offset: int) -> int:
        direct.append(bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT))
        if direct[-1] and refuse:
            raise OSError(refuse, os.strerror(refuse))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", watched)
    return direct


async def test_whole_segments_go_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the object, which is no whole number of pages, does not; together they are the object."""
    direct = counting(monkeypatch)
    found = await written(tmp_path / "s")
    assert found == CONTENT
    try:
        os.close(os.open(tmp_path / "s", os.O_WRONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("the file system of the temporary folder knows no O_DIRECT")
    assert direct == [False, True, True]


async def test_a_disk_that_refuses_direct_writes_gets_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may know none at all, or only larger ones than pages; a failure is a failure all the same."""
    direct = counting(monkeypatch, errno.EINVAL)
    found = await written(tmp_path / "larger")
    assert found == CONTENT
    assert direct.count(True) <= 1

    opens = os.open

    def buffered_only(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return opens(path, flags, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", buffered_only)
        found = await written(tmp_path / "none")
    assert found == CONTENT

    if True in direct:
        counting(monkeypatch, errno.EIO)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await written(tmp_path / "broken")
