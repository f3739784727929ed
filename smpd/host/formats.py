"""Which version each part of the state folder is in that does not say so itself.

The database and the key files carry a version of their own. For the rest the file ``formats.json`` does. One that is
absent or unreadable is of the first version; what a newer SMP wrote is left as it is.
"""

import os

import msgspec

from smp_proto import durable
from smp_proto.errors import IntegrityError
from smpd.host.space import disk_errors

NAME = "formats.json"
FORMATS = {"audit": 1, "keys": 2, "spool": 1, "vault": 1}


def check_formats(folder: str) -> None:
    """See that this SMP knows all that lies in the state folder, and note what it writes.

    Raises:
        IntegrityError: ``unsupported``; a newer SMP wrote it. Nothing was changed.
        ResourceError: ``disk_full``, ``disk_failed``.
    """
    path = os.path.join(folder, NAME)
    with disk_errors(path):
        _check(folder, path)


def _check(folder: str, path: str) -> None:
    found: dict[str, int] = {}
    try:
        with open(path, "rb") as file:
            found = msgspec.json.decode(file.read(), type=dict[str, int])
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        pass
    newer = [f"{name} {version}" for name, version in sorted(found.items()) if version > FORMATS.get(name, 0)]
    if newer:
        known = ", ".join(f"{name} {version}" for name, version in FORMATS.items())
        raise IntegrityError(
            "unsupported",
            f"a newer smpd wrote {folder}: {', '.join(newer)}; this one knows {known}",
            hint="start the newer smpd that wrote it, or restore the backup made before it; nothing was changed",
        )
    if found != FORMATS:
        durable.write_file(folder, NAME, msgspec.json.encode(FORMATS))
