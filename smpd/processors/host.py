"""The bytes of a tensor on the host, without NumPy."""

import ctypes

import torch


def host_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a uint8 tensor as a writable view; of one on a device, a copy.

    The view is valid as long as the tensor (or, on a device, the view itself) is referenced.
    """
    host = tensor.contiguous().cpu()
    array = (ctypes.c_ubyte * host.numel()).from_address(host.data_ptr()) if host.numel() else (ctypes.c_ubyte * 0)()
    array._tensor = host  # type: ignore[attr-defined]  # keeps the memory alive as long as the view
    return memoryview(array).cast("B")
