"""``tensor.stats`` and the ``.npy`` writer, against NumPy."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from compute.harness import BUILT_IN, Entry, compute
from hypothesis import given
from hypothesis import strategies as st

from smpd.compute import npy
from smpd.compute.npy import as_npy
from smpd.processors import Context, Item, Refused
from smpd.processors.stats import Stats, stats

DTYPES = ["?", "u1", "i1", "<u2", ">i2", "<u4", ">i4", "<u8", "<i8", "<f2", ">f4", "<f8", ">f8"]


def _npy(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def _call(data, bins=16):
    item = Item("a", "", {}, torch.tensor(list(data), dtype=torch.uint8), len(data))
    return json.loads(stats(item, Context(torch.device("cpu"), Stats(bins))).data)


@pytest.mark.parametrize("dtype", DTYPES)
def test_stats_equal_numpy(dtype):
    """Shape, moments and histogram of each type and byte order are NumPy's."""
    array = (np.random.default_rng(3).normal(40, 9, (7, 11, 13))).astype(dtype)
    found = _call(_npy(np.asfortranarray(array), version=(2, 0)), bins=9)
    wide = array.astype(float)
    counts, edges = np.histogram(wide, 9)
    assert (found["shape"], found["count"], found["finite"]) == ([7, 11, 13], 1001, 1001)
    assert found["dtype"] == str(array.dtype.newbyteorder("="))
    assert [found[key] for key in ("min", "max")] == [wide.min(), wide.max()]
    assert [found[key] for key in ("mean", "std")] == pytest.approx([wide.mean(), wide.std()])
    assert (found["histogram"]["low"], found["histogram"]["high"]) == (edges[0], edges[-1])
    assert np.abs(np.cumsum(found["histogram"]["counts"]) - np.cumsum(counts)).max() <= 1  # a value on an edge
    assert sum(found["histogram"]["counts"]) == 1001


def test_what_is_not_finite_is_left_out():
    """NaN and infinities are in the count only; of none or nothing there is no mean."""
    found = _call(_npy(np.array([1.0, np.nan, 3.0, np.inf])))
    assert (found["count"], found["finite"], found["mean"]) == (4, 2, 2.0)
    assert "mean" not in _call(_npy(np.array([np.nan])))
    assert _call(b"")["count"] == 0
    assert _call(_npy(np.array(5.0)))["shape"] == []
    assert _call(_npy(np.empty((0, 3), ">f4")))["shape"] == [0, 3]


@given(st.binary(max_size=40), st.integers(0, 200))
def test_a_damaged_header_is_refused(noise, at):
    """Whatever follows the magic number, the answer is a summary or a refusal."""
    good = _npy(np.arange(6))
    for data in (b"\x93NUMPY" + noise, good[:at] + noise + good[at + len(noise) :], good[:at]):
        with contextlib.suppress(Refused):
            assert _call(data)["count"] >= 0


@pytest.mark.parametrize("shape", ["(1e999,)", "(-1e999,)", "(1e999 - 1e999,)", "(1j,)", "('x',)", "(-1,)", "7", "{}"])
def test_a_shape_that_is_none_is_refused(shape):
    """A header of Python's own values that are no sizes is refused as damaged or as of another length."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    with pytest.raises(Refused):
        _call(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)


@pytest.mark.parametrize(
    "dtype",
    [str(dtype).removeprefix("torch.") for dtype in npy._DESCR],
)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (2, 0, 3), (1, 2, 3, 4)])
def test_tensors_are_written_as_numpy_reads_them(dtype, shape):
    """The ``.npy`` of a tensor, transposed or not, is what NumPy loads as the same array, its data aligned to 64."""
    tensor = (torch.arange(int(np.prod(shape))).reshape(shape) * 3 % 7).to(getattr(torch, dtype))
    tensor = tensor.mT if len(shape) >= 2 else tensor
    header, body = as_npy(tensor)
    assert len(header) % 64 == 0
    array = np.load(io.BytesIO(header + bytes(body.numpy())), allow_pickle=False)
    assert array.dtype == dtype
    assert array.shape == tuple(tensor.shape)
    assert (array == tensor.numpy()).all()


def test_lazy_and_unknown_tensors():
    """A lazily conjugated tensor is resolved, bfloat16 widened exactly, a sparse one refused."""
    header, body = as_npy(torch.tensor([1 + 2j]).conj())
    assert np.load(io.BytesIO(header + bytes(body.numpy())))[0] == 1 - 2j
    header, body = as_npy(torch.tensor([1.5], dtype=torch.bfloat16))
    assert np.load(io.BytesIO(header + bytes(body.numpy()))).tolist() == [1.5]
    with pytest.raises(ValueError, match="dense"):
        as_npy(torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match=r"\.npy does not have"):
        as_npy(torch.zeros(1, dtype=torch.float8_e4m3fn))


async def test_stats_in_the_process():
    """Each entry gets a summary of its own."""
    array = np.arange(10_000, dtype=np.float32)
    async with compute(*BUILT_IN, shared=True) as worker:
        assert worker.ready.processors[1].params["$defs"]["Stats"]["properties"]["bins"]["maximum"] == 4096
        entries = [Entry("v.npy", _npy(array)), Entry("raw", b"\x00\xff")]
        done, results = await worker.run("tensor.stats", entries, bins=2)
        assert [r.name for r in results] == ["v.npy.stats.json", "raw.stats.json"]
        assert json.loads(results[0].data)["histogram"]["counts"] == [5000, 5000]
        assert json.loads(results[1].data)["mean"] == 127.5
        assert done.outputs == 2
        error = await worker.error("tensor.stats", [Entry("v.npy", _npy(array)[:-1])])
        assert (error.code, "shorter or longer" in error.message) == ("processor_failed", True)
