"""Signed notes and checkpoints (C2SP ``signed-note`` and ``tlog-checkpoint``), Ed25519 only.

A note is text ending in a newline, a blank line, and one line ``— name base64(key id ‖ signature)`` for each
signature. A checkpoint's text is three lines: origin, number of leaves, base64 of the root. Signatures by
keys that are not given are ignored, so that a witness can add its own and a key can be replaced.
"""

import hashlib
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from smp_proto.errors import AuditError, KeyFileError

from .merkle import HASH_BYTES

MAX_NOTE_BYTES = 65_536
MAX_SIGNATURES = 64
_ED25519 = b"\x01"
_DASH = "— "
_NAME = re.compile(r"[^\s+\ud800-\udfff]+")  # a lone surrogate has no bytes to sign
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


class VerifierKey(msgspec.Struct, frozen=True):
    """The public key of a signer and its name; for a log's own key the name is the log's origin line.

    ``str(key)`` and :meth:`parse` use the text form ``name+hex(key id)+base64(0x01 ‖ key)`` that other
    implementations of signed notes read.
    """

    name: str
    public: bytes

    def __post_init__(self) -> None:
        if len(self.public) != 32 or not _NAME.fullmatch(self.name):
            raise KeyFileError(
                "key_invalid",
                f"{self.name[:80]!r} with {len(self.public)} bytes is no Ed25519 verifier key",
                hint="a key has 32 bytes, and its name neither spaces nor '+'",
            )

    @property
    def key_id(self) -> bytes:
        """SHA-256(name ‖ 0x0A ‖ 0x01 ‖ public key), first four bytes."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{b64encode(_ED25519 + self.public).decode()}"

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """Read the text form.

        Raises:
            KeyFileError: ``key_invalid``.
        """
        name, _, rest = text.partition("+")
        try:
            raw = b64decode(rest[9:], validate=True)
        except ValueError:
            raw = b""
        key = cls(name, raw[1:])
        if str(key) != text:
            raise KeyFileError(
                "key_invalid",
                f"the verifier key of {name} does not match its id, or is not an Ed25519 key",
                hint="copy the whole line as it was published: name+id+key",
            )
        return key


def _malformed(what: str) -> AuditError:
    return AuditError("audit_broken", what, hint="fetch the checkpoint again; if it stays so, keep it as evidence")


def sign_note(text: str, key: VerifierKey, sign: Callable[[bytes], bytes]) -> bytes:
    """The note over ``text`` (ending in a newline) with one signature.

    Args:
        text: what is signed.
        key: the public side of the signing key.
        sign: returns the 64-byte Ed25519 signature over what it is given.

    Raises:
        KeyFileError: ``key_invalid``, when what ``sign`` returns does not verify under ``key``.
    """
    return cosign((text + "\n").encode(), key, sign)


def cosign(note: bytes, key: VerifierKey, sign: Callable[[bytes], bytes]) -> bytes:
    """``note`` with one signature more. Raises as :func:`sign_note`."""
    text = note[: note.rindex(b"\n\n") + 1]
    signature = sign(text)
    try:
        VerifyKey(key.public).verify(text, signature)
    except (BadSignatureError, ValueError) as exc:
        raise KeyFileError(
            "key_invalid",
            f"the signing key is not the one that {key.name} is known by",
            hint="give the public key that belongs to the signing key",
        ) from exc
    return note + f"{_DASH}{key.name} {b64encode(key.key_id + signature).decode()}\n".encode()


def _take_apart(note: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """The text of a note, and of each signature line the name and what follows it; nothing is verified yet."""
    try:
        whole = note.decode()
    except UnicodeDecodeError:
        raise _malformed("the signed note is not UTF-8") from None
    text, blank, tail = whole.rpartition("\n\n")
    lines = tail.split("\n")
    if not blank or lines.pop() or not 0 < len(lines) <= MAX_SIGNATURES or len(note) > MAX_NOTE_BYTES:
        raise _malformed("the signed note has no text or no signature lines, or is cut short")
    if _CONTROL.search(whole):
        raise _malformed("the signed note holds control characters")
    signatures = []
    for line in lines:
        name, _, encoded = line.removeprefix(_DASH).partition(" ")
        try:
            raw = b64decode(encoded, validate=True)
        except ValueError:
            raw = b""
        # base64 has spare bits that decode to nothing; a note that was changed there is still a changed note.
        canonical = b64encode(raw).decode() == encoded
        if not line.startswith(_DASH) or not _NAME.fullmatch(name) or len(raw) < 5 or not canonical:
            raise _malformed("a signature line of the signed note is malformed")
        signatures.append((name, raw))
    return text + "\n", signatures


def signers(note: bytes, keys: Sequence[VerifierKey]) -> tuple[VerifierKey, ...]:
    """Those of ``keys`` whose signature is on a note, once one verifies and none of theirs fails.

    Raises:
        AuditError: ``audit_broken``, for a malformed note, a wrong signature, or none by a known key.
    """
    text, signatures = _take_apart(note)
    known = {(key.name, key.key_id): key for key in keys}
    found = []
    for name, raw in signatures:
        if key := known.get((name, raw[:4])):
            try:
                VerifyKey(key.public).verify(text.encode(), raw[4:])
            except (BadSignatureError, ValueError):
                raise _malformed(f"the signature by {name} is wrong") from None
            found.append(key)
    if not found:
        names = ", ".join(str(key) for key in keys)
        raise _malformed(f"no signature on the note is by a known key ({names})")
    return tuple(found)


def open_note(note: bytes, keys: Sequence[VerifierKey]) -> str:
    """The text of a note, once its signatures verify. Raises as :func:`signers`."""
    signers(note, keys)
    return _take_apart(note)[0]


class Checkpoint(msgspec.Struct, frozen=True):
    """The state of a log: its origin, its number of records, and the root over them (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The note text that is signed."""
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """Read a note text; extension lines are allowed and ignored.

        Raises:
            AuditError: ``audit_broken``.
        """
        lines = text.split("\n")
        try:
            origin, size, root = lines[:3]
            checkpoint = cls(origin, int(size), b64decode(root, validate=True))
        except ValueError:
            raise _malformed("the note is not a checkpoint") from None
        canonical = text.startswith(checkpoint.text()) and "" not in lines[3:-1]
        if not canonical or not origin or checkpoint.size < 0 or len(checkpoint.root) != HASH_BYTES:
            raise _malformed("the note is not a checkpoint")
        return checkpoint


def open_checkpoint(note: bytes, keys: Sequence[VerifierKey]) -> Checkpoint:
    """The checkpoint in a signed note. Raises as :func:`open_note`."""
    return Checkpoint.parse(open_note(note, keys))


def peek_checkpoint(note: bytes) -> Checkpoint:
    """What a note says, whoever signed it; believe nothing of it before :func:`signers` has said by whom it is.

    Raises:
        AuditError: ``audit_broken``; it is no checkpoint.
    """
    return Checkpoint.parse(_take_apart(note)[0])


def iter_notes(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Cut a file of notes, one after the other, into notes; one that a crash left unfinished comes last."""
    dash, note, signed = _DASH.encode(), bytearray(), False
    for line in lines:
        if signed and not line.startswith(dash):
            yield bytes(note)
            note, signed = bytearray(), False
        note += line
        signed = signed or line.startswith(dash)
    if note:
        yield bytes(note)
