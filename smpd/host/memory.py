"""How much memory a process uses, and how much it has used at most."""

from typing import NamedTuple


class Rss(NamedTuple):
    """Resident set of a process in bytes; zero when it is gone."""

    now: int
    peak: int


def rss(pid: int) -> Rss:
    """VmRSS and VmHWM of proc_pid_status(5)."""
    found = {b"VmRSS:": 0, b"VmHWM:": 0}
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith((b"VmRSS:", b"VmHWM:")):
                    name, count = line.split()[:2]
                    found[name] = int(count) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return Rss(found[b"VmRSS:"], found[b"VmHWM:"])
