"""Identities, their texts and files, and what stays in memory of them."""

import copy
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealed.forge import identity

from smp_proto.errors import IntegrityError, KeyFileError, SmpError, StateError, UsageError
from smp_proto.sealed import keyfile
from smp_proto.sealed.filekey import FileKey, take, wipe
from smp_proto.sealed.keys import Identity, PublicIdentity

ALICE = identity("alice")
TEXT = ALICE.public.text()


@pytest.fixture(autouse=True)
def cheap_argon2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key files of these tests ask for 64 KiB."""
    monkeypatch.setattr(keyfile, "ARGON2_MEMORY_KIB", 64)


def test_public_text_round_trip() -> None:
    """The text is one printable line and comes back, with or without its name and white space around."""
    assert TEXT.isprintable()
    assert TEXT.startswith("smp1pub:")
    assert ALICE.public == PublicIdentity.parse(f"  {TEXT}\n")
    assert PublicIdentity.parse(TEXT).name == "alice"
    unnamed = PublicIdentity.parse(TEXT.split(" ")[0])
    assert (ALICE.public, "") == (unnamed, unnamed.name)


@given(st.integers(0, len(TEXT.split(" ")[0]) - 1), st.sampled_from("aZ09-_ =+\n"))
def test_a_typo_is_refused(at: int, char: str) -> None:
    """Any character of the key replaced is ``key_invalid``, the spare bits of base64 included."""
    encoded = TEXT.split(" ")[0]
    if encoded[at] == char:
        return
    with pytest.raises(KeyFileError) as caught:
        PublicIdentity.parse(encoded[:at] + char + encoded[at + 1 :])
    assert caught.value.code == "key_invalid"


def test_a_name_with_a_space_too_many() -> None:
    """A text has one form: no space stands at either end of its name."""
    with pytest.raises(KeyFileError):
        PublicIdentity.parse(TEXT.replace(" ", "  "))


@pytest.mark.parametrize("gap", ["\n", " " * 400, "\n" * 70_000])
def test_nothing_follows_a_public_key(gap: str) -> None:
    """White space around is passed over however long it is, and never what comes behind it."""
    assert PublicIdentity.parse(f"{gap}{TEXT}{gap}") == ALICE.public
    with pytest.raises(KeyFileError):
        PublicIdentity.parse(f"{TEXT}{gap}{identity('bob').public.text()}")


@given(st.one_of(st.text(max_size=60), st.text(max_size=60).map("smp1pub:".__add__)))
def test_public_text_fuzz(text: str) -> None:
    """Any other text is ``key_invalid``."""
    with pytest.raises(KeyFileError):
        PublicIdentity.parse(text)


def test_bad_public_keys() -> None:
    """Keys that nobody has: ML-KEM not reduced, points of small order, odd lengths; and bad names."""
    enc, sign = ALICE.public.enc_key, ALICE.public.verify_key
    small = b"\1" + bytes(31)
    for pair in [
        (b"\xff" * 1184 + enc[1184:], sign),
        (enc[:1184] + bytes(32), sign),
        (enc, small),
        (enc, b"\xff" * 32),
        (enc[:-1], sign),
        (enc, sign + b"\0"),
    ]:
        with pytest.raises(KeyFileError):
            PublicIdentity(*pair)
    for name in ("a\nb", " a", "x" * 65, "a\x1b[0m"):
        with pytest.raises(KeyFileError):
            PublicIdentity(enc, sign, name)


def test_key_id_and_fingerprint() -> None:
    """The key id covers both keys; the fingerprint shows all of it."""
    other = identity("bob").public
    mixed = PublicIdentity(ALICE.public.enc_key, other.verify_key)
    assert len({ALICE.public.key_id, other.key_id, mixed.key_id}) == 3
    assert ALICE.public.key_id.hex() == ALICE.public.fingerprint().replace("-", "")
    assert len(ALICE.public.fingerprint()) == 39


def test_sign_and_wrap() -> None:
    """Signatures and wrapped keys are for one identity and one message."""
    bob = identity("bob")
    signature = ALICE.sign(b"message")
    assert ALICE.public.verify(signature, b"message")
    assert not bob.public.verify(signature, b"message")
    assert not ALICE.public.verify(signature[:-1], b"message")
    wrapped = bob.public.wrap(bytearray(range(32)), b"info")
    assert len(wrapped) == 1168
    assert bytearray(range(32)) == bob.unwrap(wrapped, b"info")
    for who, data, info in [
        (ALICE, wrapped, b"info"),
        (bob, wrapped, b"x"),
        (bob, wrapped[:-1], b"info"),
        (bob, b"", b""),
    ]:
        with pytest.raises(IntegrityError):
            who.unwrap(data, info)


def test_one_that_only_opens() -> None:
    """It opens what was sealed for it, also once the other is wiped; it has neither a signing key nor what a file needs."""
    person = Identity.generate("person")
    opens = person.decrypt_only()
    wrapped = opens.public.wrap(bytearray(b"secret"), b"info")
    person.wipe()
    assert opens.unwrap(wrapped, b"info") == b"secret"
    for refused in (lambda: opens.sign(b"x"), lambda: opens.to_file(credential=bytearray(32))):
        with pytest.raises(StateError):
            refused()


def test_wiped_keys_are_gone() -> None:
    """After wiping, the bytes are zero, use raises, and wiping again is harmless."""
    key, person = FileKey.generate(), Identity.generate()
    material, secret = key.material, person._secret
    key.wipe()
    person.wipe()
    key.wipe()
    person.wipe()
    assert not any(material)
    assert not any(secret)
    for use in (key.payload_key, lambda: person.sign(b""), lambda: person.unwrap(b"", b""),
                lambda: person.to_file(credential=bytearray(32))):  # fmt: skip
        with pytest.raises(StateError):
            use()


def test_nothing_secret_is_printed() -> None:
    """Neither repr shows key bytes."""
    key = FileKey(bytearray(b"\x41" * 32))
    assert repr(key) == "<FileKey>"
    assert ALICE._secret.hex()[:8] not in repr(ALICE) + str(ALICE)
    assert ALICE.public.fingerprint() in repr(ALICE)


def test_take_overwrites() -> None:
    """The immutable original is zero afterwards."""
    original = bytes(bytearray(b"secret!!"))
    assert bytearray(b"secret!!") == take(original)
    assert bytes(8) == original


@pytest.mark.parametrize("secret", [{"passphrase": b"p\xc3\xa4ss"}, {"credential": bytes(range(40))}])
def test_key_file_round_trip(secret: dict[str, bytes]) -> None:
    """A key file opens with its own secret only, and shows its public part without."""
    ((kind, value),) = secret.items()
    data = ALICE.to_file(**{kind: bytearray(value)})
    assert data.isascii()
    assert (ALICE.public, "alice") == (Identity.peek(data), Identity.peek(data).name)
    back = Identity.from_file(data, **{kind: bytearray(value)})
    assert (ALICE.public, ALICE._secret) == (back.public, back._secret)
    other = {"passphrase", "credential"} - {kind}
    for wrong in ({kind: bytearray(value + b"!")}, {other.pop(): bytearray(value)}, {}):
        with pytest.raises(KeyFileError) as caught:
            Identity.from_file(data, **wrong)
        assert caught.value.code == "key_locked"


@pytest.mark.parametrize(
    "secrets",
    [{}, {"passphrase": b""}, {"credential": bytes(31)}, {"passphrase": b"a", "credential": bytes(32)}],
)
def test_sealing_needs_one_good_secret(secrets: dict[str, bytes]) -> None:
    """None, both, an empty or a short one is refused."""
    with pytest.raises(UsageError):
        ALICE.to_file(**{k: bytearray(v) for k, v in secrets.items()})


def rebuilt(data: bytes, sealed: bytes | None = None, **header: object) -> bytes:
    """A key file with fields of its header replaced."""
    file, old = keyfile._parse(data)
    raw = msgspec.msgpack.encode(msgspec.to_builtins(old, builtin_types=(bytes,)) | header)
    packed = msgspec.msgpack.encode({"header": raw, "sealed": sealed or file.sealed})
    return keyfile.BEGIN + keyfile.base64.encodebytes(packed) + keyfile.END


def test_key_file_public_part_is_bound() -> None:
    """Another public key or name in the file is found when it is opened."""
    data = ALICE.to_file(credential=bytearray(32))
    assert Identity.from_file(rebuilt(data), credential=bytearray(32)).public == ALICE.public
    for change in ({"public": identity("bob").public.blob}, {"name": "bob"}):
        with pytest.raises(KeyFileError) as caught:
            Identity.from_file(rebuilt(data, **change), credential=bytearray(32))
        assert caught.value.code == "key_locked"


def test_key_file_of_two_identities() -> None:
    """A file that seals one identity's secrets beside another's public key is refused."""
    bob = identity("bob").public
    data = keyfile.seal(ALICE._secret, bob.blob, "bob", passphrase=None, credential=bytearray(32))
    with pytest.raises(KeyFileError, match="another public key"):
        Identity.from_file(data, credential=bytearray(32))


@pytest.mark.parametrize(
    "change",
    [{"memory_kib": (1 << 20) + 1}, {"memory_kib": 1 << 40}, {"passes": 17}, {"passes": 0}, {"memory_kib": 7},
     {"version": 2}, {"kdf": "scrypt"}, {"salt": bytes(8)}, {"nonce": b""}, {"name": "a\nb"}, {"extra": 1}],
)  # fmt: skip
def test_hostile_key_file(change: dict[str, object]) -> None:
    """A file that asks for too much, or is of another kind, is refused before anything is derived."""
    data = rebuilt(ALICE.to_file(passphrase=bytearray(b"a")), **change)
    tracemalloc.start()
    try:
        with pytest.raises(KeyFileError) as caught:
            Identity.from_file(data, passphrase=bytearray(b"a"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == "key_invalid"
    assert peak < 1 << 20


@pytest.mark.parametrize("change", [{"passes": 1}, {"memory_kib": 8}])
def test_a_credential_takes_no_argon2(change: dict[str, object]) -> None:
    """A header has one form: with a credential there is nothing to say of Argon2."""
    with pytest.raises(KeyFileError) as caught:
        Identity.from_file(rebuilt(ALICE.to_file(credential=bytearray(32)), **change), credential=bytearray(32))
    assert caught.value.code == "key_invalid"


STARVED = """
import resource
from smp_proto.errors import SmpError
from smp_proto.sealed.keys import Identity

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
identity = Identity.generate()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
try:
    identity.to_file(passphrase=bytearray(b"a"))
