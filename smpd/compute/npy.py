"""Tensors as NumPy's ``.npy`` format, version 1.0 (numpy.lib.format), without NumPy."""

import struct

import torch

_DESCR = {
    torch.bool: "|b1",
    torch.uint8: "|u1",
    torch.int8: "|i1",
    torch.uint16: "<u2",
    torch.int16: "<i2",
    torch.uint32: "<u4",
    torch.int32: "<i4",
    torch.uint64: "<u8",
    torch.int64: "<i8",
    torch.float16: "<f2",
    torch.float32: "<f4",
    torch.float64: "<f8",
    torch.complex64: "<c8",
    torch.complex128: "<c16",
}
_ALIGN = 64


def as_npy(tensor: torch.Tensor) -> tuple[bytes, torch.Tensor]:
    """Return the header and the body, uint8 and flat, on the tensor's device. bfloat16 becomes float32.

    Raises:
        ValueError: ``.npy`` has no such type, or the tensor is sparse or quantized.
    """
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError("is a sparse or quantized tensor; make it dense")
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    descr = _DESCR.get(tensor.dtype)
    if descr is None:
        raise ValueError(f"is a tensor of {tensor.dtype}, which .npy does not have")
    shape = "".join(f"{size}, " for size in tensor.shape).rstrip(" " if tensor.ndim == 1 else ", ")
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}"
    padding = -(10 + len(text) + 1) % _ALIGN
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + padding + 1) + text.encode() + b" " * padding + b"\n"
    # resolve_conj and resolve_neg: a lazily conjugated tensor's memory is not what it says.
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return header, flat.view(torch.uint8)
