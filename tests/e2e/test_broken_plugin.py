"""A plugin that cannot be imported takes nothing along: others are listed and run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from box import Box
from scene import client

BROKEN = """
from smpd.processors import processor


@processor("broken.one", params=dict)
def one(item, context):
    pass
"""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A box with it, and with one that is listed and not installed."""
    info = tmp_path / "plugins" / "smp_broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info.parent / "smp_broken.py").write_text(BROKEN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: smp-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[smpd.processors]\nbroken.one = smp_broken:one\n")
    machine = Box(tmp_path / "box", {"compute": {"processors": ["digest", "broken.one", "not.there"]}})
    machine.env["PYTHONPATH"] = str(info.parent)
    machine.start()
    yield machine
    machine.close()


def test_the_others_are_listed(box: Box) -> None:
    """``smpctl processors`` shows those that can be used, and says of the others why they cannot."""
    with client(box) as ctl:
        found = {info.name: info.trouble for info in ctl.processors()}
    assert found == {
        "broken.one": "processor broken.one of smp-broken cannot be imported: TypeError: "
        "params of processor broken.one is no class made of msgspec.Struct",
        "digest": "",
    }


def test_one_that_is_listed_only(box: Box) -> None:
    """A job for it is refused with what to do, and not with its own name as the nearest one."""
    done = box.ctl("run", "not.there", "lake:a.smp", check=False)
    assert done.returncode == 5
    assert "processor not.there is listed but not installed" in done.stderr.decode()
