"""Looking through a process's memory, as root may: /proc/PID/maps and /proc/PID/mem (proc_pid_mem(5))."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

CHUNK_BYTES = 16 << 20
_OVERLAP_BYTES = 256
_LINE = re.compile(r"^(\w+)-(\w+) r\S+ \w+ \S+ \d+ *(.*)$", re.MULTILINE)


class Place(NamedTuple):
    """Where something was found."""

    address: int
    mapping: str


def regions(pid: int) -> Iterator[tuple[int, str, bytes]]:
    """What a process can read, in overlapping pieces: address, mapping, content. Rings are in it, as they are mapped."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for first, last, mapping in _LINE.findall(Path(f"/proc/{pid}/maps").read_text()):
            start, end = int(first, 16), int(last, 16)
            for at in range(start, end, CHUNK_BYTES):
                try:
                    yield at, mapping, os.pread(fd, min(CHUNK_BYTES + _OVERLAP_BYTES, end - at), at)
                except (OSError, OverflowError):  # reserved without memory, or a page of the kernel's
                    break
    finally:
        os.close(fd)


def find(pid: int, needles: Mapping[str, bytes]) -> dict[str, set[Place]]:
    """Each place of each of these in a process's memory."""
    found: dict[str, set[Place]] = {}
    for base, mapping, part in regions(pid):
        for name, needle in needles.items():
            at = part.find(needle)
            while at >= 0:
                found.setdefault(name, set()).add(Place(base + at, mapping))
                at = part.find(needle, at + 1)
    return found
