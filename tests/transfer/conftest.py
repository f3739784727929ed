"""What the transfer tests share: workers that are programs of this folder."""

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from smpd.host.space import Space
from smpd.transfer import workers
from smpd.transfer.workers import Worker, WorkerHost

HERE = Path(__file__).parent
Hosting = Callable[..., contextlib.AbstractAsyncContextManager[WorkerHost]]


async def _ready(worker: Worker) -> None:
    await worker.caller.call({"op": "pid"}, int, timeout=30)


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    """The room on the disk of this test, with a small reserve."""
    with contextlib.closing(Space(str(tmp_path), 1 << 20)) as found:
        yield found


@pytest.fixture
def fake_program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has workers run a program of this folder instead of their own."""
    real = anyio.open_process

    def use(name: str) -> None:
        async def open_process(command: list[str], **options: Any) -> anyio.abc.Process:
            options["env"] = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
            return await real([sys.executable, str(HERE / name), command[-1]], **options)

        monkeypatch.setattr(workers.anyio, "open_process", open_process)

    return use


@pytest.fixture
def hosting(fake_program: Callable[[str], None]) -> Hosting:
    """Hosts whose workers are ``fake_worker.py``."""
    fake_program("fake_worker.py")

    @contextlib.asynccontextmanager
    async def host(
        set_up: Callable[[Worker], Awaitable[None]] = _ready,
        *,
        idle_s: float = 60.0,
        let_go: Callable[[], Awaitable[None]] | None = None,
    ) -> AsyncIterator[WorkerHost]:
        async with anyio.create_task_group() as group:
            with anyio.fail_after(60):
                yield WorkerHost(group, "fetch", "a test", set_up, idle_s, let_go)
            group.cancel_scope.cancel()

    return host
