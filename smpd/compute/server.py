"""The event loop's side: Setup, and one Run at a time. It answers the link whatever the processor thread is doing."""

import contextlib
import gc
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn, cast

import anyio

from smp_proto.aio import End, Exchange, close_all, decode, encode
from smp_proto.errors import DaemonError, SmpError, one_error
from smp_proto.wire import FrameType
from smpd.compute import loading
from smpd.compute.sandbox import Sandbox
from smpd.compute.usage import PeakMemory
from smpd.links.computing import TEXT_MAX, AnyRequest, Check, Done, Ready, Request, Run, Setup
from smpd.links.ring import Ring
from smpd.processors import Processor
from smpd.walls.sandbox import Kernel, code_folders

if TYPE_CHECKING:
    from smpd.compute.worker import Worker

LAST_WORD_S = 5.0
EXIT_LOST = 75

_REQUEST = cast("type[Request]", AnyRequest)  # a union is no class to the type checker


class Server:
    """The handler of the link; :meth:`handle` fits :func:`smp_proto.serving.serve`.

    Args:
        kernel: what the walls may be made of.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._memory = PeakMemory()
        self._silent = False
        self._rings: list[Ring] = []
        self._worker: Worker | None = None
        self._busy = False

    async def handle(self, body: bytes, fds: list[int], exchange: Exchange) -> Any:
        """Answer one request."""
        try:
            request = decode(body, _REQUEST)
        except DaemonError:
            close_all(fds)
            raise
        if isinstance(request, Setup):
            return self._set_up(request, fds)
        close_all(fds)
        if isinstance(request, Check) and self._worker is not None:
            self._checked(self._worker, request)
            return None
        if not isinstance(request, Run) or self._worker is None or self._busy:
            raise DaemonError("protocol", "a run came before the set-up, or while another is under way")
        self._busy = True
        try:
            with one_error():
                return await self._run(self._worker, request, exchange)
        except (SmpError, anyio.BrokenResourceError, anyio.EndOfStream):
            raise
        except Exception as error:
            raise _fault(error) from error
        finally:
            self._busy = False

    def log(self, error: Exception) -> None:
        """Write an unexpected exception to the log: where, and its type, not its text, which may hold data.

        Nothing once there are plugins: a descriptor that leads to the log would be theirs, too.
        """
        if not self._silent:
            frames = "".join(traceback.format_tb(error.__traceback__))
            os.write(2, f"compute: {type(error).__name__}\n{frames}".encode())

    def _set_up(self, request: Setup, fds: list[int]) -> Ready:
        # It blocks the loop on purpose: capabilities and Landlock bind this thread and those it starts, so
        # torch has to be imported here, and there is nothing else to answer yet.
        if self._rings or len(fds) != 2:
            close_all(fds)
            raise DaemonError("protocol", "set-up comes once, with the descriptors of two rings")
        geometry = ((request.slots, request.slot_bytes), (request.result_slots, request.result_slot_bytes))
        self._rings = [Ring(fd, *size) for fd, size in zip(fds, geometry, strict=True)]
        points = loading.find(request.processors)
        sandbox = Sandbox(request.sandbox, self._kernel)
        sys.dont_write_bytecode = True
        os.environ["CUDA_CACHE_DISABLE"] = "1"  # there is nowhere to write it
        os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # code that nobody listed, and before all walls are up
        sandbox.before_imports(code_folders({point.module.partition(".")[0] for point in points}))

        gc.disable()  # until the worker starts: what is imported stays, and to look through it takes a tenth of it all
        import torch  # noqa: PLC0415 - not before Landlock

        from smpd.compute.worker import Worker  # noqa: PLC0415 - it imports torch

        worker = Worker(request.device, *self._rings)
        if sandbox.on:
            self._silence()
        else:
            note = "the sandbox is off by configuration: processors can do what this user can; to have it: "
            worker.notes.append(f'{note}compute.sandbox = "auto"')
        sandbox.before_plugins(request.memory_bytes, gpu=worker.has_gpu)
        worker.processors = {point.name: loading.load(point) for point in points}
        worker.start()
        self._worker = worker
        return Ready(
            device=str(worker.device.torch_device),
            device_name=worker.device.name,
            torch=str(torch.__version__),
            pinned=worker.pinned,
            sandbox={wall: why[:TEXT_MAX] for wall, why in sandbox.walls.items()},
            processors=[loading.describe(point, worker.processors[point.name]) for point in points],
            notes=[note[:TEXT_MAX] for note in worker.notes],
        )

    def _silence(self) -> None:
        """Let nothing that a plugin prints reach the journal on disk, and no terminal be within its reach."""
        self._silent = True
        with open(os.devnull, "r+b") as null:
            for fd in (0, 1, 2):
                os.dup2(null.fileno(), fd)

    async def _run(self, worker: "Worker", request: Run, exchange: Exchange) -> Done:
        processor, params = self._checked(worker, request)
        from smpd.compute.run import Running  # noqa: PLC0415 - it imports torch

        self._memory.reset()
        started = anyio.current_time()
        running = Running(worker, request, processor, params, exchange)
        try:
            outcome = await running.run()
        except anyio.get_cancelled_exc_class():
            if running.stuck:
                await self._last_word(exchange, SmpError("cancelled", "the request was cancelled"))
            raise
        if outcome.error is not None:
            if outcome.fatal:
                await self._last_word(exchange, outcome.error)
            raise outcome.error
        seconds = anyio.current_time() - started
        device = worker.device
        name, held = str(device.torch_device), device.held()
        return Done(outcome.entries, outcome.outputs, name, self._memory.peak(), seconds, held)

    @staticmethod
    def _checked(worker: "Worker", request: Run | Check) -> tuple[Processor, Any]:
        processor = worker.processors.get(request.processor)
        if processor is None:
            raise loading.no_such_processor(request.processor, worker.processors, "list it in the configuration")
        return processor, loading.convert_params(processor, request.params)

    async def _last_word(self, exchange: Exchange, error: SmpError) -> NoReturn:
        """Answer and end the process: its thread cannot be killed, or its device is lost. smpd starts another."""
        with anyio.move_on_after(LAST_WORD_S, shield=True), contextlib.suppress(anyio.BrokenResourceError):
            await exchange.channel.send(FrameType.END, exchange.stream, encode(End(error=error.body())))
        os._exit(EXIT_LOST)


def _fault(error: Exception) -> SmpError:
    """An exception of this room's own code, by its type and its place."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return SmpError(
        "internal", f"a fault in the compute process: {type(error).__name__} at {where}", hint="please report it"
    )
