"""Raising the walls, each on its own, and saying of each whether it is up."""

import ctypes
import dataclasses
import importlib.util
import os
import resource
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping

from smp_proto.errors import ResourceError, UsageError
from smpd.walls import landlock, seccomp
from smpd.walls.landlock import DEVICE, Rule

MODES = ("auto", "required", "off")
WALLS = ("no_new_privs", "capabilities", "limits", "landlock", "seccomp")

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITY_VERSION_3 = 0x2008_0522

# What any program needs: shared objects, time zones, and the two devices that hold nothing.
_PROGRAM = (
    *("/usr/lib", "/usr/lib64", "/usr/lib32", "/usr/local/lib", "/lib", "/lib64", "/usr/share/zoneinfo"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/nix/store"),
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What this kernel has of what the walls are made of."""

    machine: str
    landlock_abi: int
    seccomp: bool

    @classmethod
    def probe(cls) -> "Kernel":
        """Ask the running kernel."""
        libc, machine = _libc(), os.uname().machine
        return cls(machine, landlock.abi(libc), seccomp.available(libc, machine))


class Sandbox:
    """The walls of this process. ``walls`` maps each to ``on`` or to why it is not.

    Args:
        mode: ``auto`` raises what walls it can, ``required`` all or none, ``off`` none, for debugging.

    Raises:
        UsageError: ``bad_config``, no such mode.
        ResourceError: ``sandbox``, naming the wall, from any method, when ``required`` cannot be had.
    """

    def __init__(self, mode: str, kernel: Kernel) -> None:
        if mode not in MODES:
            raise UsageError("bad_config", f"sandbox is {mode!r}", hint="one of: " + ", ".join(MODES))
        self.walls = dict.fromkeys(WALLS, "off by configuration")
        self._mode = mode
        self._kernel = kernel
        self._libc = _libc()
        self._pins: list[int] = []

    @property
    def on(self) -> bool:
        """Whether any wall is wanted."""
        return self._mode != "off"

    def forgo_privileges(self, death_signal: int) -> None:
        """Gain no privilege, hold no capability, leave no core, be no debugger's prey, and end when smpd ends.

        Args:
            death_signal: what this process gets when its parent dies.
        """
        if self.on:
            self._raise_wall("no_new_privs", lambda: self._prctl(_PR_SET_NO_NEW_PRIVS, 1))
            self._raise_wall("capabilities", self._drop_capabilities)
            self._raise_wall("limits", lambda: self._limit(death_signal))

    def forgo_io_uring(self) -> None:
        """Let nobody find io_uring, before libuv does; no wall by itself. After :meth:`forgo_privileges`.

        Raises:
            OSError: the kernel refused it.
        """
        if self._kernel.seccomp:
            seccomp.install(self._libc, self._kernel.machine, seccomp.without_io_uring())

    def enter_landlock(self, rules: Iterable[Rule], *, tcp: bool = False) -> None:
        """Open no file but those of the rules and what any program needs; while there is one thread.

        Args:
            tcp: leave TCP alone.
        """
        if self.on:
            self._raise_wall("landlock", lambda: self._enter_landlock(rules, tcp))

    def enter_seccomp(
        self, sockets: seccomp.Sockets | None = None, *, shared_memory: bool = True, watches: bool = False
    ) -> None:
        """Refuse system calls on all threads; the arguments are those of :func:`smpd.walls.seccomp.program`."""
        if self.on:
            self._raise_wall("seccomp", lambda: self._enter_seccomp(sockets, shared_memory, watches))

    def limit(self, limits: Mapping[int, int]) -> None:
        """Lower limits of this process (getrlimit(2)), hard and soft, for ever; none is raised."""
        if self.on:
            self._raise_wall("limits", lambda: _lower(limits))

    def _raise_wall(self, name: str, build: Callable[[], None]) -> None:
        try:
            build()
            self.walls[name] = "on"
        except (OSError, ValueError) as error:
            self.walls[name] = getattr(error, "strerror", None) or str(error)
            if self._mode == "required":
                raise ResourceError(
                    "sandbox",
                    f"the wall {name} cannot be raised: {self.walls[name]}",
                    hint='use a newer kernel, or set sandbox = "auto" and accept what "smpctl doctor" then lists',
                ) from error

    def _prctl(self, option: int, value: int) -> None:
        if self._libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def _drop_capabilities(self) -> None:
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        if self._libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
            number, held = ctypes.get_errno(), (ctypes.c_uint32 * 6)()
            # A unit may refuse capset to one that holds none: systemd has it among the calls of the privileged.
            if self._libc.capget(header, held) != 0 or any(held):
                raise OSError(number, os.strerror(number))

    def _limit(self, death_signal: int) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # Neither a debugger nor /proc/PID/mem of the same user reads what this process holds.
        self._prctl(_PR_SET_DUMPABLE, 0)
        self._prctl(_PR_SET_PDEATHSIG, death_signal)

    def _enter_landlock(self, rules: Iterable[Rule], tcp: bool) -> None:
        if self._kernel.landlock_abi < 1:
            raise OSError(0, "this kernel has no Landlock (Linux 5.13, lsm= must list it), or a container hides it")
        if len(os.listdir("/proc/self/task")) > 1:
            raise OSError(0, "threads were running already, which Landlock would not bind")
        program = [Rule(path) for path in _PROGRAM] + [Rule("/dev/null", DEVICE), Rule("/dev/urandom")]
        self._pins = landlock.restrict(self._libc, self._kernel.landlock_abi, [*program, *rules], tcp=tcp)

    def _enter_seccomp(self, sockets: seccomp.Sockets | None, shared_memory: bool, watches: bool) -> None:
        if not self._kernel.seccomp:
            raise OSError(0, f"this kernel has no seccomp filters, or {self._kernel.machine} is not known here")
        blind = 1 <= self._kernel.landlock_abi < landlock.ABI_TRUNCATE
        allowed = {"shared_memory": shared_memory, "watches": watches, "openat2": not blind}
        code = seccomp.program(self._kernel.machine, os.getpid(), sockets, **allowed)
        seccomp.install(self._libc, self._kernel.machine, code)


def code_folders(modules: Iterable[str], path: Iterable[str] | None = None) -> list[str]:
    """Where Python's own code, the installed packages and these top-level modules are; never the root folder.

    A virtual environment is there for its programs, so all of it; of the prefix of a system's Python, which may be
    ``/usr``, only the libraries. ``path`` stands in for ``sys.path``.
    """
    found = {
        *(sys.path if path is None else path),
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    }
    if sys.prefix != sys.base_prefix:
        found.add(sys.prefix)
    found.update(os.path.join(sys.base_prefix, name) for name in ("lib", "lib64"))
    found.update(os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    for module in modules:
        # An editable install may be found by a hook instead of through sys.path.
        spec = importlib.util.find_spec(module)
        if spec is not None:
            found.update(spec.submodule_search_locations or ([spec.origin] if spec.origin else []))
    return sorted(path for path in found if os.path.isabs(path) and os.path.realpath(path) != "/")


def _lower(limits: Mapping[int, int]) -> None:
    for which, wanted in limits.items():
        hard = resource.getrlimit(which)[1]
        lowered = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(which, (lowered, lowered))


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc
