"""What docs/guides/operating.md says that an operator can do, done."""

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from box import Box

from smpctl import installing

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "operating.md").read_text()
CONFIG = {"compute": {"processors": []}}


def _section(title: str) -> str:
    return re.split(r"^##+ ", GUIDE.partition(f"# {title}\n")[2], flags=re.MULTILINE)[0]


def _doctor(machine: Box) -> list[dict[str, str]]:
    return [json.loads(line) for line in machine.ctl("doctor", "--json", check=False).stdout.splitlines()]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A box that has made its identity, and is at rest."""
    machine = Box(tmp_path / "box", CONFIG)
    machine.start()
    machine.stop()
    yield machine
    machine.close()


def test_the_credential_can_be_taken_away(box: Box, tmp_path: Path) -> None:
    """The bytes beside the key open it from elsewhere, too, and then nothing is left to warn of."""
    moved = tmp_path / "elsewhere"
    shutil.move(box.state / "keys" / "credential", moved)
    (box.state / "keys" / "copies" / "credential").unlink()
    box.configure(keys={"credential_file": str(moved)})
    box.start()
    checks = _doctor(box)
    assert [check["text"].endswith(f"sealed by {moved}") for check in checks if check["name"] == "identity"] == [True]
    assert not [check for check in checks if "beside it" in check["text"]]
    assert not list((box.state / "keys").rglob("credential"))


def test_a_backup_can_be_restored(box: Box, tmp_path: Path) -> None:
    """Of the parts that the guide names, copied while smpd runs, another box is made that is the same one."""
    kept = tmp_path / "kept"
    (kept / "keys").mkdir(parents=True)
    (tmp_path / "lake").mkdir()
    box.start()
    box.ctl("remote", "add", "lake", f"file://{tmp_path}/lake", "--no-secret")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_bytes(box.ctl("audit", "checkpoint").stdout)
    for key in [*(box.state / "keys").glob("*.key"), box.state / "keys" / "credential"]:
        shutil.copy(key, kept / "keys")
    with closing(sqlite3.connect(box.state / "smpd.db")) as live, closing(sqlite3.connect(kept / "smpd.db")) as copy:
        live.backup(copy)
    for folder in ("vault", "audit"):
        shutil.copytree(box.state / folder, kept / folder)
    fingerprint = box.ctl("keys", "export", "--box").stderr
    box.stop()

    restored = Box(tmp_path / "restored", CONFIG)
    shutil.copytree(kept, restored.state)
    for path in [restored.state, *restored.state.rglob("*")]:
        os.chmod(path, 0o700 if path.is_dir() else 0o600)
    try:
        restored.start()
        assert restored.ctl("keys", "export", "--box").stderr == fingerprint
        assert restored.ctl("remote", "test", "lake").stdout.startswith(b"lake works")
        restored.ctl("audit", "verify", "--checkpoint", checkpoint)
        assert {check["state"] for check in _doctor(restored)} <= {"ok", "warn"}
    finally:
        restored.close()


def test_nothing_of_setup_is_left(tmp_path: Path) -> None:
    """The section on uninstalling names each file that setup writes."""
    written: set[str] = set()
    for compute in ("spawn", "socket"):
        options = installing.Options(str(tmp_path), compute=compute)  # type: ignore[arg-type]
        written |= {f"/{step.path}" for step in installing.plan(options) if isinstance(step, installing.File)}
    said = _section("Uninstalling").split()
    assert len(written) > 5
    left = {path for path in written if path not in said and os.path.dirname(path) not in said}
    assert left == {f"/{installing.CONFIG_FILE}"}  # which is the operator's own
