"""Plugins for the tests: a distribution on a path of its own, as an installer would leave it."""

import shutil

import pytest
from compute.harness import HOSTILE, HOSTILE_MODULE, close_shared


@pytest.fixture(scope="session")
def plugins(tmp_path_factory):
    """A folder with the distribution ``smp-hostile``, to go on PYTHONPATH."""
    folder = tmp_path_factory.mktemp("plugins")
    source = HOSTILE_MODULE.read_text(encoding="utf-8")
    (folder / "hostile.py").write_text(source, encoding="utf-8")
    shutil.copy(HOSTILE_MODULE.with_name("hostile_escapes.py"), folder)
    info = folder / "smp_hostile-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: smp-hostile\nVersion: 1.0\n")
    points = [f"{name} = hostile:{name.partition('.')[2]}" for name in HOSTILE]
    points += ["wrong.name = hostile:sums", "wrong.import = hostile_missing:f", "digest = hostile:sums"]
    (info / "entry_points.txt").write_text("[smpd.processors]\n" + "\n".join(points) + "\n")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _shared_processes():
    yield
    close_shared()


@pytest.fixture
def no_descriptor_is_left() -> None:
    """Overridden: the first test that needs a process starts one that later ones share."""
