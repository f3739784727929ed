"""What a processor is, for those who write one, and the built-in ones.

Importing this package imports no torch: it is read by plugin authors' tools as well as by the compute process.
A processor gets tensors and returns tensors or bytes. It sees no path, no key, no network and no other job;
``docs/guides/plugins.md`` is the guide.
"""

from smpd.processors.api import Attributes, Context, Item, Output, Processor, Refused, StreamItem, processor

__all__ = ["Attributes", "Context", "Item", "Output", "Processor", "Refused", "StreamItem", "processor"]
