"""Where in a log's file some of its records begin, so that one in the middle is found without reading all before it."""

from bisect import bisect_right, insort
from itertools import islice
from typing import NamedTuple

from .files import read_lines

MARK_RECORDS = 1024  # one of so many is marked


class Mark(NamedTuple):
    """Where a record begins, in bytes."""

    record: int
    offset: int


class Marks:
    """The marks of a log, in order. Not safe from several threads."""

    def __init__(self) -> None:
        self.all = [Mark(0, 0)]

    def begins(self, record: int, offset: int) -> None:
        """The next record begins here; it is marked if it is its turn."""
        if record % MARK_RECORDS == 0:
            self.add(Mark(record, offset))

    def add(self, mark: Mark) -> None:
        """Take a mark in, wherever it belongs."""
        if self.before(mark.record) != mark:
            insort(self.all, mark)

    def before(self, record: int) -> Mark:
        """The last mark that is not after a record."""
        return self.all[bisect_right(self.all, record, key=_record_of) - 1]


def read_from(path: str, mark: Mark, end: int, since: int, limit: int) -> tuple[list[bytes], Mark]:
    """Up to ``limit`` lines from record ``since`` on, which is not before the mark, and the mark of what follows."""
    lines = read_lines(path, mark.offset, end)
    passed = sum(map(len, islice(lines, since - mark.record)))
    found = list(islice(lines, limit))
    return found, Mark(since + len(found), mark.offset + passed + sum(map(len, found)))


def _record_of(mark: Mark) -> int:
    return mark.record
