"""Running the command: a clean environment, walls, a deadline, and nothing of it left behind."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

import anyio
import structlog
from anyio.abc import ByteReceiveStream, Process

from smp_proto.errors import ResourceError
from smpd.host.orphans import end_orphans

_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
_SAID_BYTES = 1000
_log = structlog.get_logger("smpd")
_turn = anyio.Lock()
_HINT = "see what notify.command does with JSON on its standard input, then: smpctl notify test"


class Command(NamedTuple):
    """A command and how it is held. One runs at a time, whichever it is: what is left then is of the last.

    Attributes:
        argv: as configured; the first is an absolute path.
        timeout_s: it is killed then. What it started is killed at its end, at the latest.
        sandbox: as ``compute.sandbox``.
        hidden: files and folders that it may not open.
    """

    argv: Sequence[str]
    timeout_s: float
    sandbox: str
    hidden: Sequence[str]

    @property
    def name(self) -> str:
        """The program, for messages."""
        return self.argv[0]

    async def run(self, message: bytes) -> None:
        """Give it a message on standard input, and wait until it ends.

        Raises:
            ResourceError: ``notify_failed``; ``said`` in its details is the beginning of its standard error.
        """
        async with _turn:
            await self._run(message)

    async def _run(self, message: bytes) -> None:
        start = [sys.executable, "-P", "-m", "smpd.notices.launch", self.sandbox, *self.hidden, "--", *self.argv]
        try:
            process = await anyio.open_process(
                start,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                env=_ENVIRONMENT,
                start_new_session=True,
            )
        except OSError as error:
            raise _failed(self.argv[0], f"could not be started: {error.strerror}") from error
        said = bytearray()
        try:
            with anyio.fail_after(self.timeout_s):
                await _talk(process, message, said)
                status = await process.wait()
        except TimeoutError:
            raise _failed(self.argv[0], f"did not end within {self.timeout_s:g} s and was killed", said) from None
        finally:
            with anyio.CancelScope(shield=True):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.aclose()
                if not await anyio.to_thread.run_sync(end_orphans):
                    _log.warning("what notify.command left behind cannot be killed", program=self.name)
        if status:
            how = f"ended with exit status {status}" if status > 0 else f"was ended by signal {-status}"
            raise _failed(self.argv[0], how, said)


async def _talk(process: Process, message: bytes, said: bytearray) -> None:
    async def listen(stream: ByteReceiveStream) -> None:
        async for chunk in stream:
            said.extend(chunk[: max(0, _SAID_BYTES - len(said))])

    assert process.stdin
    assert process.stderr
    async with anyio.create_task_group() as group:
        group.start_soon(listen, process.stderr)
        with contextlib.suppress(anyio.BrokenResourceError):  # it need not read it
            await process.stdin.send(message)
        await process.stdin.aclose()


def _failed(program: str, how: str, said: bytes | bytearray = b"") -> ResourceError:
    details = {"said": bytes(said).decode(errors="replace")}
    return ResourceError("notify_failed", f"{program} {how}", hint=_HINT, details=details)
