"""``digest`` through the real process: bytes arrive whole and in order, and results come back whole."""

import hashlib
import json
import random

import anyio
from compute.harness import BUILT_IN, Entry, compute

SLOT = 4096


def _expected(entries):
    return [{"name": e.name, "sha256": hashlib.sha256(e.data).hexdigest(), "size": len(e.data)} for e in entries]


async def test_digest_equals_hashlib_at_all_boundaries(tmp_path):
    """Entries of all sizes round a slot's, empty ones included, hash to what hashlib says, however chunks fall."""
    generator = random.Random(7)
    near = [0, 1, SLOT - 1, SLOT, SLOT + 1, 2 * SLOT - 1, 2 * SLOT, 3 * SLOT + 1]
    async with compute("digest", slots=(3, SLOT, 2, 512)) as worker:
        assert list(worker.ready.processors[0].params) == []
        for chunk_bytes in (SLOT, 1000, 1):
            worker.chunk_bytes = chunk_bytes
            sizes = (
                [*near, *(generator.randrange(3 * SLOT) for _ in range(8))] if chunk_bytes > 1 else [0, 3, 0, 5, 1, 0]
            )
            generator.shuffle(sizes)
            entries = [Entry(f"folder/{i}", generator.randbytes(size)) for i, size in enumerate(sizes)]
            done, results = await worker.run("digest", entries)
            assert [r.name for r in results] == ["digests.json", "SHA256SUMS"]
            assert json.loads(results[0].data) == _expected(entries)
            assert (done.entries, done.outputs, done.device) == (len(entries), 2, worker.ready.device)
            assert done.peak_rss_bytes > 50 << 20
            # More chunks than the result ring has slots: each was used again.
            assert results[0].chunks == -(-len(results[0].data) // 512)
    folder = tmp_path / "folder"
    folder.mkdir()
    for entry in entries:
        (tmp_path / entry.name).write_bytes(entry.data)
    await anyio.run_process(["sha256sum", "--strict", "-c"], input=bytes(results[1].data), cwd=tmp_path, check=True)


async def test_slots_come_back_in_order_and_are_reused():
    """Each chunk's slot is freed once, in the order of the plaintext, and far more chunks than slots go through."""
    entry = Entry("long", random.Random(8).randbytes(50 * SLOT))
    async with compute("digest", slots=(2, SLOT, 2, SLOT)) as worker:
        _, results = await worker.run("digest", [entry])
        assert json.loads(results[0].data) == _expected([entry])
        assert len(worker.freed) == 50
        assert set(worker.freed) == {0, 1}


async def test_many_small_entries():
    """A bundle of more entries than one message lists is taken whole."""
    entries = [Entry(f"{i}", bytes([i % 256]) * (i % 50)) for i in range(2500)]
    async with compute(*BUILT_IN, shared=True) as worker:
        done, results = await worker.run("digest", entries)
        assert json.loads(results[0].data) == _expected(entries)
        assert done.entries == 2500
