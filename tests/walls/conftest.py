"""A state folder with a key, two listeners, and the acts of a hostile fetch process."""

import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Scene:
    """What a hostile fetch process is set against."""

    key: Path
    port: int
    socket: str

    def code(self, kernel: str = "None") -> str:
        """The program in place of ``python -m smpd.fetch``; ``kernel`` is an expression."""
        folder = str(Path(__file__).parent)
        return (
            f"import os, sys; sys.path.insert(0, {folder!r}); import acts; from smpd.walls.sandbox import Kernel;"
            f"acts.main({str(self.key)!r}, {self.port}, {self.socket!r}, {kernel})"
        )


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    key = tmp_path / "state" / "keys" / "identity.key"
    key.parent.mkdir(parents=True)
    key.write_text("secret")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX) as control,
    ):
        control.bind(f"{folder}/s")
        control.listen()
        yield Scene(key, listener.getsockname()[1], f"{folder}/s")
