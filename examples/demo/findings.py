"""What each place and each process holds, looked up instead of claimed."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

_PROBE_BYTES = 64
_CANDIDATES = 24
_PROBES = 3
_DISTINCT_LEAST = 24
_BLOCK_BYTES = 8 << 20

HTTP_AND_SSH = ("aiobotocore", "botocore", "aiohttp", "asyncssh")
# What the process runs, and what must not come along when it is imported.
IMPORTS = {
    "smpd": ("smpd.app", ("torch", *HTTP_AND_SSH)),
    "fetch": ("smpd.fetch.service, smpd.fetch.s3, smpd.fetch.sftp", ("torch", "smp_proto.sealed", "smpd.vault")),
}

# The type of this one does not say that it is a secret.
_SECRET_LINE = ("SetupWebhook", "header")


class Probes(NamedTuple):
    """What is searched for: pieces of the photographs, the names of the files, the names of the objects."""

    content: tuple[bytes, ...]
    names: tuple[bytes, ...]
    objects: tuple[bytes, ...]

    def hits(self, data: bytes) -> tuple[bool, ...]:
        """Which of all probes are in some bytes, in order."""
        return tuple(probe in data for probe in (*self.content, *self.names, *self.objects))

    def sums(self, seen: Iterable[bool]) -> tuple[str, str, str]:
        """``found of searched`` for each of the three kinds."""
        flags = list(seen)
        texts = []
        for kind in (self.content, self.names, self.objects):
            part, flags = flags[: len(kind)], flags[len(kind) :]
            texts.append(f"{sum(part)} of {len(kind)}")
        return texts[0], texts[1], texts[2]


class Found(NamedTuple):
    """One line of the closing table."""

    where: str
    files: int
    size: int
    sums: tuple[str, str, str]


def probes_of(photos: Iterable[Path], objects: Iterable[str]) -> Probes:
    """Probes for files: pieces that do not occur by chance, and the names."""
    content: list[bytes] = []
    names: list[bytes] = []
    for photo in photos:
        data = photo.read_bytes()
        step = max(1, (len(data) - _PROBE_BYTES) // _CANDIDATES)
        pieces = [data[at : at + _PROBE_BYTES] for at in range(0, len(data) - _PROBE_BYTES + 1, step)]
        pieces.sort(key=lambda piece: -len(set(piece)))
        content += [piece for piece in pieces[:_PROBES] if len(set(piece)) >= _DISTINCT_LEAST]
        names.append(photo.name.encode())
    return Probes(tuple(content), tuple(names), tuple(name.encode() for name in objects))


def search(where: str, roots: Iterable[Path], probes: Probes) -> Found:
    """Search all files below some folders, and their paths; blocks overlap, so that a probe across two is found."""
    files = size = 0
    seen = [False] * len(probes.hits(b""))
    for path in _files(roots):
        files += 1
        with path.open("rb") as file:
            tail = os.fsencode(path)
            while block := file.read(_BLOCK_BYTES):
                size += len(block)
                seen = [a or b for a, b in zip(seen, probes.hits(tail + block), strict=True)]
                tail = block[-1024:]
    return Found(where, files, size, probes.sums(seen))


def search_memory(where: str, pid: int, probes: Probes) -> Found | None:
    """Search the writable memory of a process; None when the kernel does not let us."""
    seen = [False] * len(probes.hits(b""))
    regions = size = 0
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for line in maps:
                span, rights = line.split()[:2]
                start, end = (int(each, 16) for each in span.split("-"))
                if not rights.startswith("rw"):
                    continue
                regions += 1
                for at in range(start, end, _BLOCK_BYTES):
                    with contextlib.suppress(OSError):  # a guard page, or memory given back meanwhile
                        memory.seek(at)
                        block = memory.read(min(_BLOCK_BYTES + 1024, end - at))
                        size += min(len(block), _BLOCK_BYTES)
                        seen = [a or b for a, b in zip(seen, probes.hits(block), strict=True)]
    except OSError:
        return None
    return Found(where, regions, size, probes.sums(seen))


def _files(roots: Iterable[Path]) -> Iterator[Path]:
    for root in roots:
        if root.is_file():
            yield root
        for folder, _, names in os.walk(root):
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink():
                    yield path


class SpoolWatch:
    """Keeps what lies in the spool while jobs run, by hard links: a job that is done removes its files.

    Args:
        spool: the folder to watch.
        kept: a folder of the same file system, for the links.
    """

    def __init__(self, spool: Path, kept: Path) -> None:
        self._spool = spool
        self.kept = kept
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self.kept.mkdir()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            with contextlib.suppress(FileNotFoundError):
                for name in os.listdir(self._spool):
                    inode = os.stat(self._spool / name).st_ino
                    with contextlib.suppress(FileExistsError):
                        os.link(self._spool / name, self.kept / f"{inode}-{name}")


class Process(NamedTuple):
    """What the kernel says of a process. Texts say why where it does not tell this user."""

    seccomp: str
    no_new_privs: str
    capabilities: str
    internet_sockets: str
    libraries: str


def process(pid: int) -> Process:
    """Read /proc of a process (proc_pid_status(5), proc_pid_fd(5), proc_pid_maps(5))."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    modes = {"0": "off", "1": "strict", "2": "filter"}
    capabilities = "none" if int(status["CapEff"], 16) == 0 else "some"
    return Process(
        modes.get(status["Seccomp"].strip(), "unknown"),
        "on" if status["NoNewPrivs"].strip() == "1" else "off",
        capabilities,
        _internet_sockets(pid),
        _libraries(pid),
    )


_HIDDEN = "hidden from its own user"


def _internet_sockets(pid: int) -> str:
    try:
        links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
    except PermissionError:
        return _HIDDEN
    ours = {found[1] for link in links if (found := re.match(r"socket:\[(\d+)\]", link))}
    known: set[str] = set()
    for family in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/net/{family}").read_text().splitlines()[1:]
            known.update(line.split()[9] for line in lines)
    return str(len(ours & known))


def _libraries(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/maps").read_text()
    except PermissionError:
        return _HIDDEN
    marks = {"torch": "/libtorch", "aiohttp": "/aiohttp/", "cryptography": "/cryptography/", "kornia": "/kornia"}
    return ", ".join(name for name, mark in marks.items() if mark in text) or "none of them"


def brought_along(role: str) -> tuple[str, list[str], list[str]]:
    """Import what a process runs in a fresh interpreter: the modules, what was looked for, and what came along."""
    modules, unwanted = IMPORTS[role]
    code = f"import sys, {modules}; print(*[name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return modules, list(unwanted), done.stdout.split()


def messages_to_fetch() -> tuple[list[str], list[str]]:
    """The requests a fetch process understands, and the fields among them that hold a secret."""
    from smp_proto.control import AnyRemoteSecret, RemoteSecret
    from smpd.links import fetching

    assert AnyRemoteSecret  # the union whose base is looked for below
    names: list[str] = []
    secrets: list[str] = []
    for info in msgspec.inspect.type_info(fetching.AnyRequest).types:  # type: ignore[attr-defined]
        names.append(info.cls.__name__)
        for field in info.fields:
            parts = getattr(field.type, "types", (field.type,))
            if (info.cls.__name__, field.name) == _SECRET_LINE:
                secrets.append(".".join(_SECRET_LINE))
            held = [p.cls.__name__ for p in parts if issubclass(getattr(p, "cls", object), RemoteSecret)]
            if held:
                secrets.append(f"{info.cls.__name__}.{field.name} ({' or '.join(held)})")
    return names, secrets
