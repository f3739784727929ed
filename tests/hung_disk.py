"""A file system whose server answers only as long as it likes (FUSE): what a user can mount, and hand over files of."""

import contextlib
import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

GETATTR, READ, FLUSH = 3, 15, 25  # opcodes, of linux/fuse.h
_LOOKUP, _OPEN, _INIT = 1, 14, 26
_UNANSWERED_EVER = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET
_ENOSYS = 38
_MNT_FORCE, _MNT_DETACH = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


class HungDisk:
    """A folder with one file, ``f``, of five bytes.

    Attributes:
        fd: the file, open for reading; it can be closed only once the disk is gone.
        hung: opcodes that are not answered any more.
        asked: is set for each opcode that came and is not answered.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.hung: tuple[int, ...] = ()
        self.asked = {each: threading.Semaphore(0) for each in (GETATTR, READ, FLUSH)}
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0".encode()
        if _libc.mount(b"hung", os.fsencode(folder), b"fuse", 0, options):
            os.close(self._device)
            raise OSError(ctypes.get_errno(), "mount")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.fd = os.open(folder / "f", os.O_RDONLY | os.O_CLOEXEC)

    def _serve(self) -> None:
        while True:
            try:
                asked = os.read(self._device, 1 << 20)
            except OSError:  # unmounted
                return
            _, opcode, unique, node = struct.unpack_from("=IIQQ", asked)
            if opcode in self.hung:
                self.asked[opcode].release()
            elif opcode not in _UNANSWERED_EVER:
                self._reply(unique, opcode, node)

    def _reply(self, unique: int, opcode: int, node: int) -> None:
        replies = {
            _INIT: struct.pack("=IIIIHHI", 7, 31, 0, 0, 0, 0, 1 << 16).ljust(64, b"\0"),
            _LOOKUP: struct.pack("=QQQQII", 2, 0, 0, 0, 0, 0) + _attributes(2),
            GETATTR: struct.pack("=QII", 0, 0, 0) + _attributes(node),
            _OPEN: struct.pack("=QII", 1, 1, 0),  # read past the cache
            READ: b"hello",
            FLUSH: b"",
        }
        body, error = replies.get(opcode, b""), 0 if opcode in replies else -_ENOSYS
        with contextlib.suppress(OSError):
            os.write(self._device, struct.pack("=IiQ", 16 + len(body), error, unique) + body)

    def close(self) -> None:
        """Unmount it: whoever waits for an answer gets an error."""
        for how in (_MNT_FORCE, _MNT_DETACH):
            _libc.umount2(os.fsencode(self._folder), how)
        self._thread.join(10)
        for fd in (self._device, self.fd):
            with contextlib.suppress(OSError):
                os.close(fd)


def _attributes(node: int) -> bytes:
    mode, size = (0o40755, 0) if node == 1 else (0o100666, 5)
    return struct.pack("=QQQQQQIIIIIIIIII", node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


@contextlib.contextmanager
def hung_disk(folder: Path) -> Iterator[HungDisk]:
    """One that is mounted for the length of a block."""
    folder.mkdir()
    try:
        disk = HungDisk(folder)
    except OSError as error:
        pytest.skip(f"FUSE cannot be mounted here: {error}")
    try:
        yield disk
    finally:
        disk.close()
