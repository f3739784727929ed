"""What a compute process may still do: read code, use the device, and nothing else.

Its walls go up in two steps. :meth:`Sandbox.before_imports`, while there is one thread: no new privileges, no
capabilities, limits, Landlock (which binds only threads started later). :meth:`Sandbox.before_plugins`, once the
device is open and before the first line of a plugin runs: seccomp on all threads, and the limits of memory.

Memory is limited by RLIMIT_DATA, since address space (RLIMIT_AS) is reserved by torch and by drivers far beyond what
is used. It counts private memory only, so the kinds that it does not count are closed: files in memory grow by no byte
(RLIMIT_FSIZE), no shared memory without a file can be mapped, nor any that grows down. NVIDIA's driver needs shared
memory without a file; with a GPU smpd's own watch on the process is what counts that, and a unit's MemoryMax.

Seen with driver 580 on an H100: it reads ``/proc/driver/nvidia*``, and names its threads through
``/proc/self/task/*/comm``; refused that, it gives up (CUDA error 304). Of ``/proc/self`` it needs no more besides than
torch does. The setuid ``nvidia-modprobe`` cannot run from here, so the device nodes must exist. Not tried with ROCm
and XPU.
"""

import contextlib
import glob
import resource
import signal
from collections.abc import Iterable

from smpd.compute.usage import status_bytes
from smpd.walls import sandbox
from smpd.walls.landlock import DEVICE, OVERWRITE, Rule

_KERNEL = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/devices", "/sys/devices/system")
# Not all of /proc/self, where net/ has every socket of the machine, and mountinfo every mount.
_SELF = (
    "status",
    "stat",
    "statm",
    "maps",
    "smaps",
    "smaps_rollup",
    "limits",
    "cmdline",
    "comm",
    "auxv",
    "fd",
    "cgroup",
)
_GPU = (
    "/proc/driver/nvidia*",
    "/proc/sys/vm/mmap_min_addr",
    "/sys/bus/pci",
    "/sys/devices/pci*",
    "/sys/module/nvidia*",
    "/sys/class/kfd",
    "/sys/class/drm",
    "/sys/devices/virtual/kfd",
    "/usr/local/cuda*",
    "/usr/local/nvidia",
    "/opt/rocm*",
    "/usr/share/libdrm",
    "/run/opengl-driver",
    "/etc/OpenCL",
)
_DEVICES = ("/dev/nvidia*", "/dev/kfd", "/dev/dri")
_FILES = 1024  # descriptors; what drivers of eight devices open, and little enough kernel memory behind them
_OOM_SCORE = 500  # of 1000: when the machine is out of memory, this process goes and not smpd


class Sandbox(sandbox.Sandbox):
    """The walls of a compute process."""

    def before_imports(self, readable: Iterable[str]) -> None:
        """Close what needs no device and no torch; ``readable`` are the folders of code."""
        if self.on:  # first: of a process that is not dumpable that file is root's
            with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
                score.write(str(_OOM_SCORE))
        self.forgo_privileges(signal.SIGKILL)
        rules = [Rule(path) for path in (*_KERNEL, *readable)]
        rules += [Rule(path) for pattern in _GPU for path in glob.glob(pattern)]
        devices = [path for pattern in _DEVICES for path in glob.glob(pattern)]
        rules += [Rule(path, DEVICE) for path in devices]
        rules += [Rule(f"/proc/self/{name}") for name in _SELF]
        if devices:  # a driver that cannot name its threads gives up (CUDA error 304)
            rules.append(Rule("/proc/self/task", OVERWRITE))
        self.enter_landlock(rules)

    def before_plugins(self, memory_bytes: int, *, gpu: bool) -> None:
        """Refuse system calls on all threads, and limit what can be taken.

        Args:
            memory_bytes: what this process may allocate from here on, beside what it has; 0 for no limit.
            gpu: its driver is at work here.
        """
        limits = {resource.RLIMIT_NOFILE: _FILES, resource.RLIMIT_FSIZE: 0}
        if memory_bytes > 0:
            limits[resource.RLIMIT_DATA] = status_bytes("VmData") + memory_bytes
        self.limit(limits)
        self.enter_seccomp(shared_memory=gpu)
