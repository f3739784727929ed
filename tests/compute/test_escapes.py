"""Each way out is closed, by the kernel and for good: the process goes on, and so does the next job."""

import pytest
from compute.harness import DEVICE, HOSTILE, Entry, compute
from compute.hostile_escapes import ACTS, OTHERWISE, UNCOUNTED

from smpd.walls.sandbox import Kernel

KERNEL = Kernel.probe()
pytestmark = pytest.mark.skipif(not (KERNEL.landlock_abi and KERNEL.seccomp), reason="this kernel lacks a wall")


@pytest.mark.parametrize("act", ACTS)
async def test_there_is_no_way_out(plugins, act):
    """The act is refused, and the same process does the next job."""
    if act in UNCOUNTED and DEVICE != "cpu":
        pytest.skip("the GPU's driver needs memory that no limit counts")
    async with compute(*HOSTILE, plugins=plugins, shared=True) as worker:
        _, [ended] = await worker.run("hostile.escape", [Entry("a", b"x")], which=act)
        _, [total] = await worker.run("hostile.sums", [Entry("a", b"\x05")])
    assert bytes(ended.data).decode() == OTHERWISE.get(act, "PermissionError")
    assert total.data[-8:] == (5).to_bytes(8, "little")
