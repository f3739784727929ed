"""The keys of this box: its identity, and what is derived to keep its own state sealed.

The identity is made at first start. It is sealed by a credential or a passphrase that the configuration names; a box
with neither gets a credential file of its own beside it, which protects against nothing but a lost copy of the key
file alone, and ``doctor`` says so.

``identity.key`` is the identity that signs and seals; ``retired-1.key``, ``retired-2.key`` and so on are those that
were before it, oldest first, which only open. How one follows another is in :mod:`smpd.vault.rotation`.
"""

import contextlib
import errno
import os
import re
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from smp_proto import durable
from smp_proto.durable import write_file
from smp_proto.errors import KeyFileError, SmpError
from smp_proto.sealed.filekey import random_secret, wipe
from smp_proto.sealed.keys import WRAPPED_BYTES, Identity
from smpd.config import Keys
from smpd.host.credentials import read_secret
from smpd.host.process import lock_memory

IDENTITY = "identity.key"
STATE_KEY = "state.key"
CREDENTIAL = "credential"
COPIES = "copies"
RETIRED = "retired-{}.key"
_RETIRED = re.compile(r"retired-([1-9][0-9]{0,8})\.key")
_STATE_INFO = b"smpd state key"
_STATE_SIGNED = b"smpd state key\0"
_SECRET_BYTES = 32
_RESTORE = "restore the keys folder from a backup"
T = TypeVar("T")


@dataclass(slots=True)
class BoxKeys:
    """All keys of a running daemon. ``state`` seals the database, the two others belong to the audit log.

    ``identities`` are the one that signs and seals, and then those before it, newest first, which only open. The list
    is changed in place; who goes through it meanwhile misses none of those that were there.
    """

    identities: list[Identity]
    state: bytearray = field(repr=False)
    pseudonym: bytearray = field(repr=False)
    detail: bytearray = field(repr=False)
    created: bool
    protection: str
    protected: bool
    mended: list[str]
    signed: bool = True  # else the key of the state may be anybody's who could write it
    changing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def identity(self) -> Identity:
        """The identity that signs and seals."""
        return self.identities[0]

    def wipe(self) -> None:
        """Zero them all; nothing opens afterwards."""
        for identity in self.identities:
            identity.wipe()
        for key in (self.state, self.pseudonym, self.detail):
            wipe(key)


def load_keys(folder: str, config: Keys, *, first: bool = True) -> BoxKeys:
    """Open the keys of this box, or make them at the ``first`` start.

    Each file is there twice. One that is damaged or missing is made again from the other, and what it was is kept. What
    a rotation was kept from finishing is finished, and nothing is said of it.

    Raises:
        KeyFileError: ``key_locked`` for a wrong credential or passphrase, ``key_invalid`` for a damaged file, and where
            the identity is missing that was there before.
        UsageError: ``bad_config`` for a secret file that others can read.
    """
    durable.sweep_path(folder)
    copies = os.path.join(folder, COPIES)
    durable.make_folder(copies, 0o700)
    durable.sweep_path(copies)
    found = {name: read_both(folder, name) for name in (IDENTITY, STATE_KEY, *_retired(folder))}
    created = not found[IDENTITY]
    if created and not first:
        raise _missing(folder, IDENTITY)
    secrets, kind, protection = read_secrets(folder, config)
    try:
        if created:
            identity, good = _create(folder, found, secrets[0], kind)
            identities = [identity]
        else:
            with _locked_by(folder, config):
                identities, secret, good = _open_all(folder, found, secrets, kind)
        root, good[STATE_KEY], signed, wraps = _state_key(folder, identities, found[STATE_KEY])
        if not (config.passphrase_file or config.credential_file):
            good[CREDENTIAL] = secrets[0] if created else secret
        stale = {IDENTITY: [bytes(good[name]) for name in good if _RETIRED.fullmatch(name)], STATE_KEY: wraps}
        mended = list(_mend(folder, good, stale, created=created))
    finally:
        for each in secrets:
            wipe(each)
    identities[0].forget_seed()  # what is in use is in OpenSSL's keys; the file has the rest
    try:
        keys = BoxKeys(
            identities,
            state=_expand(root, b"smpd state"),
            pseudonym=_expand(root, b"smpd pseudonym"),
            detail=_expand(root, b"smpd audit detail"),
            created=created,
            protection=protection,
            protected=bool(config.passphrase_file or config.credential_file),
            mended=mended,
            signed=signed,
        )
        for key in (keys.state, keys.pseudonym, keys.detail):
            lock_memory(key)
        return keys
    finally:
        wipe(root)


