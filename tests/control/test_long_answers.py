"""Answers that do not fit one frame, of a whole daemon, as both clients read them."""

import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from whole import Whole, whole

from smpctl import AsyncClient, Client

Asked = Callable[..., Awaitable[Any]]


@pytest.fixture(params=["blocking", "anyio"])
def asked(request: pytest.FixtureRequest) -> Asked:
    """Calls a method of either client, as root."""

    async def call(box: Whole, method: str, *args: Any) -> Any:
        def connect(_path: str | None) -> Any:
            return box.socket(0)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("smpctl.connection.connect", connect)
            patch.setattr("smpctl.async_client.connect", connect)
            if request.param == "anyio":
                async with AsyncClient() as client:
                    return await getattr(client, method)(*args)
            with Client() as blocking:
                return await anyio.to_thread.run_sync(functools.partial(getattr(blocking, method), *args))

    return call


async def test_more_checkpoints_than_fit_a_frame(tmp_path: Path, asked: Asked) -> None:
    """Some days of checkpoints, one a minute, come whole and in order."""
    async with whole(tmp_path) as box:
        log = box.daemon.audit
        await box.daemon.box.audit("daemon.start", actor="test")
        first = await anyio.to_thread.run_sync(log.checkpoint)
        notes = [first.replace(b"\n", b" %d\n" % number, 1) for number in range(12_000)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(log), "checkpoints", lambda _: notes)
            lines, proof = await asked(box, "audit_read")
        assert len(lines) == log.size
        assert proof.checkpoints == [note.decode() for note in notes]
        assert proof.origin == log.keys[0].name