except SmpError as error:
    print(error.code, error.message)
"""


def test_argon2_without_memory() -> None:
    """Where there is too little memory for Argon2id it is said how much it takes."""
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, check=False)
    assert done.stdout == "no_memory no memory for a key file's passphrase: Argon2id takes 256 MiB\n"


KEY_FILE = ALICE.to_file(credential=bytearray(32))


@given(st.integers(0, len(KEY_FILE) - 1), st.integers(1, 255))
def test_key_file_bit_flips(at: int, flip: int) -> None:
    """Any byte changed is ``key_invalid`` or ``key_locked``, or was a line feed or a spare bit of base64."""
    data = bytearray(KEY_FILE)
    data[at] ^= flip
    try:
        opened = Identity.from_file(bytes(data), credential=bytearray(32))
    except KeyFileError:
        return
    assert ALICE.public == opened.public


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda b: keyfile.BEGIN + b + keyfile.END)))
def test_key_file_fuzz(data: bytes) -> None:
    """Any bytes are ``key_invalid``."""
    with pytest.raises(SmpError) as caught:
        Identity.peek(data)
    assert caught.value.code == "key_invalid"


CHILD = """
    import os, sys
    from smp_proto.sealed.bundle import BundleReader, BundleWriter
    from smp_proto.sealed.keys import Identity
    from smp_proto.sealed import keyfile
    from smp_proto.sealed.filekey import wipe

    keyfile.ARGON2_MEMORY_KIB = 64
    seen = []

    def note(label, secret):  # masked byte by byte, so that the note is no copy
        seen.append(label + ":" + "".join("%02x" % (b ^ 0xA5) for b in secret))

    def run():
        passphrase = bytearray(1000)  # too long for the small blocks that Python soon uses again
        with open("/dev/urandom", "rb", buffering=0) as f:
            f.readinto(passphrase)
        alice, bob = Identity.generate("alice"), Identity.generate("bob")
        note("seed", bob._secret[:32]), note("signing seed", alice._secret[32:])
        note("passphrase", passphrase)
        data = bob.to_file(passphrase=passphrase)
        bob.wipe()
        bob = Identity.from_file(data, passphrase=passphrase)
        wipe(passphrase)
        out = bytearray()
        writer = BundleWriter(out.extend, sender=alice, recipients=[bob.public])
        note("file key", writer._file_key.material)
        writer.begin("a"), writer.write(bytes(3 << 20)), writer.end(), writer.finish()

        def read_into(offset, view):
            view[:] = memoryview(out)[offset : offset + len(view)]

        with BundleReader(read_into, len(out), identities=[bob], trust=lambda key_id: alice.public) as reader:
            reader.verify()
            subkey = reader._opened.file_key.payload_key()
            note("payload key", subkey)
            wipe(subkey)
        alice.wipe(), bob.wipe()

    run()
    print(*seen, sep="\\n", flush=True)
    sys.stdin.read()