_Files = dict[str, bytes | bytearray]


def _create(folder: str, found: dict[str, list[bytes]], secret: bytearray, kind: str) -> tuple[Identity, _Files]:
    """A first identity, and a key for the state that it opens."""
    if any(_RETIRED.fullmatch(name) for name in found):
        raise _missing(folder, IDENTITY)
    identity = Identity.generate(socket.gethostname()[:64])
    found[STATE_KEY] = [wrap_state(identity, random_secret(_SECRET_BYTES))]
    found[IDENTITY] = [identity.to_file(**{kind: secret})]
    return identity, {IDENTITY: found[IDENTITY][0]}


def _open_all(
    folder: str, found: dict[str, list[bytes]], secrets: list[bytearray], kind: str
) -> tuple[list[Identity], bytearray, _Files]:
    """The identity and those before it, newest first; with them what opened it, and the files they came from."""
    identity, secret, data = open_first(found[IDENTITY], secrets, kind)
    identities, good = [identity], _Files({IDENTITY: data})
    count = sum(_RETIRED.fullmatch(name) is not None for name in found)
    for number in range(count, 0, -1):
        name = RETIRED.format(number)
        if name not in found:
            raise _missing(folder, name)
        if number == count and data in found[name]:
            continue  # a rotation that was not done
        former, _, good[name] = open_first(found[name], secrets, kind)
        identities.append(former.decrypt_only())
        former.forget_seed()
    return identities, secret, good


@contextlib.contextmanager
def _locked_by(folder: str, config: Keys) -> Iterator[None]:
    """Say of keys that do not open what they were tried with: mostly it is another file, or none, that is named."""
    try:
        yield
    except KeyFileError as error:
        if error.code != "key_locked":
            raise
        named = config.passphrase_file or config.credential_file
        beside = any(map(os.path.exists, _both(folder, CREDENTIAL)))
        what = named or ("the credential that lies beside them" if beside else "")
        message = f"the keys in {folder} do not open with {what}"
        if not what:
            message = f"the keys in {folder} are sealed, and nothing is configured that opens them"
        hint = "set keys.credential_file or keys.passphrase_file to what sealed them"
        if what:
            hint += "; if it is that, they were damaged: restore the keys folder from a backup"
        raise KeyFileError("key_locked", message, hint=hint) from None


def open_first(files: list[bytes], secrets: list[bytearray], kind: str) -> tuple[Identity, bytearray, bytes]:
    """Open the first of the files that opens, with the first of the secrets that fits."""
    failure: KeyFileError | None = None
    for data in files:
        for secret in secrets:
            try:
                return Identity.from_file(data, **{kind: secret}), secret, data
            except KeyFileError as error:
                failure = failure or error
    assert failure is not None
    raise failure


def _retired(folder: str) -> set[str]:
    """The names of retired identities' files, wherever one is."""
    places = (folder, os.path.join(folder, COPIES))
    return {name for where in places for name in os.listdir(where) if _RETIRED.fullmatch(name)}


def read_both(folder: str, name: str) -> list[bytes]:
    """A file and its copy, as far as they are there."""
    return [bytes(data) for data in _what_can_be_read(_both(folder, name), _read) if data is not None]


def _both(folder: str, name: str) -> tuple[str, str]:
    return os.path.join(folder, name), os.path.join(folder, COPIES, name)


def _what_can_be_read(paths: Iterable[str], read: Callable[[str], T]) -> list[T]:
    """What is read of a file and its copy. One that the disk does not give counts as damaged, where it gives the other.

    Raises:
        OSError: it gives none.
    """
    found: list[T] = []
    failure: OSError | None = None
    for path in paths:
        try:
            found.append(read(path))
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            failure = error
    if failure is not None and not any(found):
        raise failure
    return found


def _mend(folder: str, good: _Files, stale: Mapping[str, Sequence[bytes]], *, created: bool) -> Iterator[str]:
    """Make each file and its copy what they are to be; says of those that were neither that nor stale."""
    # At first the identity last: where it is there, all that it needs is. Later as a rotation does it.
    names = sorted(name for name in good if _RETIRED.fullmatch(name))
    names += [CREDENTIAL, STATE_KEY, IDENTITY] if created else [CREDENTIAL, IDENTITY, STATE_KEY]
    for name in names:
        if name in good:
            yield from write_both(folder, name, good[name], anew=created, stale=stale.get(name, ()))


