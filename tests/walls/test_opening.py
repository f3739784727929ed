"""Code that runs in an opening process finds nothing but its link: tried in a real one."""

import re
from pathlib import Path

import pytest
from walls.conftest import Scene

from smpd.opening import link
from smpd.transfer import workers
from smpd.walls.sandbox import WALLS, Kernel

KERNEL = Kernel.probe()
pytestmark = pytest.mark.skipif(not (KERNEL.landlock_abi and KERNEL.seccomp), reason="this kernel lacks a wall")


async def test_it_is_behind_its_walls(scene: Scene, monkeypatch):
    """No file but code, no network, no other process is within reach; the kernel itself says the same of every thread."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import acts;"
        "from smpd.opening import __main__, server\n"
        "def told():\n"
        f"    tried = acts.files({str(scene.key)!r}) | acts.sockets({scene.port}, {scene.socket!r}) | acts.processes()\n"
        f"    tried['connect'] = lambda: acts.socket.create_connection(('127.0.0.1', {scene.port}))\n"
        "    return {name: acts._tried(act) for name, act in tried.items()}\n"
        "handle = server.Server.handle\n"
        "async def answer(self, body, fds, exchange):\n"
        "    request = server.decode(body, server._REQUEST)\n"
        "    return told() if isinstance(request, server.Unmap) else await handle(self, body, fds, exchange)\n"
        "server.Server.handle = answer; __main__.main()"
    )
    real = workers.command
    monkeypatch.setattr(workers, "command", lambda role, fd: [real(role, fd)[0], "-c", program, str(fd)])
    async with workers.start_worker("opening", "test") as worker:
        walls = (await worker.caller.call(link.Setup("required"), link.Walls, timeout=60)).sandbox
        assert walls == dict.fromkeys(WALLS, "on")
        report = await worker.caller.call(link.Unmap(0), dict, timeout=60)
        assert report.pop("home") in (
            "PermissionError",
            "FileNotFoundError",
        )  # whose that is cannot be looked up either
        assert set(report.values()) == {"PermissionError"}, report
        tasks = Path(f"/proc/{worker.pid}/task").iterdir()
        states = [dict(re.findall(r"^(\w+):\s*(.*)$", (task / "status").read_text(), re.MULTILINE)) for task in tasks]
        assert {(each["Seccomp"], each["NoNewPrivs"], int(each["CapEff"], 16)) for each in states} == {("2", "1", 0)}
    assert scene.key.read_text() == "secret"
