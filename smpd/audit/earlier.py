"""What the opening of a long log passes over, verified afterwards."""

from collections.abc import Sequence
from functools import partial
from itertools import islice

from smp_proto.audit.note import VerifierKey, iter_notes
from smp_proto.audit.verify import LogVerifier

from .files import read_lines
from .opening import LAST, paths
from .remembered import Reached

PIECE_RECORDS = 1000  # takes some milliseconds, of which others wait for the interpreter


class Earlier:
    """Verifies, a piece at a time, the part of a log that :func:`~smpd.audit.opening.open_verified` did not look at.

    Args:
        directory: of the log.
        keys: that may have signed.
        last: the checkpoint from where on the log was verified.
        reached: how far it was then.

    Attributes:
        anew: makes one that begins again.
    """

    def __init__(self, directory: str, keys: Sequence[VerifierKey], last: bytes, reached: Reached) -> None:
        self.anew = partial(Earlier, directory, keys, last, reached)
        self._size = reached.verified.size
        log_path, notes_path = paths(directory)
        notes = iter_notes(read_lines(notes_path, 0, reached.notes_bytes))
        self._begin = partial(LogVerifier, notes, keys, last, LAST)
        self._lines = read_lines(log_path, 0, reached.log_bytes)
        self._verifier: LogVerifier | None = None

    @property
    def unseen(self) -> int:
        """How many records are still to be verified."""
        return self._size - self._verifier.tree.size if self._verifier else self._size

    def step(self) -> bool:
        """Verify a piece; True when it was the last.

        Raises:
            AuditError: ``audit_broken``.
            OSError: as it came.
        """
        verifier = self._verifier = self._verifier or self._begin()
        piece = list(islice(self._lines, PIECE_RECORDS))
        for line in piece:
            verifier.feed(line)
        if piece and self.unseen > 0:
            return False
        verifier.finish()
        return True