def write_both(
    folder: str, name: str, data: bytes | bytearray, *, anew: bool, stale: Collection[bytes] = ()
) -> Iterator[str]:
    """Make a file and its copy what they are to be; says of those that were neither that nor stale.

    ``anew`` is for files that did not count before: what was left of one that was cut off is of no use.
    """
    for path in _both(folder, name):
        where = os.path.dirname(path)
        try:
            was = _read(path) or bytearray()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            with contextlib.suppress(OSError):  # one is kept already, or files have one name only
                durable.also_name(path, f"{path}.damaged")
            yield f"{path} cannot be read, and was made again from its other copy; it is kept as {name}.damaged"
            write_file(where, name, data)
            continue
        try:
            if was == data:
                continue
            if was and not anew and was not in stale:
                write_file(where, f"{name}.damaged", was)
                yield f"{path} was damaged, and made again from its other copy; what it was is {name}.damaged beside it"
            elif not was and where == folder and not anew:
                yield f"{path} was missing, and made again from its copy"
            write_file(where, name, data)
        finally:
            wipe(was)


def _read(path: str) -> bytearray | None:
    """A file's content, for the caller to wipe; None when there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        data = bytearray(os.fstat(fd).st_size)
        if data:
            os.readv(fd, [data])
        return data
    finally:
        os.close(fd)


def read_secrets(folder: str, config: Keys) -> tuple[list[bytearray], str, str]:
    """What may unlock the identity, of which kind it is, and how the identity is protected."""
    if config.passphrase_file:
        shown = f"sealed by the passphrase in {config.passphrase_file}"
        return [read_secret(config.passphrase_file)], "passphrase", shown
    if config.credential_file:
        return [read_secret(config.credential_file)], "credential", f"sealed by {config.credential_file}"
    path = os.path.join(folder, CREDENTIAL)
    paths = [each for each in _both(folder, CREDENTIAL) if os.path.exists(each)]
    whole = [each for each in paths if os.path.getsize(each)]  # a power cut may leave one without its bytes
    secrets = _what_can_be_read(whole or paths, read_secret) or [random_secret(_SECRET_BYTES)]
    return secrets, "credential", f"sealed by {path}, which lies beside it"


class _State(NamedTuple):
    """A file of the state's key, opened: by which identity, and the root in it, which the caller wipes.

    It is ``unsigned`` as an older SMP made it: anybody can wrap a key of theirs for a public one.
    """

    unsigned: bool
    number: int
    root: bytearray
    data: bytes


def wrap_state(identity: Identity, root: bytearray) -> bytes:
    """What the file of the state's key holds: the root, wrapped for an identity and signed by it; wipes the root."""
    try:
        wrapped = identity.public.wrap(root, _STATE_INFO)
    finally:
        wipe(root)
    return wrapped + identity.sign(_STATE_SIGNED + wrapped)


def unwrap_state(identities: Sequence[Identity], data: bytes) -> _State | None:
    """Open the file of the state's key with the first identity that can; None if none can."""
    wrapped, signature = data[:WRAPPED_BYTES], data[WRAPPED_BYTES:]
    for number, identity in enumerate(identities):
        with contextlib.suppress(SmpError):
            if not signature or identity.public.verify(signature, _STATE_SIGNED + wrapped):
                return _State(not signature, number, identity.unwrap(wrapped, _STATE_INFO), data)
    return None


def _state_key(
    folder: str, identities: Sequence[Identity], files: list[bytes]
) -> tuple[bytearray, bytes, bool, list[bytes]]:
    """The root of the keys for this box's state, the file it is to lie in, whether it was signed, and files like it."""
    opened = [found for data in dict.fromkeys(files) if (found := unwrap_state(identities, data))]
    if not opened:
        state = "is damaged" if files else "is missing"
        raise KeyFileError("key_invalid", f"{folder}/{STATE_KEY} {state}", hint=_RESTORE)
    best, *others = sorted(opened, key=lambda each: each[:2])
    like = [best.data, *(each.data for each in others if each.root == best.root)]
    for each in others:
        wipe(each.root)
    present = not (best.unsigned or best.number)
    data = best.data if present else wrap_state(identities[0], bytearray(best.root))
    return best.root, data, not best.unsigned, like


def _missing(folder: str, name: str) -> KeyFileError:
    return KeyFileError("key_invalid", f"{folder}/{name} is missing", hint=_RESTORE)


def _expand(root: bytearray, label: bytes) -> bytearray:
    derived = bytearray(_SECRET_BYTES)
    HKDFExpand(SHA256(), _SECRET_BYTES, label).derive_into(root, derived)
    return derived
