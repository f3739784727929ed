"""Who signs a log in turn, as whoever verifies it will see it."""

from smp_proto.audit.merkle import Tree
from smp_proto.audit.note import VerifierKey
from smp_proto.audit.record import parse_line
from smp_proto.audit.verify import ROTATION, LogVerifier, Verified, named_key

_ROTATES = f'"{ROTATION}"'.encode()


class Turns:
    """The key that signed last, and those that were named since; goes along with what is written.

    Args:
        verifier: has seen the log.
    """

    def __init__(self, verifier: LogVerifier) -> None:
        self._signer = verifier.signers[-1] if verifier.signers else None
        self._successors, self._named = verifier.next_keys()
        self._checkpoints = verifier.checkpoints_ok

    def wrote(self, line: bytes) -> None:
        """A record was written."""
        if _ROTATES in line and (named := named_key(parse_line(line))) is not None:
            self._named.append(named)

    def signs(self, key: VerifierKey, tree: Tree) -> Verified:
        """A key is about to sign a tree: what will then be verified."""
        if key != self._signer:
            self._signer, self._successors = key, []
        self._successors += [named for former, named in self._named if former == str(key)]
        self._named = []
        successors = tuple(map(str, self._successors))
        return Verified(tree.size, tree.roots, str(key), successors, self._checkpoints)

    def signed(self) -> None:
        """The checkpoint is among the log's own."""
        self._checkpoints += 1
