"""The newest checkpoint as it is kept apart from the log; what keeps it is none of this room's business.

With it is kept how far the log was when it was made: opening a long log goes on from there. Whoever could change that
could change the checkpoint, too.
"""

from typing import Protocol

import msgspec

from smp_proto.audit.verify import Verified


class Reached(msgspec.Struct, frozen=True):
    """How far a log was when a checkpoint was made.

    Args:
        verified: up to that checkpoint.
        log_bytes: of the records it covers.
        notes_bytes: of the log's own checkpoints before it.
    """

    verified: Verified
    log_bytes: int
    notes_bytes: int


class Remembered(msgspec.Struct, frozen=True):
    """A signed note, and how far the log was then, where that is known.

    ``given_up`` since an admin has its log set aside: then only none at all may come after it.
    """

    note: bytes
    given_up: bool = False
    reached: Reached | None = None


class Memory(Protocol):
    """Where it is kept; see :class:`smpd.vault.checkpoint.LastCheckpoint`."""

    def read(self) -> Remembered | None:
        """It; None where nothing is known of one; IntegrityError where it was changed."""

    def keep(self, note: bytes, reached: Reached | None = None) -> None:
        """Replace it, durably."""

    def give_up(self) -> None:
        """Note that its log is about to be set aside."""
