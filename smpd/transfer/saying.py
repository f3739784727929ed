"""What a worker says on its standard error: into the log, as what it said.

It is handed a pipe of its own, and not smpd's standard error: whoever takes a worker over could shut that, cut it
short, or write lines that look like smpd's.
"""

import anyio
import structlog
from anyio.abc import ByteReceiveStream

_SAID_MAX = 100  # times that a process is listened to; more is read and dropped, or it would wait for us
_LINES_MAX, _LINE_MAX = 60, 500  # each time; a traceback is one
_PAUSE_S = 0.05  # so that who talks without end takes none of our time
_log = structlog.get_logger("smpd")


async def listen(stream: ByteReceiveStream, role: str, label: str, pid: int) -> None:
    """Log what comes until the process closes its end."""
    left = _SAID_MAX
    async for chunk in stream:
        if left:
            left -= 1
            lines = chunk.decode(errors="replace").splitlines()[:_LINES_MAX]
            said = ["".join(c if c.isprintable() else "?" for c in line[:_LINE_MAX]) for line in lines]
            _log.warning("worker said", role=role, label=label, pid=pid, lines=said)
        await anyio.sleep(_PAUSE_S)
