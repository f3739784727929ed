"""The device: which one, how bytes get onto it, and the buffers that are reused on it.

Where the device has streams, copies run on one of their own and a slot is free once the event behind its last copy
has passed; events are pooled and polled, never waited for. Elsewhere a copy is done when the call returns.
"""

import contextlib
from collections.abc import Callable
from types import ModuleType

import torch

from smp_proto.errors import ResourceError, UsageError

ORDER = ("cuda", "rocm", "mps", "xpu", "cpu")
STAGING_BYTES = 4 << 20
KEEP_BYTES = 256 << 20
_ROUND_BYTES = 1 << 20

Register = Callable[[torch.Tensor], str]


class Buffer:
    """One device buffer, grown when an entry needs more and zeroed between jobs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._bytes = torch.empty(0, dtype=torch.uint8, device=device)
        self._used = 0

    @property
    def capacity(self) -> int:
        """How many bytes it holds without growing."""
        return self._bytes.numel()

    def take(self, size: int) -> torch.Tensor:
        """The first ``size`` bytes; what was taken before is overwritten."""
        if size > self._bytes.numel():
            self.wipe()
            # The old one goes first, so that both are never held.
            self._bytes = torch.empty(0, dtype=torch.uint8, device=self._device)
            rounded = -(-size // _ROUND_BYTES) * _ROUND_BYTES
            self._bytes = torch.empty(rounded, dtype=torch.uint8, device=self._device)
        self._used = max(self._used, size)
        return self._bytes[:size]

    def wipe(self) -> None:
        """Zero what was used; a large buffer is given back."""
        self._bytes[: self._used].zero_()
        self._used = 0
        if self._bytes.numel() > KEEP_BYTES:
            self._bytes = torch.empty(0, dtype=torch.uint8, device=self._device)


class Device:
    """A device on which a copy is done when the call returns: the CPU, and MPS.

    Attributes:
        reads_slots: a part of a slot is a window as it is.
    """

    def __init__(self, device: torch.device, name: str) -> None:
        self.torch_device = device
        self.name = name
        self.stream: torch.Stream | None = None
        self.reads_slots = device.type == "cpu"
        self.entry = Buffer(device)
        self._windows = Buffer(device)

    def pin(self, ring: torch.Tensor) -> str:
        """Register a ring's memory for direct copies; returns why it is not, ``""`` when it is."""
        return f"not of use for {ring.numel()} bytes on {self.name}"

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy a part of a slot to the device."""
        target.copy_(source)

    def window(self, source: torch.Tensor) -> torch.Tensor:
        """A part of a slot as a window on the device, valid until the next one; not where it is one as it is."""
        target = self._windows.take(source.numel())
        target.copy_(source)
        return target

    def fence(self) -> "torch.Event | None":
        """An event behind all copies so far, or None when they are done."""
        return None

    def recycle(self, fence: "torch.Event") -> None:
        """Take back an event that has passed."""

    def current(self) -> contextlib.AbstractContextManager[object]:
        """Make :attr:`stream` current."""
        return contextlib.nullcontext()

    def held(self) -> int:
        """How many bytes of the device's own memory tensors hold."""
        return torch.mps.current_allocated_memory() if self.torch_device.type == "mps" else 0

    def end_job(self) -> None:
        """Zero the buffers and give back what the job's tensors held."""
        self.entry.wipe()
        self._windows.wipe()
        if self.torch_device.type == "mps":
            torch.mps.empty_cache()


class StreamDevice(Device):
    """A device with streams: CUDA, ROCm (which torch calls cuda), XPU.

    Args:
        module: ``torch.cuda`` or ``torch.xpu``.
        register: pins a ring where it is; replaceable, since confidential computing refuses the usual one.
    """

    def __init__(self, device: torch.device, name: str, module: ModuleType, register: Register) -> None:
        super().__init__(device, name)
        self._module = module
        self._register = register
        self._pinned = False
        self.reads_slots = False
        self._compute = module.Stream()
        self._copies = module.Stream()
        self.stream = self._compute
        self._events: list[torch.Event] = []
        self._pair = (Buffer(device), Buffer(device))
        self._read: list[torch.Event | None] = [None, None]
        self._turn = 0
        self._staging: list[torch.Tensor] = []
        self._staged: list[torch.Event] = []

    def pin(self, ring: torch.Tensor) -> str:
        """Register a ring, or make the staging buffers that stand in for that."""
        reason = self._register(ring)
        self._pinned = not reason
        if reason and not self._staging:
            self._staging = [self._make_staging() for _ in range(2)]
            self._staged = [self._module.Event() for _ in range(2)]
        return reason

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Queue a copy, behind what the target is still used for and before what comes next."""
        self._copies.wait_stream(self._compute)
        self._transfer(source, target)
        self._compute.wait_stream(self._copies)

    def window(self, source: torch.Tensor) -> torch.Tensor:
        """Queue a copy into one of two buffers in turn."""
        # Queued kernels may still read the last window, so this one goes into the other buffer of the pair.
        self._read[self._turn] = self._record(self._compute, self._read[self._turn])
        self._turn = 1 - self._turn
        buffer, read = self._pair[self._turn], self._read[self._turn]
        fresh = source.numel() > buffer.capacity
        target = buffer.take(source.numel())
        if fresh or read is None:
            self._copies.wait_stream(self._compute)
        else:
            self._copies.wait_event(read)
        self._transfer(source, target)
        self._compute.wait_stream(self._copies)
        return target

    def fence(self) -> "torch.Event | None":
        """An event behind all copies so far; none where they went through staging buffers, which freed the slot."""
        return self._record(self._copies, self._events.pop() if self._events else None) if self._pinned else None

    def recycle(self, fence: "torch.Event") -> None:
        """Put an event back into the pool."""
        self._events.append(fence)

    def current(self) -> contextlib.AbstractContextManager[object]:
        """Make the stream of the processors current on this thread."""
        manager: contextlib.AbstractContextManager[object] = self._module.stream(self._compute)
        return manager

    def held(self) -> int:
        """How many bytes of the device's memory tensors hold."""
        return int(self._module.memory_allocated(self.torch_device))

    def end_job(self) -> None:
        """Zero all buffers, wait for it, and empty torch's cache."""
        with self.current():
            super().end_job()
            for buffer in self._pair:
                buffer.wipe()
        self._module.synchronize()
        for staging in self._staging:
            staging.zero_()
        self._module.empty_cache()

    def _make_staging(self) -> torch.Tensor:
        return torch.empty(STAGING_BYTES, dtype=torch.uint8, pin_memory=True)

    def _record(self, stream: torch.Stream, event: "torch.Event | None") -> "torch.Event":
        event = self._module.Event() if event is None else event
        assert event is not None
        event.record(stream)
        return event

    def _transfer(self, source: torch.Tensor, target: torch.Tensor) -> None:
        with self._module.stream(self._copies):
            if self._pinned:
                target.copy_(source, non_blocking=True)
                return
            for number, start in enumerate(range(0, source.numel(), STAGING_BYTES)):
                part = source[start : start + STAGING_BYTES]
                staging, event = self._staging[number % 2][: part.numel()], self._staged[number % 2]
                event.synchronize()
                staging.copy_(part)
                target[start : start + part.numel()].copy_(staging, non_blocking=True)
                event.record(self._copies)


