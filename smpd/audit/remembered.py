"""The newest checkpoint as it is kept apart from the log; what keeps it is none of this room's business."""

from typing import Protocol

import msgspec


class Remembered(msgspec.Struct, frozen=True):
    """A signed note; ``given_up`` since an admin has its log set aside: then only none at all may come after it."""

    note: bytes
    given_up: bool = False


class Memory(Protocol):
    """Where it is kept; see :class:`smpd.vault.checkpoint.LastCheckpoint`."""

    def read(self) -> Remembered | None:
        """It; None where nothing is known of one; IntegrityError where it was changed."""

    def keep(self, note: bytes) -> None:
        """Replace it, durably."""

    def give_up(self) -> None:
        """Note that its log is about to be set aside."""
