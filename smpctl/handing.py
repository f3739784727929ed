"""Handing files over to the daemon: one message and one descriptor each, never too far ahead of the sealing.

A daemon keeps each descriptor open until its file is sealed, and a connection holds a bounded number of unread
messages, so that a folder of ten thousand slices has to go in a moving window.
"""

import os
from collections.abc import Callable, Iterable, Iterator

from smp_proto.control import PutFile, Sealing
from smp_proto.errors import SmpError
from smp_proto.sealed.entries import guess_media_type
from smpctl.files import HEAD_BYTES, LocalFile, collect, total_bytes

FILES_AHEAD = 128  # half of the descriptors that a connection may hold untaken


class Handing:
    """Iterates over (message, descriptor to send and close); told of what was sealed.

    Args:
        files: paths or named files.
        progress: called with bytes sealed and bytes in all.

    Raises:
        NotFoundError: ``no_such_file``.
        UsageError: ``bad_request``, ``bad_name``; see :func:`smpctl.files.collect`.
    """

    def __init__(
        self, files: Iterable[str | os.PathLike[str] | LocalFile], progress: Callable[[int, int], None] | None
    ) -> None:
        self._files = collect(files)
        self._total = total_bytes(self._files)
        self._progress = progress
        self._ahead = 0
        self._sent = 0

    def __iter__(self) -> Iterator[tuple[PutFile, int]]:
        for number, file in enumerate(self._files, 1):
            fd, size = file.open()
            try:
                media_type = guess_media_type(file.name, os.pread(fd, HEAD_BYTES, 0))
            except (OSError, SmpError):
                os.close(fd)
                raise
            self._sent = number
            self._ahead += 1
            yield PutFile(file.name, size, media_type, number == len(self._files)), fd

    @property
    def must_wait(self) -> bool:
        """Whether the daemon has to seal something before the next file."""
        return self._ahead >= FILES_AHEAD

    def sealed(self, message: Sealing) -> None:
        """The daemon has sealed so much."""
        self._ahead = self._sent - message.done_files
        if self._progress is not None:
            self._progress(message.done_bytes, max(self._total, message.done_bytes))
