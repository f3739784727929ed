"""The screen of ``smpctl top``: a look as tables and bars. Only a terminal imports this, and with it rich."""

import time

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from smp_proto.control import SyncView, Worker
from smpctl.commands.top import Away, JobRate, Look, RemoteRate, headline, second_line, stage, what
from smpctl.render import duration, plain, remote_health, size

_BAR = 16
_JOBS_LEAST = 3


def drawn(found: Look | Away, height: int) -> RenderableType:
    """What the screen shows; of jobs as many as fit into ``height`` lines, at least three."""
    if isinstance(found, Away):
        away = Text(f"smpd is away for {duration(time.time() - found.since)}; this was seen last:", style="bold red")
        return Group(away, Group(*_parts(found.last, height - 1, Style(dim=True))))
    return Group(*_parts(found, height, Style.null()))


def _parts(found: Look, height: int, style: Style) -> list[RenderableType]:
    status = found.status
    broken = Style(color="red", bold=True) if not status.audit_ok else style
    parts: list[RenderableType] = [
        Text(plain(headline(status)), style=style + Style(bold=True)),
        Text(plain(second_line(status)), style=broken),
    ]
    bad = [remote_health(each) for each in status.health if each.state != "up"]
    parts += [Text(plain(f"remote {line}"), style="bold red") for line in bad]
    used = len(parts)
    for table in (_remotes(found.remotes, style), _workers(status.workers, style), _syncs(found.syncs, style)):
        if table.row_count:
            parts += [Text(), table]
            used += table.row_count + 2
    listed = found.listed()
    if listed:
        shown = listed[: max(_JOBS_LEAST, height - used - 4)]
        parts += [Text(), _jobs(shown, style)]
        if len(listed) > len(shown):
            parts.append(Text(f"and {len(listed) - len(shown)} more", style=style))
    return parts


def _table(style: Style, *columns: str) -> Table:
    """Columns; a name that begins with ``>`` is of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), style=style, header_style=style + Style(bold=True))
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column[0] == ">" else "left", no_wrap=True)
    return table


def _row(table: Table, *cells: RenderableType, style: Style | None = None) -> None:
    """Add a row; a text is shown as it is, and not read as rich's markup."""
    shown = zip(cells, table.columns, strict=True)
    table.add_row(
        *(Text(plain(cell), justify=column.justify) if isinstance(cell, str) else cell for cell, column in shown),
        style=style,
    )


def _bar(done: int, total: int) -> RenderableType:
    return ProgressBar(total=max(total, 1), completed=min(done, max(total, 1)), width=_BAR)


def _remotes(remotes: list[RemoteRate], style: Style) -> Table:
    table = _table(style, "remote", "lanes", ">in use", ">window", ">of", ">range", ">ranges/s", ">bytes/s")
    for each in remotes:
        load = each.remote
        _row(
            table,
            *(load.name, _bar(load.in_use, load.lanes), str(load.in_use), str(load.window), str(load.lanes)),
            *(size(load.range_bytes), f"{each.ranges_per_s:.0f}", size(each.bytes_per_s)),
        )
    return table


def _workers(workers: list[Worker], style: Style) -> Table:
    table = _table(style, "worker", "for", ">process", ">memory", ">restarts", "slots", "device")
    for each in workers:
        slots = _bar(each.slots_in_use, each.slots) if each.slots else ""
        memory = size(each.rss_bytes) if each.pid else "idle"
        _row(
            table,
            *(each.role, each.label, str(each.pid or ""), memory, str(each.restarts)),
            *(slots, each.device),
        )
    return table


def _syncs(syncs: list[SyncView], style: Style) -> Table:
    table = _table(
        style, "sync", "state", ">seen", ">done", ">waiting", ">under way", ">failed", ">quarantined", ">lag"
    )
    for each in syncs:
        bad = Style(color="red") if each.failed or each.quarantined or each.error else style
        counts = (each.seen, each.done, each.waiting, each.in_flight, each.failed, each.quarantined)
        state = f"{each.state}, {each.error.code}" if each.error else each.state
        lag = duration(each.lag_s) if each.lag_s else ""
        _row(table, each.spec.name, state, *map(str, counts), lag, style=bad)
    return table


def _jobs(jobs: list[JobRate], style: Style) -> Table:
    table = _table(style, "job", "kind", "priority", "state", "stage", "done", ">of", ">bytes/s", "what")
    table.columns[-1].overflow = "ellipsis"
    for each in jobs:
        job = each.job
        done = _bar(job.done_bytes, job.total_bytes) if job.total_bytes else ""
        of = size(job.total_bytes) if job.total_bytes else ""
        rate = size(each.bytes_per_s) if job.state == "running" else ""
        _row(
            table,
            *(job.id[:8], job.kind, job.priority, job.state, stage(job), done, of, rate, what(job)),
        )
    return table
