"""What a compute process may take, and what a worker may say: memory and threads, and the errors that it answers with.

Code that somebody else wrote runs in that process, and can send any bytes over its link. So an error from there is not
believed to be about anything but a processor, and nothing that it says of its own memory is asked for.
"""

import os
from typing import NamedTuple

import anyio

from smp_proto.errors import ProcessorError, RemoteError, ResourceError, SmpError
from smpd.host.memory import hidden_usage, usage
from smpd.transfer.health import Health, HealthSettings

THREADS = 256  # beside those there are when it is ready, and some for each core
LOOK_S = 0.25
LOOK_IDLE_S = 5.0
_THREADS_PER_CORE = 8
_TEXT_MAX, _HINT_MAX = 1000, 500
_RUN = frozenset(
    (
        *("processor_failed", "processor_timeout", "processor_output", "processor_input", "bad_parameter"),
        *("no_such_processor", "device_memory", "worker_died", "cancelled", "protocol", "internal"),
    )
)
_FETCH = frozenset(
    (
        *("remote_unreachable", "remote_auth", "remote_forbidden", "remote_busy", "remote_failed", "remote_untrusted"),
        *(
            "no_such_object",
            "no_such_bucket",
            "source_changed",
            "target_changed",
            "bad_name",
            "bad_request",
            "bad_config",
            "sandbox",
        ),
        *("disk_full", "disk_failed", "worker_died", "cancelled", "protocol", "internal"),
    )
)
_FETCH_TEXT_MAX = 6000  # a path and what happened to it
_FACTS = ("retry_after", "status", "bare")
_SET_UP = _RUN | {"bad_config", "sandbox", "no_memory"}


class Bounds(NamedTuple):
    """How much a process may use: ``memory_bytes`` of private and shared memory, swap included; 0 for no limit."""

    ready_bytes: int
    memory_bytes: int
    threads: int

    @classmethod
    def of(cls, pid: int, ring_bytes: int, memory_bytes: int) -> "Bounds":
        """For a process that is ready: what it uses now, its rings, and ``memory_bytes`` more unless that is 0."""
        now = usage(pid)
        most = now.memory_bytes + ring_bytes + memory_bytes if memory_bytes else 0
        return cls(now.memory_bytes, most, now.threads + THREADS + _THREADS_PER_CORE * (os.cpu_count() or 1))

    async def exceeded(self, pid: int) -> SmpError | None:
        """What the process is to be ended for."""
        now = usage(pid)
        if now.threads and not now.memory_bytes:
            now = await anyio.to_thread.run_sync(hidden_usage, pid)
        if 0 < self.memory_bytes < now.memory_bytes:
            return ResourceError(
                "device_memory",
                f"it took {now.memory_bytes >> 20} MiB of memory of at most {self.memory_bytes >> 20}, and was ended",
                hint="use a processor that reads windows, or raise compute.memory_bytes",
            )
        if now.threads > self.threads:
            return ProcessorError(
                "processor_failed",
                f"it started {now.threads} threads of at most {self.threads}, and was ended",
                hint="report it to the processor's author",
            )
        return None

    def health(self, settings: HealthSettings) -> Health:
        """To watch what it keeps; where ``kept_bytes`` is negative that may be half of its room."""
        if settings.kept_bytes < 0:
            settings = settings._replace(kept_bytes=max(0, self.memory_bytes - self.ready_bytes) // 2)
        return Health(self.ready_bytes, settings)


def believed(error: SmpError, *, set_up: bool = False) -> SmpError:
    """An error as it may come from a compute process: about processors, short, without what a terminal would obey."""
    if error.code not in (_SET_UP if set_up else _RUN):
        return ProcessorError(
            "processor_output",
            f"the compute process answered with an error that is not its to give ({_plain(error.code, 40)})",
            hint="report it to the processor's author",
        )
    return type(error)(error.code, _plain(error.message, _TEXT_MAX), hint=_plain(error.hint, _HINT_MAX))


def believed_of_fetch(error: SmpError) -> SmpError:
    """An error as it may come from a fetch process: about its remote, short, without what a terminal would obey.

    Above all it cannot say that an object is not to be trusted, which only opening it shows. What broke the link says
    nothing of who asked: they ask again, of another process.
    """
    if error.code not in _FETCH:
        return RemoteError(
            "remote_failed",
            f"the fetch process answered with an error that is not its to give ({_plain(error.code, 40)})",
            hint="if it repeats, the remote's server may have taken the process over: see the daemon's log",
            retryable=False,
        )
    facts = {name: value for name, value in error.details.items() if isinstance(value, int | float)}
    details = {name: facts[name] for name in _FACTS if name in facts}
    return type(error)(
        error.code,
        _plain(error.message, _FETCH_TEXT_MAX),
        hint=_plain(error.hint, _HINT_MAX),
        retryable=error.retryable or error.code == "protocol",
        details=details,
    )


def _plain(text: str, length: int) -> str:
    return "".join(each if each.isprintable() else "?" for each in text[:length])
