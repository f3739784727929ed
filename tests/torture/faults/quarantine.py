"""Faults of the quarantine, and of what is remembered of accepted objects."""

from typing import Any

from torture import planted


def forgetful() -> None:
    """What was refused is kept nowhere."""
    if planted.ROLE == "smpd":
        from smpd.vault.quarantine import Added, Quarantine

        def add(_: Quarantine, item: Any, file: str = "") -> Added:
            return Added(item, (file,))

        Quarantine.add = add


def unremembering() -> None:
    """Nothing is remembered of what was accepted."""
    if planted.ROLE == "smpd":
        from smpd.vault.versions import Versions

        Versions.remember = lambda *_: None


def believing() -> None:
    """A sender is believed once known, whatever became of it since."""
    if planted.ROLE == "smpd":
        from smpd.vault.trust import Senders

        def lookup(senders: Senders, key_id: bytes, *_: Any) -> str:
            return next(each.key for each in senders._records if each.view.key_id == key_id.hex())

        Senders.lookup = lookup
