"""strace(1) around a child: every call that changes or syncs a file, in order; and a fault put into one of them."""

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from smp_proto import durable

# All that smpd and smpctl change files by, and a few that they might one day.
CALLS = [
    "openat",
    "openat2",
    "write",
    "writev",
    "pwrite64",
    "pwritev",
    "ftruncate",
    "fallocate",
    "sendfile",
    "copy_file_range",
    "fsync",
    "fdatasync",
    "syncfs",
    "sync_file_range",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "rmdir",
    "chmod",
    "fchmod",
    "fchmodat",
]
_NAMED = re.compile(r"(open|rename|link|unlink|mkdir|rmdir|chmod|fchmodat)")
_LINE = re.compile(r"(\d+) +(\w+)\((.*)")
_PATH = re.compile(r'(?:(\d+|AT_FDCWD)<([^>]*)>)|"((?:[^"\\]|\\.)*)"')


class Call(NamedTuple):
    """One system call.

    Args:
        name: of the call.
        nth: which it is of all calls of that name of its thread, from 1.
        paths: of the descriptors and names in its arguments, joined to absolute ones.
        text: as strace printed it.
    """

    name: str
    nth: int
    paths: tuple[str, ...]
    text: str


@cache
def missing() -> str:
    """Why nothing can be traced here, or nothing."""
    if not shutil.which("strace"):
        return "strace is not installed"
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True)
    return f"strace may not trace: {done.stderr}" if done.returncode else ""


@contextmanager
def attached(pid: int, log: Path, *options: str) -> Iterator[None]:
    """For a block, strace follows a process; it ends with it."""
    command = ["strace", "-f", "-y", "-s", "256", "-o", str(log), *options, "-p", str(pid)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr
        line = tracer.stderr.readline()
        if "attached" not in line:
            tracer.kill()
            raise AssertionError(f"strace did not attach: {line}{tracer.stderr.read()}")
        yield
        tracer.communicate(timeout=60)


def parse(log: Path) -> list[Call]:
    """The calls of a log, in the order in which they began."""
    found: list[Call] = []
    counts: Counter[tuple[str, str]] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match and match[2] in CALLS:
            thread, name, arguments = match.groups()
            counts[thread, name] += 1
            arguments = arguments.rsplit(" = ", 1)[0]
            found.append(Call(name, counts[thread, name], _paths(name, arguments), line))
    return found


def _paths(name: str, arguments: str) -> tuple[str, ...]:
    found: list[str] = []
    folder = ""
    if not _NAMED.match(name):  # what it quotes is data
        return tuple(match[2] for match in _PATH.finditer(arguments) if match[3] is None)
    for match in _PATH.finditer(arguments):
        if match[3] is None:
            folder = match[2]
            found.append(folder)
        else:
            if folder and found:
                found.pop()
            found.append(os.path.join(folder, match[3]) if folder else match[3])
            folder = ""
    return tuple(found)


def check_order(calls: list[Call], root: Path) -> int:
    """See that each file was synced before it got its name, and the folder afterwards; returns how many got one.

    Args:
        calls: of a run without a fault.
        root: what is looked at lies below it; parts need not outlive anything.

    Raises:
        AssertionError: something was not synced, or too late.
    """
    dirty: dict[str, str] = {}
    unsynced: dict[str, str] = {}  # folders with a name that is new in them
    named = 0
    for call in calls:
        paths = [path for path in call.paths if path.startswith(str(root))]
        if not paths:
            continue
        if call.name in ("write", "writev", "pwrite64", "pwritev", "ftruncate", "fallocate", "sendfile"):
            dirty[paths[0]] = call.text
        elif call.name == "copy_file_range":
            dirty[paths[-1]] = call.text
        elif call.name in ("fsync", "fdatasync"):
            dirty.pop(paths[0], None)
            unsynced.pop(paths[0], None)
        elif call.name == "syncfs":
            dirty.clear()
            unsynced.clear()
        elif call.name.startswith(("rename", "link")):
            source, target = paths
            assert source not in dirty, f"{dirty[source]}\nwas not synced before\n{call.text}"
            unsynced[os.path.dirname(target)] = call.text
            named += 1
        elif call.name.startswith("mkdir") and not durable.is_part(os.path.basename(paths[0])):
            unsynced[os.path.dirname(paths[0])] = call.text
    assert not unsynced, f"no sync of the folder after: {'; '.join(unsynced.values())}"
    return named
