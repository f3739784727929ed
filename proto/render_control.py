"""Writes the tables of CONTROL.md from the structs, between its markers. Run: python proto/render_control.py."""

import inspect
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from smp_proto import aio, control, errors

PAGE = Path(__file__).with_name("CONTROL.md")
_PLAIN = {str: "str", int: "int", float: "float", bool: "bool", bytes: "bin", type(None): "nil", Any: "any"}


def render(page: str) -> str:
    """The page with fresh tables between ``<!-- messages -->`` and ``<!-- errors -->`` markers."""
    for name, text in (("messages", _messages()), ("errors", _errors())):
        head, rest = page.split(f"<!-- {name} -->\n")
        _, tail = rest.split(f"<!-- end {name} -->\n")
        page = f"{head}<!-- {name} -->\n{text}<!-- end {name} -->\n{tail}"
    return page


def _messages() -> str:
    kinds = [kind for kind in vars(control).values() if inspect.isclass(kind) and issubclass(kind, msgspec.Struct)]
    own = [kind for kind in kinds if kind.__module__.startswith(control.__name__) and not kind.__subclasses__()]
    return "\n".join(_message(kind) for kind in (*own, aio.End, errors.ErrorBody)) + "\n"


def _message(kind: type[msgspec.Struct]) -> str:
    config = kind.__struct_config__
    title = f"### `{kind.__name__}`" + (f": `{config.tag_field}` = `{config.tag}`" if config.tag else "")
    lines = [title, "", inspect.cleandoc(kind.__doc__ or "").replace("``", "`"), ""]
    fields = msgspec.structs.fields(kind)
    if fields:
        lines += ["| field | type | default |", "|---|---|---|"]
        lines += [f"| `{field.encode_name}` | {_type(field.type)} | {_default(field)} |" for field in fields]
        lines.append("")
    return "\n".join(lines)


def _type(kind: Any) -> str:
    if kind in _PLAIN:
        return _PLAIN[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        said = ", ".join(f"`{value}`" for value in arguments)
    elif origin is Annotated:
        said = _type(arguments[0])
    elif origin is list:
        said = f"array of ({_type(arguments[0])})"
    elif origin is dict:
        said = f"map of {_type(arguments[0])} to {_type(arguments[1])}"
    elif origin in (typing.Union, types.UnionType):
        said = " or ".join(_type(argument) for argument in arguments)
    else:
        said = "any" if kind is msgspec.Raw else kind.__name__
    return said


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
    if value is msgspec.NODEFAULT:
        return "required"
    if isinstance(value, msgspec.Raw) or value is None:
        return "nil"
    return "all defaults" if isinstance(value, msgspec.Struct) else f"`{msgspec.json.encode(value).decode()}`"


def _errors() -> str:
    rows = ["| code | exit code | retryable | meaning |", "|---|---|---|---|"]
    for code, entry in errors.CODES.items():
        rows.append(f"| `{code}` | {entry.family.exit_code} | {'yes' if entry.retryable else 'no'} | {entry.meaning} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
