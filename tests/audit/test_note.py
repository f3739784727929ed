"""Signed notes against the vectors of Go's sumdb/note and the Go checksum database, and checkpoints."""

import contextlib
from base64 import b64decode, b64encode
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from smp_proto.audit.note import (
    Checkpoint,
    VerifierKey,
    cosign,
    iter_notes,
    open_checkpoint,
    open_note,
    sign_note,
)
from smp_proto.errors import AuditError, KeyFileError

# golang.org/x/mod/sumdb/note/note_test.go
PETER_SEED = b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
PETER = VerifierKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
ENOCH = VerifierKey.parse("EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop")
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ENOCH_LINE = (
    "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
)
# A tree head of sum.golang.org; the C2SP tlog-checkpoint page shows it under another name.
SUMDB = VerifierKey.parse("sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8")
SUMDB_NOTE = (
    "go.sum database tree\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n— sum.golang.org "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
).encode()

both = f"{TEXT}\n{PETER_LINE}{ENOCH_LINE}".encode()
peter_only = f"{TEXT}\n{PETER_LINE}".encode()


def peter_signs(text: bytes) -> bytes:
    return SigningKey(PETER_SEED).sign(text).signature


def test_signing_gives_the_published_note() -> None:
    """Text, key and seed of the Go test give its note byte for byte."""
    assert peter_only == sign_note(TEXT, PETER, peter_signs)


def test_a_note_opens_under_either_key() -> None:
    """A note with two signatures opens with either key or both; an unknown signature is ignored."""
    for keys in ((PETER,), (ENOCH,), (PETER, ENOCH)):
        assert open_note(both, keys) == TEXT


def test_a_published_checkpoint_opens() -> None:
    """A real tree head verifies and parses."""
    checkpoint = open_checkpoint(SUMDB_NOTE, (SUMDB,))
    assert checkpoint.origin == "go.sum database tree"
    assert checkpoint.size == 20852163
    assert b64encode(checkpoint.root) == b"CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I="


@pytest.mark.parametrize(
    "note",
    [
        TEXT.encode(),
        (TEXT + "\n").encode(),
        peter_only[:-1],
        b"\x01" + peter_only,
        b"\xff" + peter_only,
        (TEXT + "\n" + PETER_LINE.replace("PeterNeumann", "Bad Name")).encode(),
        peter_only + b"Unexpected line.\n",
        (TEXT + "\n" + PETER_LINE * 101).encode(),
        (TEXT + "\n" + PETER_LINE[:60] + "ABCD" + PETER_LINE[60:]).encode(),
        (TEXT + "\n" + ENOCH_LINE).encode(),
        peter_only.replace(b"answer", b"Answer"),
        (TEXT + "\n" + PETER_LINE.replace("PeterNeumann", "CarmenSandiego")).encode(),
        (TEXT + "\n" + PETER_LINE.replace("x08g", "xxxx")).encode(),
    ],
)
def test_bad_notes_are_refused(note: bytes) -> None:
    """The malformed and mismatched notes of the Go test are refused."""
    with pytest.raises(AuditError):
        open_note(note, (PETER,))


def test_a_wrong_signature_by_a_known_key_refuses_the_note() -> None:
    """One good signature does not save a note on which another known key's is wrong."""
    changed = both.replace(ENOCH_LINE.encode(), ENOCH_LINE.replace("5n2ti", "5n2tj").encode())
    assert open_note(changed, (PETER,)) == TEXT
    with pytest.raises(AuditError, match="EnochRoot"):
        open_note(changed, (PETER, ENOCH))


@pytest.mark.parametrize("text", ["a\x00b\n", "a\tb\n", "a\rb\n"])
def test_control_characters_are_refused_even_if_signed(text: str) -> None:
    """A note with control characters is malformed whoever signed it."""
    with pytest.raises(AuditError, match="control"):
        open_note(sign_note(text, PETER, peter_signs), (PETER,))


def test_a_witness_can_add_its_signature() -> None:
    """A cosigned note opens under both keys, and sixteen signatures are accepted."""
    note = sign_note(TEXT, PETER, peter_signs)
    for number in range(15):
        witness = SigningKey(bytes([number]) * 32)
        key = VerifierKey(f"witness.example/{number}", bytes(witness.verify_key))
        note = cosign(note, key, lambda text, witness=witness: witness.sign(text).signature)
        assert open_note(note, (PETER, key)) == TEXT


