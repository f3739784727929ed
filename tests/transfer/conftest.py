"""What the transfer tests share: a host of fake workers, and a real fetch process for a folder."""

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from smpd.transfer import workers
from smpd.transfer.workers import Worker, WorkerHost

FAKE = Path(__file__).with_name("fake_worker.py")
Hosting = Callable[..., contextlib.AbstractAsyncContextManager[WorkerHost]]


async def _ready(worker: Worker) -> None:
    await worker.caller.call({"op": "pid"}, int, timeout=30)


@pytest.fixture
def hosting(monkeypatch: pytest.MonkeyPatch) -> Hosting:
    """Hosts whose workers are ``fake_worker.py``."""
    real = anyio.open_process

    async def open_process(command: list[str], **options: object) -> anyio.abc.Process:
        assert "smpd.fetch" in command
        options["env"] = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return await real([sys.executable, str(FAKE), command[-1]], **options)  # type: ignore[arg-type]

    monkeypatch.setattr(workers.anyio, "open_process", open_process)

    @contextlib.asynccontextmanager
    async def host(
        set_up: Callable[[Worker], Awaitable[None]] = _ready, *, idle_s: float = 60.0
    ) -> AsyncIterator[WorkerHost]:
        async with anyio.create_task_group() as group:
            with anyio.fail_after(60):
                yield WorkerHost(group, "fetch", "a test", set_up, idle_s)
            group.cancel_scope.cancel()

    return host