def choose(wanted: str) -> tuple[Device, list[str]]:
    """Open a device.

    Args:
        wanted: ``auto`` for the first of :data:`ORDER` that is there, or one of it, also ``cuda:1``.

    Returns:
        The device, and notes for ``smpctl doctor``.

    Raises:
        UsageError: ``bad_config``, no such device here.
        ResourceError: ``no_memory``, others use all of its memory.
    """
    kind, _, index = wanted.partition(":")
    if wanted != "auto" and (kind not in ORDER or (index and not index.isdecimal())):
        raise UsageError("bad_config", f"device is {wanted!r}", hint="one of: auto, " + ", ".join(ORDER))
    missing = {}
    for name in ORDER if wanted == "auto" else (kind,):
        missing[name] = _missing(name)
        if not missing[name]:
            reasons = "; ".join(filter(None, missing.values()))
            note = f'fell back to the CPU: {reasons}; if that is meant: compute.device = "cpu"'
            return _open(name, int(index or 0)), [note] if name == "cpu" and reasons else []
    message = f"device {wanted} is not here: {missing[kind]}"
    raise UsageError("bad_config", message, hint='set device = "auto", or install the torch build for it')


def _missing(name: str) -> str:
    """Why there is no such device; ``""`` when there is."""
    if name in {"cuda", "rocm"}:
        built = torch.version.cuda if name == "cuda" else torch.version.hip
        if not built:
            return f"torch {torch.__version__} is built without {name.upper() if name == 'cuda' else 'ROCm'}"
        return "" if torch.cuda.is_available() else f"{name}: no device or no driver"
    if name == "mps":
        return "" if torch.backends.mps.is_available() else "no MPS"
    if name == "xpu":
        return "" if torch.xpu.is_available() else "no XPU"
    return ""


def _open(name: str, index: int) -> Device:
    if name in {"cpu", "mps"}:
        return Device(torch.device(name), "CPU" if name == "cpu" else "Apple MPS")
    module = torch.xpu if name == "xpu" else torch.cuda
    if index >= module.device_count():
        raise UsageError("bad_config", f"device {name}:{index} is not here", hint=f"there are {module.device_count()}")
    device = torch.device(module.__name__.rpartition(".")[2], index)
    try:
        module.set_device(index)
        torch.empty(1, device=device)
    except RuntimeError as error:
        if not is_memory_error(error):
            raise
        message = f"device {name}:{index} cannot be opened: all of its memory is in use"
        hint = "end what else runs on it (nvidia-smi, rocm-smi or xpu-smi lists that), or choose another device"
        raise ResourceError("no_memory", message, hint=hint) from None
    register = _host_register if module is torch.cuda else _no_register
    return StreamDevice(device, str(module.get_device_name(index)), module, register)


def _no_register(_ring: torch.Tensor) -> str:
    return "this device cannot register memory"


def _host_register(ring: torch.Tensor) -> str:
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch does not say
    code = cudart.cudaHostRegister(ring.data_ptr(), ring.numel(), 0)
    if int(code) == 0:
        return ""
    # The refusal stays behind as CUDA's last error, and the next launch would report it as its own.
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    return f"cudaHostRegister was refused ({cudart.cudaGetErrorString(code)})"


def is_memory_error(error: BaseException) -> bool:
    """Whether an exception says that the device or this process is out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU's allocator; and a driver's own, where a kernel is loaded or a process opens a device that is full.
    said = ("can't allocate memory", "error: out of memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in said)


def is_fatal(error: BaseException) -> bool:
    """Whether the device cannot be used any more by this process (a sticky CUDA error)."""
    return isinstance(error, torch.AcceleratorError) and not is_memory_error(error)
