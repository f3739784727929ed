"""One identity of the box following another: in steps, so that a box opens everything after a crash at any of them.

1. The file of the present identity is kept as the newest of the retired ones. Until the next step it says nothing new.
2. The new one takes the place of ``identity.key``: from that instant on it is the box's.
3. Its copy is made, and ``state.key`` is wrapped for it. What is missing of this the next start does.

:func:`smpd.vault.keys.load_keys` tells a file that a crash left behind from one that is damaged: it is the same as the
retired one, or opens with it.
"""

import os
import socket

from smp_proto import durable
from smp_proto.errors import KeyFileError, StateError
from smp_proto.sealed.filekey import wipe
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpd.config import Keys
from smpd.host.space import disk_errors
from smpd.vault.keys import (
    COPIES,
    IDENTITY,
    RETIRED,
    STATE_KEY,
    BoxKeys,
    open_first,
    read_both,
    read_secrets,
    unwrap_state,
    wrap_state,
    write_both,
)

_WHAT = "the keys"


class Rotation:
    """A new identity for the box, made and sealed by the secret that seals the present one. Blocking, all of it.

    Use it as a context; nobody else can change the keys meanwhile. Step 1 is done by making it.

    Raises:
        StateError: ``wrong_state``; somebody else is changing them.
        KeyFileError: ``key_locked``, ``key_invalid``; the secret, as it is now, does not open the present identity, or
            the file of that one is not on the disk.
        UsageError: ``bad_config``; the secret cannot be read.
        ResourceError: the disk failed. The box's keys are in each case what they were.
    """

    def __init__(self, folder: str, config: Keys, keys: BoxKeys) -> None:
        self._folder, self._keys = folder, keys
        self._former = keys.identity.public
        if not keys.changing.acquire(blocking=False):
            raise StateError("wrong_state", "the keys of this box are being changed", hint="wait, and look again")
        try:
            with disk_errors(_WHAT):
                present, self.identity, self._file = _prepare(folder, config, self._former)
                name = RETIRED.format(len(keys.identities))
                for _ in write_both(folder, name, present, anew=True):
                    pass
        except BaseException:
            keys.changing.release()
            raise

    def __enter__(self) -> "Rotation":
        return self

    def __exit__(self, *exc: object) -> None:
        self._keys.changing.release()

    def commit(self) -> None:
        """Step 2, on the disk and in memory.

        Raises:
            ResourceError: the disk failed. The box goes on with the identity that it had; the next start finds either,
                and can open everything of both.
        """
        with disk_errors(_WHAT):
            durable.write_file(self._folder, IDENTITY, self._file)
        present = self._keys.identity
        self._keys.identities[:1] = [self.identity, present.decrypt_only()]

    def finish(self) -> list[str]:
        """Step 3; returns what could not be done, and will be at the next start."""
        try:
            durable.write_file(os.path.join(self._folder, COPIES), IDENTITY, self._file)
            wrapped = self._rewrapped()
            for where in (self._folder, os.path.join(self._folder, COPIES)):
                durable.write_file(where, STATE_KEY, wrapped)
        except OSError as error:
            return [
                f"the new key is in use, but not all copies of it could be written ({error.strerror}): restart smpd"
            ]
        return []

    def _rewrapped(self) -> bytes:
        for data in read_both(self._folder, STATE_KEY):
            found = unwrap_state(self._keys.identities, data)
            if found is not None and not found.unsigned:
                return wrap_state(self.identity, found.root)
        raise OSError(5, f"{STATE_KEY} cannot be read")


def _prepare(folder: str, config: Keys, present: PublicIdentity) -> tuple[bytes, Identity, bytes]:
    """The file of the present identity, a new identity, and its file."""
    secrets, kind, protection = read_secrets(folder, config)
    try:
        files = [data for data in read_both(folder, IDENTITY) if _is_of(data, present)]
        if not files:
            hint = "restart smpd, which looks at its keys then"
            raise KeyFileError("key_invalid", f"{folder}/{IDENTITY} is not the identity in use", hint=hint)
        try:
            opened, secret, data = open_first(files, secrets, kind)
        except KeyFileError as error:
            message = f"{folder}/{IDENTITY}, {protection}, does not open with that any more; nothing was changed"
            raise KeyFileError("key_locked", message, hint="put back what sealed it, then try again") from error
        opened.wipe()
        identity = Identity.generate(socket.gethostname()[:64])
        sealed = identity.to_file(**{kind: secret})
        identity.forget_seed()
        return data, identity, sealed
    finally:
        for each in secrets:
            wipe(each)


def _is_of(data: bytes, public: PublicIdentity) -> bool:
    try:
        return Identity.peek(data) == public
    except KeyFileError:
        return False
