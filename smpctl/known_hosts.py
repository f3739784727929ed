"""The lines of an OpenSSH known_hosts file that are about one host (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT")."""

import base64
import binascii
import fnmatch
import hashlib
import hmac
import os
import re

from smp_proto.errors import NotFoundError, RemoteError

DEFAULT = "~/.ssh/known_hosts"
_SSH_PORT = 22


def lines_for(host: str, port: int, path: str = DEFAULT) -> str:
    """The lines that apply, also hashed ones, as text.

    Raises:
        NotFoundError: ``no_such_file``.
        RemoteError: ``remote_untrusted``; there is none, with how to add one after checking it.
    """
    path = os.path.expanduser(path)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            found = [line for line in file if applies(line, host, port)]
    except FileNotFoundError:
        found = []
    except OSError as error:
        raise NotFoundError("no_such_file", f"{path} cannot be read: {error.strerror}", hint="check its mode") from None
    if any(not line.startswith("@revoked") for line in found):
        return "".join(line.rstrip("\n") + "\n" for line in found)
    scan = f"ssh-keyscan -p {port} {host}" if port != _SSH_PORT else f"ssh-keyscan {host}"
    hint = f"compare `{scan} | ssh-keygen -lf -` with the server's keeper; if it is the same: {scan} >> {path}"
    raise RemoteError("remote_untrusted", f"{path} has no key of {host}", hint=hint)


def applies(line: str, host: str, port: int) -> bool:
    """Whether a line is about a host: by name, pattern or hash, none of its negations matching."""
    fields = line.split()
    if fields and fields[0] in ("@cert-authority", "@revoked"):
        del fields[0]
    if len(fields) < 3 or fields[0].startswith("#"):
        return False
    name = host.lower() if port == _SSH_PORT else f"[{host.lower()}]:{port}"
    matched = False
    for pattern in fields[0].split(","):
        if pattern.startswith("|1|"):
            matched = matched or _hashed(pattern, name)
        elif pattern.startswith("!"):
            if _pattern(pattern[1:], name):
                return False
        else:
            matched = matched or _pattern(pattern, name)
    return matched


def _hashed(field: str, name: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in field[3:].split("|"))
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)


def _pattern(pattern: str, name: str) -> bool:
    # Only * and ? are special here; [ begins the form with a port.
    escaped = pattern.lower().replace("[", "[[]")
    return re.fullmatch(fnmatch.translate(escaped), name) is not None
