"""Rates and quiet hours by the time of day, as the configuration writes them. Pure; the clock is the caller's.

An entry is ``DAYS FROM-TO WHAT``: ``mon-fri 07:00-19:00 20 MB/s``, ``daily 23:30-00:30 quiet``. The hours are those
that a clock on the wall shows: where daylight-saving time leaves an hour out, nothing holds in it, and where it repeats
one, what holds in it holds twice. Hours that go past midnight belong to the day on which they begin.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from smp_proto.errors import UsageError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 1440
AHEAD_DAYS = 8  # a week, and a day for what began the day before
EXAMPLES = "mon-fri 07:00-19:00 20 MB/s, sun 02:00-04:00 quiet, daily 22:00-06:00 5 requests/s"
_ENTRY = re.compile(r"(\S+) (\d\d):(\d\d)-(\d\d):(\d\d) (.+)")
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?) ?([a-zA-Z]+)/s")
_UNITS = {
    "B": 1.0,
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
    "kbit": 1e3 / 8,
    "Mbit": 1e6 / 8,
    "Gbit": 1e9 / 8,
}


class Rule(NamedTuple):
    """What holds at a moment. A rate without a limit is infinite."""

    bytes_per_s: float = math.inf
    requests_per_s: float = math.inf
    quiet: bool = False


class Entry(NamedTuple):
    """One line of a schedule. Minutes are those of the day; ``end`` is before ``start`` where midnight lies between."""

    days: frozenset[int]
    start: int
    end: int
    bytes_per_s: float | None = None
    requests_per_s: float | None = None
    quiet: bool = False

    def covers(self, weekday: int, minute: int) -> bool:
        """Whether it holds in this minute of this day, 0 being Monday."""
        if self.start < self.end:
            return weekday in self.days and self.start <= minute < self.end
        return (weekday in self.days and minute >= self.start) or ((weekday - 1) % 7 in self.days and minute < self.end)


def parse_entry(text: str) -> Entry:
    """Read an entry.

    Raises:
        UsageError: ``bad_config``, saying what is wrong with it.
    """
    found = _ENTRY.fullmatch(" ".join(text.split()))
    if not found:
        raise _bad(text, "it is DAYS FROM-TO WHAT")
    days, *clock, what = found.groups()
    hours, minutes, end_hours, end_minutes = map(int, clock)
    start, end = hours * 60 + minutes, end_hours * 60 + end_minutes
    if minutes > 59 or end_minutes > 59 or start >= DAY_MINUTES or end > DAY_MINUTES:
        raise _bad(text, "hours go from 00:00 to 24:00")
    if start == end:
        raise _bad(text, "it begins when it ends; a whole day is 00:00-24:00")
    # Minute 0 of the next day is where both end, 24:00 and 00:00.
    entry = Entry(_days(days, text), start, end % DAY_MINUTES if end < start else end)
    if what == "quiet":
        return entry._replace(quiet=True)
    if what == "unlimited":
        return entry._replace(bytes_per_s=math.inf)
    rate = _RATE.fullmatch(what)
    plain = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?) requests/s", what)
    if plain and float(plain[1]) > 0:
        return entry._replace(requests_per_s=float(plain[1]))
    if rate and rate[2] in _UNITS and float(rate[1]) > 0:
        return entry._replace(bytes_per_s=float(rate[1]) * _UNITS[rate[2]])
    raise _bad(text, "it says quiet, unlimited, a number of requests/s, or a rate as 20 MB/s, 5 MiB/s, 100 Mbit/s")


def _days(text: str, entry: str) -> frozenset[int]:
    if text == "daily":
        return frozenset(range(7))
    first, _, last = text.partition("-")
    if first not in DAYS or (last or first) not in DAYS:
        raise _bad(entry, f"its days are daily, one of {' '.join(DAYS)}, or two of them as mon-fri")
    begin, count = DAYS.index(first), (DAYS.index(last or first) - DAYS.index(first)) % 7 + 1
    return frozenset((begin + each) % 7 for each in range(count))


def _bad(text: str, why: str) -> UsageError:
    return UsageError("bad_config", f"{text[:80]!r} is no time: {why}", hint=f"for example: {EXAMPLES}")


class Schedule:
    """What holds when.

    Args:
        base: what holds where no entry does.
        entries: of those that hold at a moment the first that names a rate sets it; any that is quiet is heard.
        zone: whose clocks; the system's when None.
    """

    def __init__(self, base: Rule, entries: Sequence[Entry] = (), zone: ZoneInfo | None = None) -> None:
        self._base = base
        self._entries = tuple(entries)
        self._zone = zone
        self._known = math.inf, math.inf, math.inf  # a stretch in which one rule holds, and when it ends

    def at(self, when: float) -> Rule:
        """What holds at a time, in seconds since 1970 (UTC)."""
        if not self._entries:
            return self._base
        local = datetime.fromtimestamp(when, self._zone)
        weekday, minute = local.weekday(), local.hour * 60 + local.minute
        held = [entry for entry in self._entries if entry.covers(weekday, minute)]
        return Rule(
            next((each.bytes_per_s for each in held if each.bytes_per_s is not None), self._base.bytes_per_s),
            next((each.requests_per_s for each in held if each.requests_per_s is not None), self._base.requests_per_s),
            any(each.quiet for each in held),
        )

    @property
    def limits_bytes(self) -> bool:
        """Whether there are hours in which bytes are limited."""
        rates = (self._base.bytes_per_s, *(each.bytes_per_s for each in self._entries if each.bytes_per_s is not None))
        return min(rates) < math.inf

    def clock(self, when: float) -> str:
        """A time as a clock on the wall shows it, as ``mon 06:00``."""
        local = datetime.fromtimestamp(when, self._zone)
        return f"{DAYS[local.weekday()]} {local.hour:02}:{local.minute:02}"

    def until_change(self, when: float) -> float:
        """Seconds until something else holds; infinite where that is not within a week."""
        begin, until, end = self._known
        if not begin <= when < until:
            rule = self.at(when)
            moments = sorted({each for each in self._moments(when) if each > when})
            end = next((each for each in moments if self.at(each) != rule), math.inf)
            self._known = when, min(end, when + DAY_MINUTES * 60.0), end
        return end - when

    def _moments(self, when: float) -> Iterator[float]:
        """When the rule may change: where a clock on the wall shows an entry's hours, and where it is set."""
        edges = {0, *(each.start for each in self._entries), *(each.end % DAY_MINUTES for each in self._entries)}
        if not self._entries:
            return
        today = datetime.fromtimestamp(when, self._zone).replace(hour=0, minute=0, second=0, microsecond=0)
        for day in range(-1, AHEAD_DAYS + 1):
            for edge in edges:
                local = today.replace(tzinfo=None) + timedelta(days=day, minutes=edge)
                for fold in (0, 1):
                    yield local.replace(tzinfo=self._zone, fold=fold).timestamp()
        yield from self._shifts(when, when + AHEAD_DAYS * 86_400.0)

    def _shifts(self, start: float, end: float) -> Iterator[float]:
        """When the clock on the wall is set, to the minute; twice a day would be missed, and nobody does that."""
        step = 43_200.0
        at = start
        while at < end:
            low, high = at, at + step
            if self._offset(low) != self._offset(high):
                low, high = math.floor(low / 60), math.ceil(high / 60)
                before = self._offset(low * 60.0)
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (middle, high) if self._offset(middle * 60.0) == before else (low, middle)
                yield high * 60.0
            at += step

    def _offset(self, when: float) -> timedelta:
        local = datetime.fromtimestamp(when, self._zone)
        return local.replace(tzinfo=UTC) - datetime.fromtimestamp(when, UTC)


def parse_entries(texts: Iterable[str]) -> list[Entry]:
    """Read a schedule. Raises as :func:`parse_entry`."""
    return [parse_entry(text) for text in texts]


def check_times(zone: str, schedules: Mapping[str, Iterable[str]]) -> None:
    """See that a time zone is known, the empty one being the system's, and that schedules, by their names, can be read.

    Raises:
        UsageError: ``bad_config``, naming which.
    """
    for name, texts in schedules.items():
        try:
            parse_entries(texts)
        except UsageError as error:
            raise UsageError("bad_config", f"{name}.times: {error.message}", hint=error.hint) from None
    try:
        known = not zone or ZoneInfo(zone).key == zone
    except (ZoneInfoNotFoundError, ValueError, OSError):
        known = False
    if not known:
        hint = "write one as Europe/Berlin, or leave it empty for the system's; the package tzdata has them"
        raise UsageError("bad_config", f"limits.zone is {zone!r}, which is no time zone here", hint=hint)
