"""Whose turn it is to sign a log: one key's at a time, and then that of a key which it named in a record it signed."""

from collections.abc import Iterable, Sequence

from .note import VerifierKey
from .record import AuditRecord

ROTATION = "key.rotate"


class Turns:
    """The keys that signed a log, and those that may next, as of its records and checkpoints so far.

    Args:
        keys: those that are believed to begin with.
        signers: those that had their turn already.
        successors: those that the last of them named.

    Attributes:
        signers: the keys that signed, each in its turn.
        successors: those that may sign after the last of them.
    """

    def __init__(
        self, keys: Iterable[VerifierKey], signers: Iterable[VerifierKey] = (), successors: Iterable[VerifierKey] = ()
    ) -> None:
        self.signers = list(signers)
        self.successors = list(successors)
        self._keys = tuple(keys)
        self._named: list[tuple[str, VerifierKey]] = []  # by whom, and who: no checkpoint covers that record yet

    def look_at(self, record: AuditRecord) -> VerifierKey | None:
        """Take the next record; the key that it names, if it names one.

        Raises:
            KeyFileError: what it names is no key.
        """
        if record.event != ROTATION or record.outcome:
            return None
        key = VerifierKey.parse(str(record.fields.get("verifier")))
        self._named.append((str(record.fields.get("former")), key))
        return key

    def signed(self, keys: Sequence[VerifierKey]) -> None:
        """Take a checkpoint over all records so far, by these keys: whom its signer named before it may follow."""
        if not self.signers or self.signers[-1] not in keys:
            self.signers.append(keys[0])
            self.successors = []
        self.successors += [key for former, key in self._named if former == str(self.signers[-1])]
        self._named = []

    def allowed(self) -> tuple[VerifierKey, ...]:
        """The keys that the next checkpoint may be by."""
        return (self.signers[-1], *self.successors) if self.signers else self._keys

    def known(self) -> tuple[VerifierKey, ...]:
        """All of them, those before included."""
        return (*self._keys, *self.signers, *self.successors)
