"""Raises walls and becomes the command: ``python -P -m smpd.notices.launch SANDBOX HIDDEN… -- ARGV…``.

The command may use the network, and read and run what is on this machine, but nothing of the hidden folders, in which
the keys and the state are; it writes no file and gains no privilege.
"""

import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence

from smp_proto.errors import SmpError
from smpd.walls.landlock import READ, Rule
from smpd.walls.sandbox import Kernel, Sandbox

_EXECUTE = 1 << 0  # LANDLOCK_ACCESS_FS_EXECUTE
_MEMORY_BYTES = 1 << 30
_LIMITS = {
    resource.RLIMIT_AS: _MEMORY_BYTES,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_NOFILE: 256,
    resource.RLIMIT_CPU: 60,
}


def around(folder: str, hidden: Sequence[str]) -> Iterator[str]:
    """Every file and folder below ``folder`` that holds nothing hidden, as high up as can be.

    Links are left out: what one leads to is allowed where it lies, or is not.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.path)
    except OSError:
        return
    for entry in entries:
        if entry.is_symlink() or entry.path in hidden:
            continue
        if any(each.startswith(entry.path + "/") for each in hidden):
            yield from around(entry.path, hidden)
        else:
            yield entry.path


def main() -> None:
    """Become the command; exit status 71 (EX_OSERR) where it or a wall that is required cannot be had."""
    mode, *rest = sys.argv[1:]
    cut = rest.index("--")
    hidden, argv = [os.path.realpath(each) for each in rest[:cut]], rest[cut + 1 :]
    try:
        sandbox = Sandbox(mode, Kernel.probe())
        sandbox.forgo_privileges(signal.SIGKILL)
        sandbox.limit(_LIMITS)
        sandbox.enter_landlock([Rule(path, READ | _EXECUTE) for path in around("/", hidden)], tcp=True)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # copies of its own three, by which uvloop started this process
        os.execv(argv[0], argv)  # noqa: S606 - the command of the configuration, without a shell
    except (SmpError, OSError) as error:
        print(f"{argv[0]}: {error}", file=sys.stderr)  # noqa: T201 - smpd reads it
        sys.exit(os.EX_OSERR)


if __name__ == "__main__":
    main()
