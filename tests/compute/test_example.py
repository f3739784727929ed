"""The example plugin installs as a distribution of its own and runs in the compute process."""

import importlib.util
import io
import sys
from pathlib import Path

import anyio
import numpy as np
import pytest
from compute.harness import Entry, compute

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "smp-invert"


async def test_the_example_installs_and_runs(tmp_path):
    """``pip install`` of the folder is all it takes; the processor is told with the name of its distribution."""
    for module in ("pip", "hatchling"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    await anyio.run_process([*pip, "--disable-pip-version-check", "--target", str(tmp_path), str(EXAMPLE)])
    async with compute("bytes.invert", "digest", plugins=tmp_path) as worker:
        facts = {info.name: info for info in worker.ready.processors}
        assert facts["bytes.invert"].distribution == "smp-invert"
        assert facts["digest"].distribution == "secure-media-processor"
        assert facts["bytes.invert"].summary == "The complement of every byte, as a .npy array."
        _, [result] = await worker.run("bytes.invert", [Entry("a", bytes(range(256)))])
        assert (result.name, result.media_type) == ("a.npy", "application/x-npy")
        assert np.load(io.BytesIO(result.data)).tolist() == list(range(255, -1, -1))


def test_the_example_is_ten_lines():
    """The guide promises ten."""
    assert len((EXAMPLE / "smp_invert.py").read_text(encoding="utf-8").splitlines()) <= 10


def test_the_guide_shows_the_example():
    """What ``docs/guides/plugins.md`` prints is what is in the folder."""
    guide = (ROOT / "docs" / "guides" / "plugins.md").read_text(encoding="utf-8")
    assert (EXAMPLE / "smp_invert.py").read_text(encoding="utf-8").strip() in guide
