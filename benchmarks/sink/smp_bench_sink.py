"""A processor that only takes what comes: the measurements end where its windows are in its hands."""

import hashlib
import time
from collections.abc import Iterator

import msgspec

from smpd.processors import Context, Output, StreamItem, processor
from smpd.processors.host import host_bytes


class Sink(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters: ``digest`` has every byte hashed, to prove once that they are the right ones."""

    digest: bool = False


_last_job = [""]


@processor("bench.sink", accepts="*", params=Sink, group=True, stream=True)
def sink(items: Iterator[StreamItem], context: Context[Sink]) -> Output | None:
    """How many bytes and entries came, and when the last one was there (CLOCK_MONOTONIC, nanoseconds).

    Of the first object of a job only: what is measured is what goes in.
    """
    size = entries = 0
    hasher = hashlib.sha256()
    for item in items:
        entries += 1
        for window in item:
            size += window.numel()
            if context.params.digest:
                hasher.update(host_bytes(window))
    if context.stream is not None:
        context.stream.synchronize()  # the windows are on the device now, not only on their way
    ready = time.monotonic_ns()
    if _last_job[0] == context.job:
        return None
    _last_job[0] = context.job
    found = {"bytes": size, "entries": entries, "ready_ns": ready, "sha256": hasher.hexdigest()}
    return Output("sink.json", msgspec.json.encode(found), "application/json")
