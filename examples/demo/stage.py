"""Where the demo plays: one temporary folder, two people, and processes that end when it ends."""

import contextlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

START_S = 60.0
STOP_S = 20.0
# What a command of the demo sees of the caller's environment: nothing that says where keys or daemons are.
_KEPT = ("PATH", "LANG", "LC_ALL", "TERM", "TZ", "NO_COLOR", "COLUMNS", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


class DemoError(Exception):
    """Something the demo cannot do without; the text says what to do."""


class Stage:
    """The folder and what runs in it; a context manager that leaves nothing behind but ``output``.

    Args:
        output: the folder that stays.
        keep: leave the temporary folder.
    """

    def __init__(self, output: Path, *, keep: bool) -> None:
        self.output = output.resolve()
        self.keep = keep
        self.commands: list[str] = []
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="smp-demo-"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ValueError):  # a second Ctrl-C must not stop the tidying
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        for name, process in reversed(self._running):
            self._end(name, process)
        if self.keep:
            print(f"\nThe temporary folder, keys included, is kept: {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    # ── speaking ───────────────────────────────────────────────────────────────────────────────────────

    def heading(self, text: str) -> None:
        """A step begins."""
        print(f"\n\033[1m{text}\033[0m" if self._colour else f"\n{text}", flush=True)

    def say(self, text: str) -> None:
        """A remark."""
        print(f"  {text}", flush=True)

    # ── running ────────────────────────────────────────────────────────────────────────────────────────

    def environment(self, person: str) -> dict[str, str]:
        """The environment of one of the two people: their own home, and nothing of the caller's."""
        home = self.folder / person
        home.mkdir(mode=0o700, exist_ok=True)
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        beside = os.path.dirname(sys.executable)
        return {
            **kept,
            "PATH": os.pathsep.join([beside, kept.get("PATH", os.defpath)]),
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
        }

    def program(self, name: str, hint: str = "run: make install") -> str:
        """The path of a program, beside this interpreter first.

        Raises:
            DemoError: it is not installed.
        """
        found = shutil.which(name, path=self.environment("box")["PATH"])
        if found is None:
            raise DemoError(f"{name} is not installed; {hint}")
        return found

    def run(self, person: str, *command: str, to: str = "", quiet: bool = False) -> bytes:
        """Print a command, then run it in the folder as one of the two people.

        Args:
            person: ``sender`` or ``box``.
            command: program and arguments; paths are relative to the folder.
            to: a file that takes its standard output.
            quiet: return standard output instead of showing it, and print no command.

        Raises:
            subprocess.CalledProcessError: it failed; what it said is on the screen.
        """
        if not quiet:
            text = shlex.join(command) + (f" > {to}" if to else "")
            self.commands.append(f"{person}$ {text}")
            print(f"{person}$ {text}", flush=True)
        path = self.program(command[0])
        done = subprocess.run(
            [path, *command[1:]],
            cwd=self.folder,
            env=self.environment(person),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if to or quiet else None,
            check=False,
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, list(command))
        if to:
            (self.folder / to).write_bytes(done.stdout)
        return done.stdout or b""

    def ask(self, *command: str) -> list[Any]:
        """What ``smpctl --json`` says to the box's user, one object a line."""
        return [json.loads(line) for line in self.run("box", *command, "--json", quiet=True).splitlines()]

    def start(
        self, person: str, *command: str, ready: str, log: str, environment: Mapping[str, str] | None = None
    ) -> re.Match[str]:
        """Start a program that stays, and wait for the line that says it is ready.

        Args:
            person: whose process it is.
            command: program and arguments.
            ready: a regular expression for that line, in what it writes to either output.
            log: a file in the folder that takes what it writes.
            environment: more variables.

        Raises:
            DemoError: it ended, or said nothing of the kind for too long.
        """
        text = shlex.join(command)
        self.commands.append(f"{person}$ {text} &")
        print(f"{person}$ {text} &", flush=True)
        path = self.folder / log
        with path.open("wb") as file:
            process = subprocess.Popen(
                [self.program(command[0]), *command[1:]],
                cwd=self.folder,
                env={**self.environment(person), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C reaches the demo, which ends what it started, in order
            )
        self._running.append((command[0], process))
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            found = re.search(ready, path.read_text(errors="replace"))
            if found:
                return found
            if process.poll() is not None:
                break
            select.select([], [], [], 0.02)
        raise DemoError(f"{command[0]} did not start:\n{path.read_text(errors='replace')[-2000:]}")

    def pid(self, name: str) -> int:
        """The process id of a program that was started."""
        return next(process.pid for known, process in self._running if known == name)

    def stop(self, name: str) -> None:
        """End the last program of this name."""
        for index in reversed(range(len(self._running))):
            known, process = self._running[index]
            if known == name:
                del self._running[index]
                self._end(known, process)
                return

    def _end(self, name: str, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            print(f"demo: {name} did not end by itself and was killed", file=sys.stderr)
            process.kill()
            process.wait()


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, from the first instant on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print aligned columns, indented as remarks are."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        pairs = enumerate(zip(row, widths, strict=True))
        cells = [cell.rjust(width) if index in right else cell.ljust(width) for index, (cell, width) in pairs]
        print(f"  {'  '.join(cells).rstrip()}", flush=True)
