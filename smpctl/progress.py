"""Progress on standard error: a bar on a terminal, plain lines elsewhere, nothing with ``--json``."""

import sys
from types import TracebackType
from typing import Protocol, Self

import click

from smpctl.render import plain, size

_STEP_PERCENT = 10


class Bar(Protocol):
    """Something that shows how far a thing has come."""

    def update(self, text: str, done: int, total: int) -> None:
        """Show a state and bytes; a total of 0 is not known."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Silence:
    """Shows nothing."""

    def update(self, text: str, done: int, total: int) -> None:
        """Nothing to do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Lines(Silence):
    """A line for each new state, and for each tenth."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._shown = ("", -1)

    def update(self, text: str, done: int, total: int) -> None:
        """Print a line if there is something new to say."""
        step = done * 100 // total // _STEP_PERCENT if total else 0
        if (text, step) == self._shown:
            return
        self._shown = (text, step)
        part = f", {size(done)} of {size(total)}" if total else ""
        click.echo(f"{plain(self._label)}: {plain(text)}{part}", err=True)


class TerminalBar:
    """A bar by rich, which is imported only here."""

    def __init__(self, label: str) -> None:
        from rich.console import Console  # noqa: PLC0415 - 100 ms that only a terminal pays
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.fields[label]}", markup=False),
            TextColumn("{task.fields[text]}", markup=False),
            BarColumn(bar_width=24),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=None, label=plain(label), text="")

    def update(self, text: str, done: int, total: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=done, total=total or None, text=plain(text))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.refresh()
        self._progress.stop()


def bar(label: str, *, quiet: bool) -> Bar:
    """The bar that fits where standard error goes."""
    if quiet:
        return Silence()
    return TerminalBar(label) if sys.stderr.isatty() else Lines(label)
