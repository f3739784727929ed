"""Verifying a log offline: record by record against its checkpoints and against one held elsewhere.

The log's own checkpoints show damage and careless editing. Whoever holds the signing key can rewrite the log
and sign it again; that shows only against an *outside* checkpoint, and only for the records it covers.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from smp_proto.errors import AuditError, KeyFileError, UsageError

from .merkle import Tree, inclusion_path, leaf_hash, root_of, verify_inclusion
from .note import Checkpoint, VerifierKey, peek_checkpoint, signers
from .record import AuditRecord, parse_line
from .turns import Turns

MAX_FINDINGS = 100  # of one kind, so that many of one hide none of another


class AuditReport(msgspec.Struct, frozen=True):
    """A log that verified.

    Args:
        size: number of records.
        root: root over all of them.
        checkpoints_ok: how many of the log's own checkpoints match.
        covered: how many records the last matching checkpoint covers.
        findings: what a person should look at although nothing is broken; at most :data:`MAX_FINDINGS` of a kind, and
            then how many more there are.
        signers: the keys that signed its checkpoints, each in its turn, as text.
    """

    size: int
    root: bytes
    checkpoints_ok: int
    covered: int
    findings: tuple[str, ...]
    signers: tuple[str, ...] = ()


def broken(record: int, message: str) -> AuditError:
    """``audit_broken``, naming the first record that is, or may be, bad."""
    return AuditError(
        "audit_broken",
        message,
        hint="keep the log and its checkpoints as evidence, compare them with a backup or with checkpoints "
        "held elsewhere, and only then begin a new log: smpctl audit renew --reason TEXT",
        details={"record": record},
    )


class Verified(msgspec.Struct, frozen=True):
    """A log up to a checkpoint that matched: all it takes to go on from there, without what came before.

    Args:
        size: number of records.
        roots: of the perfect subtrees over them, see :class:`~smp_proto.audit.merkle.Tree`.
        signer: the key of that checkpoint, as text.
        successors: the keys that may sign after it, as text.
    """

    size: int
    roots: tuple[bytes, ...]
    signer: str
    successors: tuple[str, ...]

    @classmethod
    def of(cls, tree: Tree, turns: Turns) -> "Verified":
        """What a checkpoint that was signed just now says of a tree."""
        return cls(tree.size, tree.roots, str(turns.signers[-1]), tuple(map(str, turns.successors)))


class LogVerifier:
    """Holds a log, fed line by line, against checkpoints; memory stays O(log n).

    One key at a time signs the log. Another one does from a ``key.rotate`` record on that names both, once a checkpoint
    by the former key covers that record; after its own first checkpoint the former key's count no more.

    Args:
        checkpoints: the log's own, as signed notes in the order they were made.
        keys: those that are believed to begin with; all bear the log's origin as name.
        outside: a signed checkpoint that was held where the log's keeper could not change it.
        called: what errors call that one.
        after: what was verified before; the lines are those that follow, and so are the checkpoints, but for that one.
            They are counted from there.

    Raises:
        AuditError: ``audit_broken``, here and in each method; ``details["record"]`` is the first bad record.
        ValueError: ``after`` has another number of roots than its size has bits.
    """

    def __init__(
        self,
        checkpoints: Iterable[bytes],
        keys: Sequence[VerifierKey],
        outside: bytes | None = None,
        called: str = "the outside checkpoint",
        after: Verified | None = None,
    ) -> None:
        self.tree = Tree.of(after.size, after.roots) if after else Tree()
        self.checkpoints_ok = 0
        self.covered = 0  # also after: that checkpoint is perhaps not yet among the log's own
        self._keys = tuple(keys)
        self.turns = Turns(keys)
        if after:
            signed, named = ([VerifierKey.parse(each) for each in some] for some in ([after.signer], after.successors))
            self.turns = Turns(keys, signed, named)
        self._notes = iter(checkpoints)
        self._time = ""
        self._findings: list[str] = []
        self._found: Counter[str] = Counter()  # by kind
        self._called = called
        self._outside = None if outside is None else _Note(outside, self._peek(outside, called))
        self._next = self._advance()
        self._compare()

    def feed(self, line: bytes) -> None:
        """Take the next line, newline included."""
        number = self.tree.size
        try:
            record = parse_line(line)
        except ValueError as exc:
            raise broken(number, f"record {number} is not a record: {exc}") from exc
        if record.seq != number:
            raise broken(number, f"record {number} bears the number {record.seq}: records are missing or moved")
        self._look_at(record)
        self._time = record.time
        self.tree.append(leaf_hash(line[:-1]))
        self._compare()

    def finish(self) -> AuditReport:
        """The report, once all lines were fed."""
        size = self.tree.size
        for note, name in ((self._outside, self._called), (self._next, self._own())):
            if note is not None:
                self._verify(note, name)
                raise broken(size, f"the log ends after {size} records, but {name} covers {note.says.size}")
        if self.covered < size:
            self._find("covered", f"records {self.covered} to {size - 1} are covered by no checkpoint yet")
        for kind, count in self._found.items():
            if count > MAX_FINDINGS:
                self._findings.append(f"{count - MAX_FINDINGS} more like these are left out: {kind}")
        findings, signers = tuple(self._findings), tuple(map(str, self.turns.signers))
        return AuditReport(size, self.tree.root(), self.checkpoints_ok, self.covered, findings, signers)

    def may_sign(self, key: VerifierKey) -> bool:
        """Whether the log's next checkpoint may be by this key."""
        return key in self.turns.allowed()

    def _look_at(self, record: AuditRecord) -> None:
        number = record.seq
        if record.time < self._time:
            back = "the clock went back"
            self._find(back, f"record {number}: {back} from {self._time} to {record.time}")
        if record.event == "audit.recovered":
            self._find(record.event, f"record {number}: the log was recovered after a crash or a failed write")
        if record.event == "audit.adopted":
            why = f"the log was taken as it was found, since {record.fields.get('reason')}"
            self._find(record.event, f"record {number}: {why}; hold it against a checkpoint")
        if record.event == "audit.begin":
            after, covered = record.fields.get("after"), record.fields.get("covered")
            what = f"this log comes after a broken one, set aside as {after}, {covered} signed"
            self._find(record.event, f"record {number}: {what}")
        try:
            key = self.turns.look_at(record)
        except KeyFileError as exc:
            raise broken(number, f"record {number} names a key that is none: {exc.message}") from exc
        if key is not None:
            what = f"{record.actor} had a new key made, which may sign from there on: {key}"
            self._find(record.event, f"record {number}: {what}")

    def _peek(self, note: bytes, name: str) -> Checkpoint:
        try:
            checkpoint = peek_checkpoint(note)
        except AuditError as exc:
            raise broken(self.covered, f"{name} is not valid: {exc.message}") from exc
        if all(checkpoint.origin != key.name for key in self._keys):
            raise broken(self.covered, f"{name} is of another log: {checkpoint.origin}")
        return checkpoint

    def _verify(self, note: "_Note", name: str) -> tuple[VerifierKey, ...]:
        """Who signed it, of those who may: of the log's own checkpoints its key then; of another also one before."""
        may = self.turns.allowed() if name != self._called else self.turns.known()
        try:
            return signers(note.data, may)
        except AuditError as exc:
            raise broken(self.covered, f"{name} is not valid: {exc.message}") from exc

    def _own(self) -> str:
        return f"checkpoint {self.checkpoints_ok} of the log"

    def _advance(self) -> "_Note | None":
        note = next(self._notes, None)
        return None if note is None else _Note(note, self._peek(note, self._own()))

    def _compare(self) -> None:
        """Hold the tree against each checkpoint of its size."""
        size, outside = self.tree.size, self._outside
        while self._next is not None and self._next.says.size <= size:
            by = self._verify(self._next, self._own())
            self._match(self._next.says, self._own(), self.covered)
            self.turns.signed(by)
            self.covered = size
            self.checkpoints_ok += 1
            self._next = self._advance()
        if outside is not None and outside.says.size == size:
            self._verify(outside, self._called)
            self._match(outside.says, self._called, 0)
            self._outside = None

    def _match(self, checkpoint: Checkpoint, name: str, since: int) -> None:
        size = self.tree.size
        if checkpoint.size != size:
            raise broken(since, f"{name} covers {checkpoint.size} records, fewer than the one before it")
        if checkpoint.root != self.tree.root():
            raise broken(
                since,
                f"{name} does not match: among the records {since} to {size - 1} at least one was changed, "
                "moved or replaced",
            )

    def _find(self, kind: str, finding: str) -> None:
        self._found[kind] += 1
        if self._found[kind] <= MAX_FINDINGS:
            self._findings.append(finding)


