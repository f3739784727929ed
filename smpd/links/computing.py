"""What smpd asks of a compute process, and how plaintext and results flow.

The first request is :class:`Setup`, with two descriptors (plain ring, result ring), answered by :class:`Ready`.
Then one :class:`Run` at a time: smpd sends a :class:`Chunk` for each filled slot of the plain ring, in the order
of the bundle's plaintext and without gaps; the process answers each with :class:`Freed` as soon as the slot may
be reused.
When it has results it fills slots of the result ring, which it owns, and announces them; smpd answers each
:class:`OutputChunk` with :class:`OutputFreed`. The reply that ends the exchange is :class:`Done`.
"""

from typing import Any

import msgspec

from smp_proto.control import ProcessorInfo


class Request(msgspec.Struct, tag_field="op"):
    """Base of the requests."""


class Setup(Request, tag="setup"):
    """Rings, device and limits. Descriptors: plain ring, result ring. Reply: Ready. Errors: sandbox, bad_config."""

    slots: int
    slot_bytes: int
    result_slots: int
    result_slot_bytes: int
    processors: list[str]
    device: str = "auto"
    sandbox: str = "auto"
    memory_bytes: int = 0


class Ready(msgspec.Struct):
    """What the process is: for ``doctor``, ``status`` and ``processors``.

    ``sandbox`` maps each wall (``no_new_privs``, ``seccomp``, ``landlock``, ``limits``) to ``on`` or to why it is not.
    """

    device: str
    device_name: str
    torch: str
    pinned: bool
    sandbox: dict[str, str]
    processors: list[ProcessorInfo]
    notes: list[str] = []


class InputEntry(msgspec.Struct):
    """One entry of the bundle: bytes ``[offset, offset + size)`` of the plaintext."""

    name: str
    offset: int
    size: int
    media_type: str
    attributes: dict[str, Any] = {}


class Run(Request, tag="run"):
    """Run a processor over all entries. Reply: Done.

    Errors: processor_*, bad_parameter, no_such_processor, device_memory.

    Entries may be more than one frame holds: they come as Entries messages before the first Chunk.
    """

    job: str
    processor: str
    params: dict[str, Any]
    entries: int
    plain_bytes: int
    timeout_s: float


class ToCompute(msgspec.Struct, tag_field="m"):
    """Base of DATA from smpd."""


class Entries(ToCompute, tag="entries"):
    """The next entries, in order."""

    entries: list[InputEntry]


class Chunk(ToCompute, tag="chunk"):
    """Bytes ``[offset, offset + length)`` of the plaintext are in ``slot`` of the plain ring, from its start."""

    slot: int
    offset: int
    length: int


class OutputFreed(ToCompute, tag="output-freed"):
    """A slot of the result ring has been taken over."""

    slot: int


class FromCompute(msgspec.Struct, tag_field="m"):
    """Base of DATA to smpd."""


class Freed(FromCompute, tag="freed"):
    """A slot of the plain ring may be reused."""

    slot: int


class OutputBegin(FromCompute, tag="output-begin"):
    """A result entry starts. smpd checks the name as it would a sender's."""

    name: str
    media_type: str
    attributes: dict[str, Any] = {}


class OutputChunk(FromCompute, tag="output-chunk"):
    """The next ``length`` bytes of the result entry are in ``slot`` of the result ring."""

    slot: int
    length: int


class OutputEnd(FromCompute, tag="output-end"):
    """The result entry is whole."""


class Done(msgspec.Struct):
    """The run's end: what it did and the most memory it used."""

    entries: int
    outputs: int
    device: str
    peak_rss_bytes: int
    seconds: float


AnyRequest = Setup | Run
AnyToCompute = Entries | Chunk | OutputFreed
AnyFromCompute = Freed | OutputBegin | OutputChunk | OutputEnd
