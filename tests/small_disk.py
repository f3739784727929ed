"""A file system of a few MiB, and somebody who fills it."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

OTHERS = "others"


class Disk:
    """A small file system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._others = path / OTHERS

    @property
    def free(self) -> int:
        """Bytes that are free."""
        stat = os.statvfs(self.path)
        return stat.f_bavail * stat.f_frsize

    def leave(self, free: int) -> None:
        """Fill all but so many bytes, as another program would."""
        with self._others.open("ab") as file:
            while (more := self.free - free) > 0:
                with contextlib.suppress(OSError):  # the daemon was faster: again
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, more)

    def clear(self) -> None:
        """Make space."""
        self._others.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(path: Path, size: int) -> Iterator[Disk]:
    """A tmpfs of ``size`` bytes, for the length of a block.

    Raises:
        PermissionError: this user may not mount one.
    """
    path.mkdir(parents=True, exist_ok=True)
    options = f"size={size},mode=0700"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(path)], capture_output=True, check=False)
    if done.returncode:
        raise PermissionError(f"no tmpfs can be mounted: {done.stderr.decode().strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@cache
def no_small_disk() -> str:
    """Why none can be mounted here, or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder) / "disk", 1 << 20):
                return ""
        except PermissionError as error:
            return str(error)
