"""``make size``: lines of code per room, and whether the core keeps its budget.

A line counts when it holds code: not when it is blank, a comment, or part of a docstring.
"""

import ast
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE_MAX = 3000
NOT_CORE = ("smpd/fetch", "smpd/compute", "smpd/processors", "smpd/sync")
_EMPTY = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(path: Path) -> int:
    """Physical lines that hold code."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                docstrings.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in _EMPTY and token.type != tokenize.ENCODING:
                lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def main() -> int:
    """Print the table; exit 1 when the core is over its budget."""
    rooms: dict[str, int] = {}
    for top in ("proto/smp_proto", "smpd", "smpctl", "examples", "benchmarks", "tests"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT / top).parts
            room = f"{top}/{parts[0]}" if len(parts) > 1 and top in ("proto/smp_proto", "smpd") else top
            rooms[room] = rooms.get(room, 0) + code_lines(path)
    core = {room for room in rooms if room.startswith(("proto/", "smpd")) and not room.startswith(NOT_CORE)}
    for room, lines in rooms.items():
        print(f"{lines:6}  {room}{'  (core)' if room in core else ''}")
    total = sum(rooms[room] for room in core)
    print(f"{total:6}  core, of at most {CORE_MAX}")
    return total > CORE_MAX


if __name__ == "__main__":
    sys.exit(main())