def test_signing_with_another_key_is_noticed() -> None:
    """A signature that the stated key does not verify is never put on a note."""
    with pytest.raises(KeyFileError, match="EnochRoot"):
        sign_note(TEXT, ENOCH, peter_signs)


def test_verifier_keys_have_one_text_form() -> None:
    """Every substring and every single-character change of a key's text is refused, as in the Go test."""
    text = str(PETER)
    assert VerifierKey.parse(text) == PETER
    bad = [text[a:b] for a in range(len(text)) for b in range(a, len(text) + 1) if (a, b) != (0, len(text))]
    bad += [text[:at] + chr(ord(text[at]) + 1) + text[at + 1 :] for at in range(len(text))]
    bad.append("PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    for each in bad:
        with pytest.raises(KeyFileError):
            VerifierKey.parse(each)


@given(st.integers(0, 2**63), st.binary(min_size=32, max_size=32))
def test_checkpoints_come_back(size: int, root: bytes) -> None:
    """A checkpoint's text parses to the same checkpoint, with or without extension lines."""
    checkpoint = Checkpoint("audit.example/box1", size, root)
    assert Checkpoint.parse(checkpoint.text()) == checkpoint
    assert Checkpoint.parse(checkpoint.text() + "extension\n") == checkpoint


@pytest.mark.parametrize("size", ["-1", "01", "+1", "1_0", " 1", "1 ", "", "x", "٣", "1.0", "9" * 5000])
def test_odd_sizes_are_refused(size: str) -> None:
    """Only plain decimals without leading zeros are tree sizes."""
    with pytest.raises(AuditError):
        Checkpoint.parse(f"origin\n{size}\n{b64encode(bytes(32)).decode()}\n")


@pytest.mark.parametrize(
    "text", ["", "\n", "a\n1\n", "\n1\n{root}\n", "a\n1\nAAAA\n", "a\n1\n{root}\n\nb\n", "a\n1\n{root}"]
)
def test_text_that_is_no_checkpoint_is_refused(text: str) -> None:
    """Missing lines, an empty origin, a short root and empty extension lines are refused."""
    with pytest.raises(AuditError):
        Checkpoint.parse(text.replace("{root}", b64encode(bytes(32)).decode()))


@given(st.binary(max_size=300))
def test_no_bytes_upset_the_parser(noise: bytes) -> None:
    """Whatever follows a text, the answer is the text or audit_broken."""
    for note in (noise, TEXT.encode() + b"\n" + noise, noise + b"\n\n" + PETER_LINE.encode()):
        with contextlib.suppress(AuditError):
            open_checkpoint(note, (PETER,))


def test_a_file_of_notes_is_cut_into_notes() -> None:
    """Notes written one after the other come apart again, and what is left unfinished comes last."""
    notes = [both, SUMDB_NOTE, peter_only]
    lines = b"".join(notes).splitlines(keepends=True)
    assert list(iter_notes(lines)) == notes
    assert list(iter_notes([*lines, b"go.sum data"])) == [*notes, b"go.sum data"]


def test_spare_bits_of_a_signature_are_part_of_it(key: VerifierKey, signer: Callable[[bytes], bytes]) -> None:
    """A signature line that decodes to the same bytes but is written otherwise is a changed note."""
    note = sign_note("text\n", key, signer)
    assert note.endswith(b"=\n")
    last = note[-3]
    other = next(
        c
        for c in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        if c != last and b64decode(note.split(b" ")[-1][:-3] + bytes([c]) + b"=") == b64decode(note.split(b" ")[-1])
    )
    with pytest.raises(AuditError):
        open_note(note[:-3] + bytes([other]) + note[-2:], [key])


def test_a_verifier_key_from_a_command_line_of_other_bytes_is_refused() -> None:
    """A lone surrogate, as Python makes of bytes that are no UTF-8, has no bytes to hash or to sign."""
    with pytest.raises(KeyFileError) as caught:
        VerifierKey.parse("\udc80+00000000+ASmsuuFBvMrwsi4alNNNC8c2HlJtC/4SyJeUvJMilm3X")
    assert caught.value.code == "key_invalid"
