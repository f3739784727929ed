"""Text for people: tables, sizes, times. No colour but in ``doctor`` and ``jobs``, and none with NO_COLOR."""

import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec

from smp_proto.control import LimitView, RemoteHealth, SyncView

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_COLOURS = {"ok": "green", "done": "green", "warn": "yellow", "fail": "red", "failed": "red", "quarantined": "red"}


def size(count: float) -> str:
    """Bytes in binary units: 1536 is ``1.5 KiB``."""
    unit = 0
    while count >= 1024 and unit < len(UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} B" if unit == 0 else f"{count:.1f} {UNITS[unit]}"


def duration(seconds: float) -> str:
    """Seconds in the two units that matter."""
    whole = int(seconds)
    for unit, below, length, short in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= length:
            rest = whole % length // short
            return f"{whole // length} {unit} {rest} {below}" if rest else f"{whole // length} {unit}"
    return f"{seconds:.1f} s" if 0 < seconds < 10 else f"{whole} s"


def ago(when: float) -> str:
    """How long ago."""
    return f"{duration(max(0.0, time.time() - when))} ago" if when else ""


def moment(when: float) -> str:
    """A time of the local clock."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) if when else ""


def plain(text: str) -> str:
    """Text of others, without what a terminal would obey."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def json_text(value: Any) -> str:
    """A value as JSON in one line; names of files that are not text have their bytes as lone surrogates, escaped."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        import json  # noqa: PLC0415 - hardly ever

        return json.dumps(msgspec.to_builtins(value), separators=(",", ":"))


def state(word: str) -> str:
    """A state, coloured on a terminal that wants colour."""
    colour = _COLOURS.get(word)
    if colour is None or "NO_COLOR" in os.environ or not sys.stdout.isatty():
        return word
    return click.style(word, fg=colour)


def remote_health(health: RemoteHealth) -> str:
    """How a remote is that cannot be asked now: what is wrong, since when, and when it is tried again."""
    if health.state == "paused":
        return f"{health.name}: paused, asked again in {duration(health.next_try_s)} ({health.code})"
    since, again = duration(health.since_s), duration(health.next_try_s)
    return f"{health.name}: DOWN for {since}, {health.failures} failures, last {health.code}, next try in {again}"


def sync_line(sync: SyncView) -> str:
    """A sync in a line: what it has to do, and for how long the oldest object has waited."""
    failed = f", {sync.failed} failed" if sync.failed else ""
    quarantined = f", {sync.quarantined} quarantined" if sync.quarantined else ""
    lag = f", lag {duration(sync.lag_s)}" if sync.lag_s else ""
    why = f"; the last listing failed: {sync.error.code}" if sync.error else ""
    todo = f"{sync.waiting} waiting, {sync.in_flight} under way"
    return f"{sync.spec.name}: {sync.state}, {sync.done} of {sync.seen} done, {todo}{failed}{quarantined}{lag}{why}"


def limit_line(limit: LimitView) -> str:
    """A limit that holds now, for how long, and how many wait for it."""
    rates = [f"{size(limit.bytes_per_s)}/s"] if limit.bytes_per_s else []
    rates += [f"{limit.requests_per_s:g} requests/s"] if limit.requests_per_s else []
    line = f"{limit.name or 'on all remotes'}: {'QUIET' if limit.quiet else ', '.join(rates)}"
    line += f" for {duration(limit.changes_s)}" if limit.changes_s else ""
    return line + (f"; {limit.waiting} wait" if limit.waiting else "")


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> None:
    """Print aligned columns; those numbered in ``right`` are aligned to the right."""
    cells = [[plain(cell) for cell in row] for row in rows]
    numbers = set(right)
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    for row in [list(headers), *cells]:
        padded = [
            cell.rjust(width) if number in numbers else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(padded).rstrip())


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair a line, leaving out what is empty."""
    shown = [(name, plain(value)) for name, value in rows if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{name.ljust(width)}  {value}")
