"""What an opening process may still do: read code, and answer its link."""

import signal

from smpd.walls.landlock import Rule
from smpd.walls.sandbox import Kernel, Sandbox, code_folders


def enter(mode: str, kernel: Kernel) -> dict[str, str]:
    """Raise the walls, in the only thread: no file but those of code, no socket, no other process.

    Returns:
        Each wall, and ``on`` or why it is not up.

    Raises:
        UsageError: ``bad_config``, no such mode.
        ResourceError: ``sandbox``, ``required`` cannot be had.
    """
    sandbox = Sandbox(mode, kernel)
    sandbox.forgo_privileges(signal.SIGKILL)
    sandbox.enter_landlock(Rule(path) for path in code_folders(("smpd", "smp_proto")))
    sandbox.enter_seccomp()
    return sandbox.walls
