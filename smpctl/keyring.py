"""The person's keys: private identities, sealed, and the public keys of others that they chose to believe.

One folder, ``$XDG_CONFIG_HOME/smp/keys`` (0700): ``NAME.key`` is a private identity, ``NAME.pub`` someone else's
public key, both 0600. Importing a public key is the act of trust: what its owner signed is then believed.
"""

import os
import re
from contextlib import suppress
from typing import NamedTuple

from smp_proto import durable
from smp_proto.errors import IntegrityError, KeyFileError, NotFoundError, ResourceError, StateError, UsageError
from smp_proto.sealed.filekey import wipe
from smp_proto.sealed.keyfile import BEGIN, CREDENTIAL_MIN_BYTES
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpctl.client import Client
from smpctl.session import secret_bytes
from smpctl.terminal import ask, strip_line

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_FILE_MAX = 1 << 16
_HINT = "check the disk, and the folder's owner and mode"
BOX = "box"


class Key(NamedTuple):
    """A key of the ring; ``private`` when it is one's own."""

    name: str
    private: bool
    public: PublicIdentity


class Unlock(NamedTuple):
    """How a private identity is opened: files, or else by asking on the terminal."""

    passphrase_file: str | None = None
    credential_file: str | None = None

    @property
    def given(self) -> bool:
        """Whether no one needs to be asked."""
        return bool(self.passphrase_file or self.credential_file)


class Keyring:
    """The folder of keys, made when first written to.

    Args:
        folder: another place than the usual.
    """

    def __init__(self, folder: str | None = None) -> None:
        config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        self.folder = folder or os.path.join(config, "smp", "keys")

    def all_keys(self) -> list[Key]:
        """All keys, by name.

        Raises:
            KeyFileError: ``key_invalid`` for a file that is none.
        """
        with suppress(FileNotFoundError):
            found = map(os.path.splitext, sorted(os.listdir(self.folder)))
            keys = [(stem, ending) for stem, ending in found if ending in (".key", ".pub") and _NAME.fullmatch(stem)]
            return [self._load(stem, ending) for stem, ending in keys]
        return []

    def find(self, name: str) -> Key | None:
        """The key of this name, one's own before another's."""
        if not _NAME.fullmatch(name):
            return None
        for ending in (".key", ".pub"):
            if os.path.exists(os.path.join(self.folder, name + ending)):
                return self._load(name, ending)
        return None

    def recipient(self, text: str, client: Client | None = None) -> PublicIdentity:
        """Whom ``--to`` means: a name in the ring, a file with a public key, or ``box`` for the daemon's.

        Raises:
            NotFoundError: ``no_such_key``.
            DaemonError: ``box`` was asked for and no daemon answers.
        """
        if (key := self.find(text)) is not None:
            return key.public
        if text == BOX and client is not None:  # before a file: somebody may have put one where we work
            return PublicIdentity.parse(client.box_key().text)
        if os.path.exists(text) and not os.path.isdir(text):  # a pipe, too
            return public_key_in(read_key_file(text), text)
        hint = "see your keys with: smpctl keys list; add one with: smpctl keys import FILE --name NAME"
        raise NotFoundError("no_such_key", f"{text} is neither a key of yours nor a file", hint=hint)

    def own(self, name: str | None) -> Key:
        """The private identity of this name, or the only one there is.

        Raises:
            NotFoundError: ``no_such_key``.
            UsageError: ``bad_request``; there are several.
        """
        mine = [key for key in self.all_keys() if key.private and name in (None, key.name)]
        if len(mine) == 1:
            return mine[0]
        if mine:
            names = ", ".join(key.name for key in mine)
            raise UsageError("bad_request", f"you have several keys: {names}", hint=f"say which: --from {mine[0].name}")
        wanted = f"you have no private key named {name}" if name else "you have no private key"
        raise NotFoundError("no_such_key", wanted, hint=f"make one with: smpctl keys new {name or 'NAME'}")

    def unlock(self, key: Key, how: Unlock) -> Identity:
        """Open a private identity; the caller wipes it.

        Raises:
            KeyFileError: ``key_locked``.
        """
        data = read_key_file(os.path.join(self.folder, f"{key.name}.key"))
        if how.credential_file:
            credential = credential_from(how.credential_file)
            try:
                return Identity.from_file(data, credential=credential)
            except KeyFileError as error:
                raise _named(f"the key {key.name}", error) from None
            finally:
                wipe(credential)
        passphrase = passphrase_from(how.passphrase_file) if how.passphrase_file else ask_passphrase(key.name)
        try:
            return Identity.from_file(data, passphrase=passphrase)
        except KeyFileError as error:
            raise _named(f"the key {key.name}", error) from None
        finally:
            wipe(passphrase)

    def trusted(self, key_id: bytes) -> PublicIdentity:
        """The sender of this key id, when it is in the ring.

        Raises:
            IntegrityError: ``untrusted_sender``, with what to type.
        """
        for key in self.all_keys():
            if key.public.key_id == key_id:
                return key.public
        shown = key_id.hex("-", 2)
        hint = (
            "if you know whose it is, get their public key, compare this fingerprint with them, and: "
            "smpctl keys import FILE --name NAME"
        )
        details = {"fingerprint": shown}
        raise IntegrityError(
            "untrusted_sender", f"the sender {shown} is not in your keyring", hint=hint, details=details
        )

    def check_free(self, name: str) -> None:
        """See that a key can have this name.

        Raises:
            UsageError: ``bad_name``.
            StateError: ``exists``; a name stands for one key.
        """
        if not _NAME.fullmatch(name):
            hint = "up to 64 letters, digits and ._@+-, beginning with a letter or digit"
            raise UsageError("bad_name", f"{name!r} is no name for a key", hint=hint)
        if self.find(name) is not None:
            raise StateError("exists", f"you have a key named {name}", hint="choose another name")

    def add(self, name: str, data: bytes, *, private: bool) -> Key:
        """Keep a key. Raises as :meth:`check_free`, too."""
        self.check_free(name)
        try:
            durable.make_folders(self.folder, 0o700)
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ResourceError("disk_failed", f"{self.folder} cannot be used: {error.strerror}", hint=_HINT) from None
        ending = ".key" if private else ".pub"
        try:
            os.fchmod(folder, 0o700)
            durable.sweep(folder)
            durable.write_file(folder, name + ending, data, replace=False)
        except FileExistsError:  # since it was looked for
            raise StateError("exists", f"you have a key named {name}", hint="choose another name") from None
        except OSError as error:
            raise ResourceError("disk_failed", f"the key {name} cannot be kept: {error.strerror}", hint=_HINT) from None
        finally:
            os.close(folder)
        return self._load(name, ending)

    def _load(self, name: str, ending: str) -> Key:
        path = os.path.join(self.folder, name + ending)
        data = read_key_file(path)
        try:
            public = Identity.peek(data) if ending == ".key" else public_from(data)
        except KeyFileError as error:
            raise _named(path, error) from None
        return Key(name, ending == ".key", public)