"""


def test_no_key_stays_in_memory() -> None:
    """After use, the memory of a process holds no copy of a seed, a passphrase, a file key or a subkey."""
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        notes = [child.stdout.readline().strip() for _ in range(5)]
        secrets = {}
        for note in notes:
            label, _, masked = note.partition(":")
            secrets[label] = bytes(b ^ 0xA5 for b in bytes.fromhex(masked))
        found = dict.fromkeys(secrets, 0)
        maps = Path(f"/proc/{child.pid}/maps").read_text().splitlines()
        try:
            memory = open(f"/proc/{child.pid}/mem", "rb", buffering=0)  # noqa: SIM115
        except PermissionError:
            pytest.skip("this kernel does not let a process read its child's memory")
        with memory:
            for line in maps:
                span, mode, *_ = line.split()
                if not mode.startswith("rw") or "[v" in line:
                    continue
                start, end = (int(part, 16) for part in span.split("-"))
                memory.seek(start)
                data = memory.read(end - start)
                for label, secret in secrets.items():
                    found[label] += data.count(secret)
        child.stdin.close()
    assert len(found) == 5
    assert found == dict.fromkeys(found, 0)


def test_wipe_keeps_the_buffer() -> None:
    """Wiping is in place, also while a view of the buffer exists."""
    secret = bytearray(b"abc")
    view = memoryview(secret)
    wipe(secret)
    assert bytes(3) == bytes(view) == bytes(copy.copy(secret))
