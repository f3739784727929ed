"""A plugin for SMP in ten lines: every byte of an entry turned into its complement, on the device."""

from smpd.processors import Context, Item, Output, processor


@processor("bytes.invert", accepts="*")
def invert(item: Item, context: Context[None]) -> Output:
    """The complement of every byte, as a .npy array."""
    return Output(f"{item.name}.npy", 255 - item.data)
