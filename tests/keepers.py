"""What systemd is to ``smpd-compute.socket``: a listener that starts a keeper, as another user, for each connection."""

import contextlib
import functools
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

OTHER = 61234  # of the range of DynamicUser=, so that no user database knows it
ROOT = Path(__file__).resolve().parents[1]
WAIT_S = 60.0


def environment(*folders: Path) -> dict[str, str]:
    """The environment of another user's Python, with ``folders`` on its path."""
    site = [path for path in sys.path if path.endswith("-packages")]
    return {"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(map(str, [*folders, *site, ROOT, ROOT / "proto"]))}


@functools.cache
def python() -> str:
    """A Python that another user can run, with all that this one has installed."""
    if os.geteuid() != 0:
        pytest.skip("starting a process of another user needs root")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for found in (sys.executable, *(f"{folder}/{version}" for folder in ("/usr/local/bin", "/usr/bin"))):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            as_other([found, "-P", "-c", "import smpd.links.ring, torch"], uid=OTHER, check=True)
            return found
    pytest.skip("no Python here can be run by another user")


def as_other(command: Sequence[str], *, uid: int, check: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command as another user, without groups, and return what it said."""
    return subprocess.run(
        command,
        user=uid,
        group=uid,
        extra_groups=[],
        env=environment(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=check,
    )


class Keepers:
    """The listener; ``path`` is its socket. ``said`` is what the keepers and their workers wrote to standard error."""

    def __init__(self, folder: Path, expects: str, uid: int, env: dict[str, str], before: Sequence[str]) -> None:
        self.path = str(folder / "c")
        self.log = folder / "log"
        self.command = [*before, python(), "-P", "-m", "smpd.compute.keeper", expects]
        self.uid = uid
        self.env = env
        self.running: list[subprocess.Popen[bytes]] = []
        self.started: queue.Queue[subprocess.Popen[bytes]] = queue.Queue()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        os.chmod(self.path, 0o666)  # the unit's is 0600; here the keeper alone is asked
        self.listener.listen()
        self.thread = threading.Thread(target=self._accept)
        self.thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection, self.log.open("ab") as log:
                    keeper = subprocess.Popen(
                        self.command,
                        stdin=connection,
                        stdout=log,
                        stderr=log,
                        cwd="/",
                        env=self.env,
                        user=self.uid,
                        group=self.uid,
                        extra_groups=[],
                    )
                self.running.append(keeper)
                self.started.put(keeper)

    def next(self) -> subprocess.Popen[bytes]:
        """The keeper of the next connection, in their order."""
        return self.started.get(timeout=WAIT_S)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(WAIT_S)
        self.listener.close()
        for keeper in self.running:
            try:
                keeper.wait(WAIT_S)
            finally:
                keeper.kill()
                keeper.wait()


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A short folder that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="smpd-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextlib.contextmanager
def keepers(expects: str = "root", uid: int = OTHER, *folders: Path, before: Sequence[str] = ()) -> Iterator[Keepers]:
    """A listener for the length of a block; at its end all keepers must be gone by themselves.

    Args:
        expects: the name of smpd's user.
        uid: theirs.
        folders: on their Python's path.
        before: a command that runs theirs.
    """
    with open_folder() as folder:
        found = Keepers(folder, expects, uid, environment(*folders), before)
        try:
            yield found
        finally:
            found.close()


@contextlib.contextmanager
def keepers_of_systemd(*folders: Path) -> Iterator[str]:
    """The same by systemd's own ``systemd-socket-activate``; yields the path of the socket."""
    tool, setpriv = shutil.which("systemd-socket-activate"), shutil.which("setpriv")
    if not tool or not setpriv:
        pytest.skip("systemd-socket-activate or setpriv is not installed")
    keeper = [setpriv, f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups"]
    keeper += [python(), "-P", "-m", "smpd.compute.keeper", "root"]
    with open_folder() as folder:
        path = f"{folder}/c"
        process = subprocess.Popen(
            [tool, "--accept", "--inetd", "--setenv=PYTHONPATH", f"--listen={path}", *keeper],
            env=environment(*folders),
            stderr=subprocess.PIPE,
        )
        try:
            assert process.stderr
            assert b"Listening" in process.stderr.readline()
            yield path
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=WAIT_S)
