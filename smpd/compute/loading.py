"""Finding the processors that the configuration lists, and checking the parameters of a run.

Finding reads the metadata of installed distributions and runs none of their code; loading does.
"""

import difflib
import re
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import msgspec

from smp_proto.control import ProcessorInfo
from smp_proto.errors import NotFoundError, UsageError
from smpd.processors import Processor

GROUP = "smpd.processors"


def find(names: Iterable[str]) -> list[EntryPoint]:
    """Return the entry points of these processors, in order.

    Raises:
        NotFoundError: ``no_such_processor``.
        UsageError: ``bad_config``, two distributions offer a processor of this name.
    """
    installed: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        known = installed.setdefault(point.name, [])
        if all((point.value, _distribution(point)) != (other.value, _distribution(other)) for other in known):
            known.append(point)
    found = []
    for name in names:
        points = installed.get(name, [])
        if not points:
            raise no_such_processor(name, installed, "install the distribution that has it, or do not list it")
        if len(points) > 1:
            offers = " and ".join(sorted(_distribution(point) for point in points))
            raise UsageError("bad_config", f"processor {name} is offered by {offers}", hint="uninstall one of them")
        found.append(points[0])
    return found


def no_such_processor(name: str, known: Iterable[str], hint: str = "") -> NotFoundError:
    """The error for a name that is not there, with the names nearest to it."""
    near = difflib.get_close_matches(name, list(known), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else hint
    return NotFoundError("no_such_processor", f"no processor is called {name!r}", hint=hint)


def load(point: EntryPoint) -> Processor:
    """Import a processor.

    Raises:
        UsageError: ``bad_config``, it cannot be imported or is no processor of that name.
    """
    where = f"processor {point.name} of {_distribution(point)}"
    try:
        loaded = point.load()
    except Exception as error:  # noqa: BLE001 - a plugin's import may raise anything
        hint = "install what it needs" if isinstance(error, ImportError) else "report it to its author"
        message = f"{where} cannot be imported: {type(error).__name__}: {error}"
        raise UsageError("bad_config", message, hint=f"{hint}, or do not list it in the configuration") from None
    if not isinstance(loaded, Processor) or loaded.name != point.name:
        hint = f'the entry point must name a function decorated with @processor("{point.name}")'
        raise UsageError("bad_config", f"{where} is not what its entry point says", hint=hint)
    return loaded


def describe(point: EntryPoint, processor: Processor) -> ProcessorInfo:
    """What is told of a processor; ``params`` is the JSON schema of its parameters."""
    schema = msgspec.json.schema(processor.params) if processor.params else {}
    info = ProcessorInfo(processor.name, processor.accepts, _distribution(point), processor.summary)
    return msgspec.structs.replace(info, group=processor.group, stream=processor.stream, params=schema)


def convert_params(processor: Processor, given: dict[str, Any]) -> Any:
    """Check the parameters of a run and return them as the processor's own type, or None when it has none.

    Raises:
        UsageError: ``bad_parameter``, naming processor and parameter and what was wanted.
    """
    names = [field.encode_name for field in msgspec.structs.fields(processor.params)] if processor.params else []
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            known = f"it takes {', '.join(names)}" if names else "it takes none"
            raise UsageError(
                "bad_parameter",
                f"processor {processor.name} has no parameter {name!r}",
                hint=f"did you mean {near[0]}?" if near else known,
            )
    if processor.params is None:
        return None
    try:
        return msgspec.convert(given, type=processor.params)
    except msgspec.ValidationError as error:
        raise _bad_parameter(processor, str(error)) from None


def _bad_parameter(processor: Processor, complaint: str) -> UsageError:
    wanted, _, path = complaint.partition(" - at `")
    name = re.match(r"\$\.([^.\[`]+)", path)
    missing = re.search(r"missing required field `([^`]+)`", wanted)
    if missing:
        message = f"parameter {missing[1]} of processor {processor.name} is missing"
    elif name:
        message = f"parameter {name[1]} of processor {processor.name}: {wanted[:1].lower() + wanted[1:]}"
    else:
        message = f"the parameters of processor {processor.name}: {wanted[:1].lower() + wanted[1:]}"
    return UsageError("bad_parameter", message, hint=f"its parameters are shown by: smpctl processors {processor.name}")


def _distribution(point: EntryPoint) -> str:
    return str(point.dist.name) if point.dist else ""