def public_from(data: bytes) -> PublicIdentity:
    """The public key in a file of either kind."""
    if data.startswith(BEGIN):
        return Identity.peek(data)
    return PublicIdentity.parse(data.decode("utf-8", "replace"))


def public_key_in(data: bytes, path: str) -> PublicIdentity:
    """The public key in what a file holds; ``key_invalid`` names it."""
    try:
        return public_from(data)
    except KeyFileError as error:
        raise _named(path, error) from None


def _named(what: str, error: KeyFileError) -> KeyFileError:
    named = error.message if what in error.message else f"{what}: {error.message}"
    return KeyFileError(error.code, named, hint=error.hint)


def read_key_file(path: str) -> bytes:
    """A key file or public key, at most 64 KiB.

    Raises:
        NotFoundError: ``no_such_file``.
        KeyFileError: ``key_invalid``; it is far too long.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_FILE_MAX + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise NotFoundError("no_such_file", f"{path} cannot be read: {reason}", hint="check the path") from None
    if len(data) > _FILE_MAX:
        raise KeyFileError("key_invalid", f"{path} is no key file: it is over 64 KiB", hint="name the key's file")
    return data


def passphrase_from(path: str) -> bytearray:
    """The first line of a file.

    Raises:
        UsageError: ``bad_request``; it is empty.
    """
    data = secret_bytes(path, "passphrase")
    if line := strip_line(data, len(data)):
        return line
    hint = "write the passphrase into its first line"
    raise UsageError("bad_request", f"the first line of the passphrase file {path} is empty", hint=hint)


def credential_from(path: str) -> bytearray:
    """The key material in a file.

    Raises:
        UsageError: ``bad_request``; it is too little.
    """
    data = secret_bytes(path, "credential")
    if len(data) >= CREDENTIAL_MIN_BYTES:
        return data
    size = len(data)
    wipe(data)
    message = f"the credential file {path} has {size} bytes, and a key takes {CREDENTIAL_MIN_BYTES} or more"
    raise UsageError("bad_request", message, hint=f"make one with: head -c {CREDENTIAL_MIN_BYTES} /dev/urandom > FILE")


def ask_passphrase(name: str) -> bytearray:
    """The passphrase of a key that is there already."""
    return ask(f"Passphrase of {name}", otherwise="give it in a file: --passphrase-file FILE")
