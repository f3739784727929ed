"""What is told, and how much of it is gathered into one message."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from smp_proto.audit.record import parse_line

_KINDS = {"quarantine.add": "quarantine", "job.failed": "failure"}
_JOBS_MAX = 20
_CODES_MAX = 50


class Condition(NamedTuple):
    """Something that is wrong for as long as it is: its kind, and a sentence with what to type."""

    kind: str
    text: str


class Told(msgspec.Struct):
    """One thing in a message: ``count`` of a kind, between two times (RFC 3339), or a condition with its ``text``."""

    kind: str
    count: int = 1
    codes: dict[str, int] = {}
    jobs: list[str] = []
    first: str = ""
    last: str = ""
    text: str = ""


class Message(msgspec.Struct):
    """What the command reads on standard input. ``box`` is the fingerprint of the box's key."""

    box: str
    events: list[Told]
    version: int = 1
    test: bool = False


class Gathered:
    """What happened since something was told last; of bounded size, whatever happened."""

    def __init__(self) -> None:
        self._found: dict[str, Told] = {}
        self._codes: dict[str, Counter[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, lines: Iterable[bytes]) -> None:
        """Take what matters out of lines of the audit log."""
        for line in lines:
            record = parse_line(line)
            kind = _KINDS.get(record.event)
            if kind is None:
                continue
            told = self._found.setdefault(kind, Told(kind, 0, jobs=[], first=record.time))
            told.count += 1
            told.last = record.time
            if record.job and record.job not in told.jobs and len(told.jobs) < _JOBS_MAX:
                told.jobs.append(record.job)
            codes = self._codes.setdefault(kind, Counter())
            code = str(record.fields.get("reason", "")) or record.outcome or "unknown"
            codes[code if code in codes or len(codes) < _CODES_MAX else "other"] += 1

    def told(self) -> list[Told]:
        """Everything, a kind each."""
        return [msgspec.structs.replace(each, codes=dict(self._codes[kind])) for kind, each in self._found.items()]
