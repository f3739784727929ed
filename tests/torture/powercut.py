"""A disk whose power can be cut: ext4 on a loop device, shut down by an ioctl that drops what was not synced.

As xfstests do it (``src/godown.c``): EXT4_IOC_SHUTDOWN with NOLOGFLUSH stops all writing at once and does not flush the
journal, so pages that were not written and transactions that were not committed are lost, as with the power. The
next mount recovers from the journal.
"""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), linux/fs/ext4/ext4.h
_NOLOGFLUSH = 2
_COMMIT_S = 600  # the journal commits by itself only after so long: what is durable was made so
_WAIT_S = 30.0


class Disk:
    """One file system, mounted at ``path``."""

    def __init__(self, device: str, path: Path) -> None:
        self.device = device
        self.path = path

    def mount(self) -> None:
        """Mount it, recovering from its journal."""
        _run("mount", "-t", "ext4", "-o", f"commit={_COMMIT_S}", self.device, str(self.path))

    def cut(self) -> None:
        """Cut the power: from now on every write fails, and what was not synced is lost."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NOLOGFLUSH))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Unmount it, once whoever used it has gone."""
        end = time.monotonic() + _WAIT_S
        while (done := subprocess.run(["umount", self.path], capture_output=True, text=True)).returncode:
            if time.monotonic() > end:
                raise RuntimeError(done.stderr)
            time.sleep(0.01)

    def restart(self) -> None:
        """What comes back with the power."""
        self.unmount()
        self.mount()


@contextlib.contextmanager
def disk(size: int = 192 << 20) -> Iterator[Disk]:
    """A fresh one, in memory where there is a tmpfs."""
    where = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="smp-disk-", dir=where) as image, contextlib.ExitStack() as undo:
        file = Path(image) / "image"
        file.touch()
        os.truncate(file, size)
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", str(file))
        device = _run("losetup", "-f", "--show", str(file)).strip()
        undo.callback(subprocess.run, ["losetup", "-d", device], capture_output=True)
        path = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="smp-")))
        found = Disk(device, path)
        found.mount()
        undo.callback(subprocess.run, ["umount", "-l", path], capture_output=True)
        yield found


def prove() -> None:
    """See that a cut loses what was not synced, and nothing that was.

    Raises:
        AssertionError: it does not, so it could show nothing.
    """
    with disk(64 << 20) as found:
        for name, synced in (("kept", True), ("lost", False)):
            fd = os.open(found.path / name, os.O_WRONLY | os.O_CREAT)
            os.write(fd, name.encode() * 10_000)
            if synced:
                os.fsync(fd)
            os.close(fd)
        found.cut()
        found.restart()
        assert (found.path / "kept").read_bytes() == b"kept" * 10_000
        assert not (found.path / "lost").exists()


@cache
def missing() -> str:
    """Why power cannot be cut on this machine, or nothing."""
    if os.geteuid():
        return "only root may mount and cut a disk"
    for tool in ("mkfs.ext4", "losetup", "mount", "umount"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    try:
        with disk(64 << 20) as found:
            found.cut()
            found.restart()
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        return f"no ext4 on a loop device here: {error}"
    return ""


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
