"""What smpd asks of a compute process, and how plaintext and results flow.

The first request is :class:`Setup`, with two descriptors (plain ring, result ring), answered by :class:`Ready`.
Then one :class:`Run` at a time, and a :class:`Check` whenever smpd likes. The plaintext of a run is that of one object,
or of several one after the other: smpd names their entries in :class:`Objects`, each before the first byte of it, and
sends a :class:`Chunk` for each filled slot of the plain ring, in order and without gaps; the process answers each with
:class:`Freed` as soon as the slot may be reused. :class:`Finish` says that all was sent.
When it has results it fills slots of the result ring, which it owns, and announces them; smpd answers each
:class:`OutputChunk` with :class:`OutputFreed`. The reply that ends the exchange is :class:`Done`. It comes behind the
last chunk and waits for no answer to it: smpd asks for the next run once it has taken all results of this one, and
zeroes both rings.
"""

from typing import Annotated, Any

import msgspec

from smp_proto.control import ProcessorInfo

# A plugin may answer in place of the process: what is shown to everybody is no longer than such a thing is.
Short = Annotated[str, msgspec.Meta(max_length=256)]
TEXT_MAX = 1000
Text = Annotated[str, msgspec.Meta(max_length=TEXT_MAX)]
PROCESSORS_BYTES_MAX = 256 << 10  # of all that is told of the processors of one distribution


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
    ``processors`` take at most :data:`PROCESSORS_BYTES_MAX`.
    """

    device: Short
    device_name: Short
    torch: Short
    pinned: bool
    sandbox: Annotated[dict[Short, Text], msgspec.Meta(max_length=16)]
    processors: Annotated[list[ProcessorInfo], msgspec.Meta(max_length=256)]
    notes: Annotated[list[Text], msgspec.Meta(max_length=16)] = []


class InputEntry(msgspec.Struct, gc=False):  # no cycle can lead through one, and there may be a million
    """One entry: bytes ``[offset, offset + size)`` of the run's plaintext."""

    name: str
    offset: int
    size: int
    media_type: str
    attributes: dict[str, Any] = {}


class InputObject(msgspec.Struct):
    """An object, or the first or next entries of one: ``more`` follow in the next :class:`InputObject`.

    ``prefix`` goes before the names of its results when the run has several objects.
    """

    prefix: str
    entries: list[InputEntry]
    more: bool = False


class Run(Request, tag="run"):
    """Run a processor over all entries. Reply: Done.

    Errors: processor_*, bad_parameter, no_such_processor, device_memory. ``single`` says that there is one object only;
    ``timeout_s`` is how long the processor may work on one.
    """

    job: str
    processor: str
    params: dict[str, Any]
    timeout_s: float
    single: bool = True


class Check(Request, tag="check"):
    """Whether a run may have these parameters, at any time. Reply: None. Errors: bad_parameter, no_such_processor."""

    processor: str
    params: dict[str, Any]


class ToCompute(msgspec.Struct, tag_field="m"):
    """Base of DATA from smpd."""


class Objects(ToCompute, tag="objects"):
    """The entries of the next objects, in order."""

    objects: list[InputObject]


class Finish(ToCompute, tag="finish"):
    """All objects and chunks were sent; the plaintext is ``plain_bytes`` long."""

    plain_bytes: int


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
    """The run's end: what it did, the most memory it used, and what of the device's tensors still hold."""

    entries: int
    outputs: int
    device: Short
    peak_rss_bytes: int
    seconds: float
    device_bytes: int = 0


AnyRequest = Setup | Run | Check
AnyToCompute = Objects | Chunk | Finish | OutputFreed
AnyFromCompute = Freed | OutputBegin | OutputChunk | OutputEnd
