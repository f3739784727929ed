"""One run, on the processor thread: entries are handed to the processor, its results to the ring, its faults named.

What went wrong is told without data: an exception's type and the line of the plugin's code, never its text, since
``ValueError: invalid literal: 'Doe^Jane'`` would put a patient into the job table.
"""

import dataclasses
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch

from smp_proto.errors import ProcessorError, ResourceError, SmpError
from smpd.compute.device import Device, is_fatal, is_memory_error
from smpd.compute.feed import Clock, Feed, Inputs, Results, Stopped
from smpd.links.computing import InputEntry, InputObject
from smpd.processors import Context, Item, Output, Processor, Refused, StreamItem

_TEXT_MAX = 300
_KINDS = 5  # media types that a refusal names
Numbered = list[tuple[int, InputEntry]]


@dataclasses.dataclass
class Outcome:
    """How a run ended. ``fatal``: the process is of no more use."""

    error: SmpError | None = None
    entries: int = 0
    outputs: int = 0
    fatal: bool = False


class Job:
    """One run of one processor.

    Args:
        clock: started anew with each object.
        objects: what comes; the plaintext is read to its end whatever the processor takes of it.
        single: there is one object only, so that what the processor cannot take is refused before it comes.
    """

    def __init__(
        self,
        processor: Processor,
        context: Context[Any],
        objects: Inputs,
        device: Device,
        clock: Clock,
        *,
        single: bool,
    ) -> None:
        self._processor = processor
        self._context = context
        self._objects = objects
        self._single = single
        self._device = device
        self._clock = clock
        self._seen = self._taken = self._number = 0  # entries, and the one at hand
        self._kinds: set[str] = set()

    def run(self, feed: Feed, results: Results) -> Outcome:
        """Do it all; raises nothing, and leaves no tensor of the job behind."""
        outcome = Outcome()
        try:
            with self._device.current(), torch.no_grad():
                for number, item in enumerate(self._objects, 1):
                    self._clock.start()
                    self._call(number, item, feed, results)
                if not self._taken:
                    raise self._none_taken()
                feed.skip_to(self._objects.plain_bytes)
            outcome.entries, outcome.outputs = self._taken, results.count
        except Stopped:
            outcome.error = SmpError("cancelled", "the run was ended")
        except SmpError as error:
            outcome.error = SmpError.from_body(error.body())  # without the frames, which hold tensors
        except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are the processor's too
            outcome.error, outcome.fatal = self._explain(error), is_fatal(error)
        return self._clean_up(outcome)

    def _call(self, number: int, item: InputObject, feed: Feed, results: Results) -> None:
        processor = self._processor
        taken = {kind for kind in {entry.media_type for entry in item.entries} if processor.takes(kind)}
        numbered = enumerate(item.entries, self._seen + 1)
        accepted = [(at, entry) for at, entry in numbered if entry.media_type in taken]
        self._seen += len(item.entries)
        self._taken += len(accepted)
        if not accepted:
            self._kinds.update(entry.media_type for entry in item.entries[:_KINDS])
            if self._single:
                raise self._none_taken()
            return
        results.prefix, results.object, results.entry = item.prefix, number, 0
        feed.expect([entry for _, entry in accepted])
        if processor.group and processor.stream:
            _put_all(results, processor(self._streams(accepted, feed), self._context))
        elif processor.group:
            _put_all(results, processor(self._load_all(accepted, feed), self._context))
        else:
            load: Callable[[Feed, InputEntry], Item | StreamItem] = _stream if processor.stream else self._load
            for at, entry in accepted:
                self._number = results.entry = at
                _put_all(results, processor(load(feed, entry), self._context))

    def _none_taken(self) -> ProcessorError:
        processor, kinds = self._processor, sorted(self._kinds)[:_KINDS]
        return ProcessorError(
            "processor_input",
            f"processor {processor.name} takes {processor.accepts}, and none of {self._seen} entries is that",
            hint=f"the entries are {', '.join(kinds)}" if kinds else "the object is empty",
        )

    def _streams(self, accepted: Numbered, feed: Feed) -> Iterator[StreamItem]:
        for number, entry in accepted:
            self._number = number
            yield _stream(feed, entry)

    def _load(self, feed: Feed, entry: InputEntry) -> Item:
        data = self._device.entry.take(entry.size)
        feed.load(entry.offset, data)
        return Item(entry.name, entry.media_type, entry.attributes, data, entry.size)

    def _load_all(self, accepted: Numbered, feed: Feed) -> list[Item]:
        data = self._device.entry.take(sum(entry.size for _, entry in accepted))
        items, start = [], 0
        for _, entry in accepted:
            part = data[start : start + entry.size]
            feed.load(entry.offset, part)
            items.append(Item(entry.name, entry.media_type, entry.attributes, part, entry.size))
            start += entry.size
        return items

    def _clean_up(self, outcome: Outcome) -> Outcome:
        try:
            self._device.end_job()
        except Exception as error:  # noqa: BLE001 - whatever it is, this device can no longer be cleaned
            outcome.fatal = True
            outcome.error = outcome.error or self._explain(error)
        return outcome

    def _explain(self, error: BaseException) -> SmpError:
        where = f"processor {self._processor.name}"
        if self._number:
            where += f", at entry {self._number}" + (f" of {self._seen}" if self._single else "")
        if isinstance(error, Refused):
            text = " ".join(str(error).split())[:_TEXT_MAX]
            return ProcessorError("processor_failed", f"{where}: {text}", hint="nothing was changed")
        if is_memory_error(error):
            return ResourceError(
                "device_memory",
                f"{where}: {self._device.name} has too little memory",
                hint="use a processor that reads windows, or raise compute.memory_bytes",
            )
        return ProcessorError(
            "processor_failed",
            f"{where}: {type(error).__name__[:80]} at {_line(error, self._processor)}",
            hint="the exception's own text is not shown, as it may hold data; report it to the processor's author",
        )


def _stream(feed: Feed, entry: InputEntry) -> StreamItem:
    windows = feed.windows(entry.offset, entry.size)
    return StreamItem(entry.name, entry.media_type, entry.attributes, entry.size, windows)


def _put_all(results: Results, returned: Any) -> None:
    if returned is None:
        return
    if isinstance(returned, Output) or not hasattr(returned, "__iter__"):
        results.put(returned)
        return
    for output in returned:
        results.put(output)


def _line(error: BaseException, processor: Processor) -> str:
    """The innermost line of the plugin's own files, else of any."""
    home = os.path.dirname(getattr(getattr(processor.function, "__code__", None), "co_filename", ""))
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if home and os.path.dirname(frame.filename) == home] or frames
    return f"{os.path.basename(own[-1].filename)}:{own[-1].lineno}" if own else "an unknown line"
