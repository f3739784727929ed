"""Reading secrets from 0600 files and systemd credentials (systemd.exec(5), LoadCredential) into wipeable memory."""

import os
import stat
from collections.abc import Mapping

from smp_proto.errors import UsageError

_SECRET_BYTES_MAX = 1 << 16


def read_secret(path: str, environ: Mapping[str, str] = os.environ) -> bytearray:
    """The content of a secret file, for the caller to wipe.

    Raises:
        UsageError: ``bad_config`` when it cannot be read, is open to others, is empty or over 64 KiB.
    """
    fd = _open_secret(path, environ)
    try:
        size = os.fstat(fd).st_size
        if not 0 < size <= _SECRET_BYTES_MAX:
            raise _unfit(path, "is empty or over 64 KiB", "check what was written there")
        secret = bytearray(size)  # never resized, since that may leave a copy behind
        if os.readv(fd, [secret]) != size:
            secret[:] = bytes(size)
            raise _unfit(path, "changed while it was read", "try again")
        return secret
    finally:
        os.close(fd)


def check_secret(path: str, environ: Mapping[str, str] = os.environ) -> None:
    """Refuse a secret file that could not be used, without reading it. Raises as :func:`read_secret`."""
    os.close(_open_secret(path, environ))


def _open_secret(path: str, environ: Mapping[str, str]) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unfit(path, f"cannot be read: {error.strerror}", "name a file that smpd may read") from None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise _unfit(path, "is not a regular file", "name a regular file")
    open_to_others = found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o077
    if open_to_others and not _is_credential(path, environ):
        os.close(fd)
        raise _unfit(path, "is open to others", f"run: chown {os.geteuid()} {path}; chmod 0600 {path}")
    return fd


def _is_credential(path: str, environ: Mapping[str, str]) -> bool:
    # systemd guards that folder itself, by an ACL on newer versions, which shows as group bits.
    folder = environ.get("CREDENTIALS_DIRECTORY", "")
    return bool(folder) and os.path.dirname(os.path.realpath(path)) == os.path.realpath(folder)


def _unfit(path: str, reason: str, hint: str) -> UsageError:
    return UsageError("bad_config", f"the secret file {path} {reason}", hint=hint)
