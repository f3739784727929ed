"""Syncing, renaming and linking are in one module, and so are the settings of SQLite."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DURABLE = "proto/smp_proto/durable.py"
SQLITE = "smpd/host/sqlite.py"
SHIPPED = sorted(path for room in ("smpd", "smpctl", "proto/smp_proto") for path in (ROOT / room).rglob("*.py"))
CALLS = {"fsync", "fdatasync", "rename", "renames", "link", "hardlink_to", "sync", "syncfs", "sync_file_range"}
COPIES = {"dataclasses", "msgspec.structs", "copy"}  # their replace is another
REMOTE = {"smpd/fetch/sftp.py": {"file.fsync", "sftp.rename"}}  # what the server is asked to do


def found(tree: ast.AST) -> Iterator[str]:
    """What of it touches how files are made durable, as written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (f"from os import {each.name}" for each in node.names if each.name in {*CALLS, "replace"})
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name = node.func.attr
        if name not in {*CALLS, "replace", "move"}:
            continue
        owner = ast.unparse(node.func.value)
        of_a_path = len(node.args) == 1 and owner not in COPIES  # that of a text takes two
        if (
            (name in CALLS and owner != "durable")
            or (name == "replace" and (owner == "os" or of_a_path))
            or (name, owner) == ("move", "shutil")
        ):
            yield f"{owner}.{name}"


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """What is shipped, parsed."""
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in SHIPPED}


def test_files_are_made_durable_in_one_place(trees: dict[str, ast.Module]) -> None:
    """No module but one calls fsync, rename, link and their like; what SFTP asks of its server is another thing."""
    calls = {name: set(found(tree)) for name, tree in trees.items()}
    assert calls.pop(DURABLE)
    assert {name: each for name, each in calls.items() if each} == REMOTE


def connects(node: ast.AST) -> bool:
    """Whether it opens a database."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("connect", "Connection")
        and ast.unparse(node.func.value) == "sqlite3"
    )


def sets(node: ast.AST) -> bool:
    """Whether it is a text that says how a database is kept."""
    return isinstance(node, ast.Constant) and any(
        word in str(node.value) for word in ("synchronous=", "journal_mode", "secure_delete=")
    )


@pytest.mark.parametrize("looks", [connects, sets])
def test_sqlite_is_set_up_in_one_place(looks: Callable[[ast.AST], bool], trees: dict[str, ast.Module]) -> None:
    """No module but one connects to a database or sets how it is kept."""
    assert [name for name, tree in trees.items() if any(map(looks, ast.walk(tree)))] == [SQLITE]


@pytest.mark.parametrize(
    "text",
    [
        "os.fsync(fd)",
        "os.replace(a, b)",
        "Path(a).replace(b)",
        "from os import rename",
        "path.rename(b)",
        "_libc.syncfs(fd)",
        "shutil.move(a, b)",
        "path.hardlink_to(b)",
    ],
)
def test_the_check_sees(text: str) -> None:
    """Each way to go round it is found."""
    assert list(found(ast.parse(text)))


@pytest.mark.parametrize("text", ["text.replace('a', 'b')", "msgspec.structs.replace(job, **new)", "durable.sync(fd)"])
def test_the_check_lets_through(text: str) -> None:
    """What is called alike, and is something else, is not."""
    assert not list(found(ast.parse(text)))