class _Note(NamedTuple):
    """A checkpoint that the log has not come to yet, and what it says; its signature is verified then."""

    data: bytes
    says: Checkpoint


def verify_log(
    lines: Iterable[bytes],
    checkpoints: Iterable[bytes],
    keys: Sequence[VerifierKey],
    outside: bytes | None = None,
) -> AuditReport:
    """Verify a whole log, lines with their newlines; arguments and errors as for :class:`LogVerifier`."""
    verifier = LogVerifier(checkpoints, keys, outside)
    for line in lines:
        verifier.feed(line)
    return verifier.finish()


class InclusionProof(msgspec.Struct, frozen=True):
    """That one record (its line without newline) is in a log of ``size`` records, by its path of siblings."""

    index: int
    size: int
    record: bytes
    path: tuple[bytes, ...]
    root: bytes

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether the record is what ``checkpoint`` covers at this index."""
        hashed = leaf_hash(self.record)
        return checkpoint.size == self.size and verify_inclusion(
            hashed, self.index, self.size, self.path, checkpoint.root
        )


def prove(lines: Iterable[bytes], index: int, size: int | None = None) -> InclusionProof:
    """Prove record ``index`` to whoever holds a checkpoint over ``size`` records (all, when None).

    Raises:
        UsageError: ``bad_request``, when there is no such record.
    """
    hashes: list[bytes] = []
    record = b""
    for number, line in enumerate(lines):
        if number == size:
            break
        leaf = line.removesuffix(b"\n")
        hashes.append(leaf_hash(leaf))
        record = leaf if number == index else record
    if not 0 <= index < len(hashes) or len(hashes) < (size or 0):
        raise UsageError(
            "bad_request",
            f"the log has {len(hashes)} records: none to prove at {index}",
            hint="give a record number below the size of the checkpoint, and the whole log",
        )
    path = tuple(inclusion_path(hashes, index))
    return InclusionProof(index, len(hashes), record, path, root_of(hashes))
