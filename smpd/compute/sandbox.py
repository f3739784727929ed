"""What a compute process may still do: read code, use the device, and nothing else.

Its walls go up in two steps. :meth:`Sandbox.before_imports`, while there is one thread: no new privileges, no
capabilities, limits, Landlock (which binds only threads started later). :meth:`Sandbox.before_plugins`, once the
device is open and before the first line of a plugin runs: seccomp on all threads, and the memory limit.

Not tried on a GPU. By what their authors document, NVIDIA's driver from 570 on reads ``/proc/driver/nvidia*``
and writes ``/proc/self/task/*/comm``. The setuid
``nvidia-modprobe`` cannot run from here, so the device nodes must exist.
"""

import glob
import resource
import signal
from collections.abc import Iterable

from smpd.compute.usage import status_bytes
from smpd.walls import sandbox
from smpd.walls.landlock import DEVICE, Rule

_KERNEL = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/devices", "/sys/devices/system")
_GPU = (
    "/proc/driver/nvidia*",
    "/sys/bus/pci",
    "/sys/devices/pci*",
    "/sys/module/nvidia*",
    "/sys/class/kfd",
    "/sys/class/drm",
    "/sys/devices/virtual/kfd",
    "/usr/local/cuda*",
    "/opt/rocm*",
    "/usr/share/libdrm",
    "/run/opengl-driver",
    "/etc/OpenCL",
)
_DEVICES = ("/dev/nvidia*", "/dev/kfd", "/dev/dri")


class Sandbox(sandbox.Sandbox):
    """The walls of a compute process."""

    def before_imports(self, readable: Iterable[str]) -> None:
        """Close what needs no device and no torch; ``readable`` are the folders of code."""
        self.forgo_privileges(signal.SIGKILL)
        rules = [Rule(path) for path in (*_KERNEL, *readable)]
        rules += [Rule(path) for pattern in _GPU for path in glob.glob(pattern)]
        devices = [path for pattern in _DEVICES for path in glob.glob(pattern)]
        rules += [Rule(path, DEVICE) for path in devices]
        if devices:
            rules.append(Rule("/proc/self", DEVICE))
        self.enter_landlock(rules)

    def before_plugins(self, memory_bytes: int) -> None:
        """Refuse system calls on all threads.

        Args:
            memory_bytes: what this process may allocate from here on, beside what it has; 0 for no limit. Not for a
                process with a GPU, whose driver reserves far more address space than it uses.
        """
        if self.on and memory_bytes > 0:
            limit = status_bytes("VmData") + memory_bytes
            self._raise_wall("limits", lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
        self.enter_seccomp()
