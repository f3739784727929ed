"""What the end-to-end tests are made of: a box, people with keyrings, remotes, and ways to look inside."""

import contextlib
import ctypes
import hashlib
import json
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from box import Box
from servers import Served

from smp_proto.control import FINAL_STATES, JobView, LocalConfig, S3Config, S3Secret, SftpConfig, SftpSecret, SyncView
from smpctl import Client, job_of

ROOT = Path(__file__).resolve().parents[1]
DICOM = ROOT.parent / "shared" / "data" / "dcm_qa_nih" / "In" / "20180918GE" / "mr_0004"
WAIT_S = 100.0


def sha256(data: bytes) -> str:
    """Its digest, in hex."""
    return hashlib.sha256(data).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Name and SHA-256 of every file below a folder."""
    return {str(p.relative_to(folder)): sha256(p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def until_sync(ctl: Client, name: str, test: Callable[[SyncView], bool]) -> SyncView:
    """Wait for a sync by looking at it again and again: an event that came before anybody listened would be missed."""
    end = time.monotonic() + WAIT_S
    while not test(view := ctl.sync_show(name).sync):
        assert time.monotonic() < end, view
        time.sleep(0.05)
    return view


def read_digests(folder: Path) -> dict[str, str]:
    """What the processor ``digest`` said, by entry."""
    return {each["name"]: each["sha256"] for each in json.loads((folder / "digests.json").read_bytes())}


class Person:
    """Someone with a keyring of their own, at one box."""

    def __init__(self, machine: Box, folder: Path, name: str) -> None:
        self.machine = machine
        self.name = name
        self.folder = folder / name
        self.folder.mkdir(parents=True)
        # Key material, since a passphrase costs 0.6 s of CPU each time: Argon2id, on purpose.
        self.secret = self.folder / "credential"
        self.secret.write_text(f"32 bytes at least, which open the key of {name}")
        self.secret.chmod(0o600)
        self.env = {**machine.env, "XDG_CONFIG_HOME": str(self.folder / "xdg")}
        self.ctl("keys", "new", name, "--credential-file", self.secret)

    def ctl(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run ``smpctl`` with this keyring."""
        kept, self.machine.env = self.machine.env, self.env
        try:
            return self.machine.ctl(*arguments, check=check)
        finally:
            self.machine.env = kept

    def seal(self, paths: Iterable[Path], file: Path, to: str = "box") -> Path:
        """Seal files with ``smpctl seal``."""
        self.ctl("seal", *paths, "-o", file, "--to", to, "--credential-file", self.secret, "--force")
        return file

    def open(self, file: Path, folder: Path) -> dict[str, bytes]:
        """Open a sealed file with ``smpctl open``."""
        self.ctl("open", file, "-o", folder, "--credential-file", self.secret)
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def public(self) -> Path:
        """A file with the public key."""
        path = self.folder / "public"
        path.write_bytes(self.ctl("keys", "export", self.name).stdout)
        return path

    def knows(self, path: Path, name: str) -> None:
        """Import someone's public key."""
        self.ctl("keys", "import", path, "--name", name)


@dataclass
class Site:
    """A running box, two people that it believes, and the folders behind its remotes."""

    box: Box
    sender: Person
    doctor: Person
    folders: dict[str, Path]
    served: dict[str, Served]


def believe(machine: Box, person: Person) -> None:
    """Have the box trust a sender."""
    machine.ctl("trust", "add", person.name, person.public())


def box_key(machine: Box, folder: Path) -> Path:
    """A file with the box's public key."""
    path = folder / "box.pub"
    path.write_bytes(machine.ctl("keys", "export", "--box").stdout)
    return path


def add_remote(machine: Box, name: str, served: Served, mode: str = "zero-knowledge", prefix: str = "") -> None:
    """``smpctl remote add``, with the secret on standard input."""
    config, secret = served.config, served.secret
    more: list[str | Path] = []
    if isinstance(config, S3Config):
        assert isinstance(secret, S3Secret)
        url, more = f"s3://{config.bucket}/{prefix}", ["--endpoint", config.endpoint, "--addressing", "path"]
        text = f'access_key = "{secret.access_key}"\nsecret_key = "{secret.secret_key}"\n'
    elif isinstance(config, SftpConfig):
        assert isinstance(secret, SftpSecret)
        hosts = machine.folder / f"known_hosts-{name}"
        hosts.write_text(config.known_hosts)
        root = os.path.join(config.root, prefix)
        url, more = f"sftp://{config.user}@{config.host}:{config.port}/{root.lstrip('/')}", ["--known-hosts", hosts]
        text = f"password = {json.dumps(secret.password)}\nprivate_key = {json.dumps(secret.private_key)}\n"
    else:
        assert isinstance(config, LocalConfig)
        machine.ctl("remote", "add", name, f"file://{config.root}", "--mode", mode)
        return
    machine.ctl("remote", "add", name, url, "--mode", mode, "--secret-stdin", *more, stdin=text.encode())


