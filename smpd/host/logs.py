"""The daemon's log: structured lines on standard error, from which names and secrets are kept out.

A processor removes the values of keys that could hold them, and exceptions are logged by type and place only,
since their messages may quote a path. The journal gets each line's priority as sd-daemon(3) has it.
"""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from types import TracebackType
from typing import Any, TextIO, cast

import structlog

REMOVED = "[removed]"
# Judged by the last part of a key, so that ``secret_key`` is removed and ``key_id`` is not.
# fmt: off
FORBIDDEN = frozenset({
    "path", "name", "file", "entry", "object", "source", "target", "prefix", "body", "data",
    "secret", "passphrase", "password", "token", "key", "credential",
})
# fmt: on
_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_FRAMES_MAX = 20


def configure_logs(
    level: str, form: str, stream: TextIO | None = None, environ: Mapping[str, str] = os.environ
) -> None:
    """Set up structlog, and let the standard library's loggers speak through it.

    Args:
        level: the least level shown.
        form: ``json``, ``console``, or ``auto``: console on a terminal.
        stream: where lines go; standard error when None.
    """
    out = stream or sys.stderr
    lines = cast("TextIO", _Lines(out))
    console = form == "console" or (form == "auto" and out.isatty())
    chain: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        exception_place,
        remove_forbidden,
        structlog.dev.ConsoleRenderer(colors=out.isatty())
        if console
        else structlog.processors.JSONRenderer(default=repr),
    ]
    if "JOURNAL_STREAM" in environ and not console:
        chain.append(_prefix_priority)
    least = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=chain,
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(file=lines),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=max(least, logging.WARNING), handlers=[_Bridge()], force=True)


class _Lines:
    """Where lines go. One that cannot be written is lost: a full disk, or a reader that is gone, ends no daemon."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> None:
        """A line."""
        with contextlib.suppress(OSError):
            self._out.write(text)

    def flush(self) -> None:
        """Have it written."""
        with contextlib.suppress(OSError):
            self._out.flush()


def remove_forbidden(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the values of forbidden keys, at any depth."""
    for key, value in event.items():
        event[key] = _cleaned(key, value)
    return event


def _cleaned(key: object, value: Any) -> Any:
    if str(key).lower().replace("-", "_").rsplit("_", 1)[-1] in FORBIDDEN:
        return REMOVED
    if isinstance(value, Mapping):
        return {inner: _cleaned(inner, item) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned("", item) for item in value]
    return "<bytes>" if isinstance(value, bytes | bytearray | memoryview) else value


def exception_place(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Turn ``exc_info`` into the exception's type and where it came from, without its message."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        event["exception"] = _kinds(error)
        event["at"] = _frames(error.__traceback__)
    return event


def _kinds(error: BaseException) -> str:
    inner = [_kinds(one) for one in error.exceptions] if isinstance(error, BaseExceptionGroup) else []
    return type(error).__qualname__ + (f"({', '.join(inner)})" if inner else "")


def _frames(trace: TracebackType | None) -> list[str]:
    frames = traceback.extract_tb(trace)[-_FRAMES_MAX:]
    return [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames]


def _prefix_priority(_logger: Any, method: str, line: Any) -> str:
    return f"<{_PRIORITY.get(method, 6)}>{line}"


class _Bridge(logging.Handler):
    """Libraries' records, by logger and unfilled template: what would be filled in may be a name."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, "library", logger=record.name, template=str(record.msg), exc_info=record.exc_info
        )
