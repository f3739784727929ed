"""Whether the program on the disk is still the one that runs."""

import os
from pathlib import Path

import pytest

from smpd.host import program


def test_an_upgrade_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the file's time or its size, and where it is gone; not by a copy of the disk, nor by who read or linked it."""
    file = tmp_path / "__init__.py"
    file.write_text("one")
    monkeypatch.setattr(program, "_FILE", str(file))
    monkeypatch.setattr(program, "_BEGUN", program._stamp())
    monkeypatch.setattr(program, "_seen", False)
    times = os.stat(file).st_atime_ns, os.stat(file).st_mtime_ns
    os.link(file, tmp_path / "kept")
    file.chmod(0o600)
    assert not program.is_replaced()
    file.unlink()
    assert not program.was_replaced()
    assert program.is_replaced()
    assert program.was_replaced()
    file.write_text("one")
    os.utime(file, ns=times)
    assert not program.is_replaced()
    os.utime(file, ns=(times[0], times[1] + 1))
    assert program.is_replaced()
    file.write_text("other")
    os.utime(file, ns=times)
    assert program.is_replaced()