@contextmanager
def client(machine: Box) -> Iterator[Client]:
    """The Python client of a box."""
    with Client(str(machine.socket)) as found:
        yield found


class Following:
    """Sees the events of a box as they come, from a thread, across restarts of the daemon."""

    def __init__(self, machine: Box) -> None:
        self._client = Client(str(machine.socket))
        self._changed = threading.Condition()
        self._seen: list[JobView] = []
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._thread.join(WAIT_S)

    def _read(self) -> None:
        try:
            for event in self._client.watch():
                if (job := job_of(event)) is not None:
                    with self._changed:
                        self._seen.append(job)
                        self._changed.notify_all()
        except Exception:  # noqa: BLE001 - the test is over, or will say that nothing came
            return

    def until(self, job: str, test: Callable[[JobView], bool]) -> JobView:
        """Wait until a view of a job, or of any when it is empty, passes the test; return it."""
        at = 0
        with self._changed:
            while True:
                for view in self._seen[at:]:
                    if job in ("", view.id) and test(view):
                        return view
                at = len(self._seen)
                if not self._changed.wait(WAIT_S):
                    raise AssertionError(f"job {job} never came so far; last: {self._seen[-1:]}")

    def order(self, state: str) -> list[str]:
        """The jobs in the order in which they were first seen in a state."""
        with self._changed:
            return list(dict.fromkeys(view.id for view in self._seen if view.state == state))

    def final(self, job: str) -> JobView:
        """Wait until a job is final."""
        return self.until(job, lambda view: view.state in FINAL_STATES)


class Folder:
    """Sees what is made in a folder and what goes from it (inotify(7)), for as long as a block."""

    _MASK = 0x100 | 0x200 | 0x40 | 0x80  # IN_CREATE, IN_DELETE, IN_MOVED_FROM, IN_MOVED_TO

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made: list[str] = []
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert libc.inotify_add_watch(self._fd, os.fsencode(path), self._MASK) > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._read()
        os.close(self._fd)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, 1 << 16):
                while data:
                    _, mask, _, length = struct.unpack_from("iIII", data)
                    if mask & 0x100:
                        self.made.append(data[16 : 16 + length].rstrip(b"\0").decode())
                    data = data[16 + length :]

    def until_empty(self, but: Callable[[str], bool] = lambda name: False) -> None:
        """Wait until nothing is in the folder, or nothing else."""
        while names := [name for name in os.listdir(self.path) if not but(name)]:
            assert select.select([self._fd], [], [], WAIT_S)[0], f"{names} stayed in {self.path}"
            self._read()


def spool_empties(machine: Box) -> None:
    """Wait until nothing but the quarantine is in the spool: a job's files go just after its end is announced."""
    with Folder(machine.state / "spool") as folder, client(machine) as ctl:
        folder.until_empty(lambda name: name.partition(".")[0] in {item.job for item in ctl.quarantine()})


def children(pid: int) -> dict[int, str]:
    """The processes that a process started, with their command lines."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is gone meanwhile
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def workers(machine: Box, role: str) -> list[int]:
    """The worker processes of a role."""
    assert machine.process
    return [pid for pid, line in children(machine.process.pid).items() if f"smpd.{role}" in line]


def bytes_below(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below a folder, with its bytes."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()


def faults(machine: Box) -> list[str]:
    """What the daemon's log calls an error."""
    return [line for line in machine.log.read_text().splitlines() if '"level": "error"' in line or "Traceback" in line]


def spooled(machine: Box) -> list[str]:
    """What is in the spool."""
    return sorted(path.name for path in (machine.state / "spool").iterdir())


def done(view: Any) -> Any:
    """The job, which must have ended well."""
    assert view.state == "done", view.error
    return view
