"""Start of ``smpctl``: runs a verb and turns what went wrong into a message and an exit code."""

import errno
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

from smp_proto.errors import ResourceError, SmpError, UsageError
from smpctl.cli import cli

COMPLETE = "_SMPCTL_COMPLETE"  # what a shell sets to ask for completions
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141  # as a program that SIGPIPE ended
_SHOWN_MAX = 800  # characters of a message


def main(args: Sequence[str] | None = None) -> None:
    """Run and exit; the codes are in ``docs/reference/commands.md``."""
    if args is None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # else half a file in the clear would stay behind
                signal.signal(number, _end)
        _let_remarks_fail()
    arguments = list(sys.argv[1:] if args is None else args)
    sys.exit(_run(arguments))


def _end(number: int, _frame: object) -> None:
    """Leave every block on the way out, and exit as a program that the signal ended."""
    sys.exit(128 + number)


def _run(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    try:
        _open_streams(as_json)
        code = _called(arguments, as_json)
        sys.stdout.flush()
    except BrokenPipeError:
        _silence()
        return EXIT_PIPE
    except OSError as error:
        return _unwritable(error)
    except SmpError as error:
        report(error)
        return error.exit_code
    return code


def _called(arguments: list[str], as_json: bool) -> int:
    """Run the verb, and report what went wrong; the exit code."""
    try:
        code = _invoked(arguments)
    except click.exceptions.Exit as ended:
        code = ended.exit_code
    except click.UsageError as error:
        code = _misused(error, as_json)
    except click.ClickException as error:
        code = _failed(UsageError("bad_request", error.format_message()), as_json)
    except SmpError as error:
        code = _failed(error, as_json)
    except (click.Abort, EOFError, KeyboardInterrupt):
        click.echo("smpctl: interrupted", err=True)
        code = EXIT_INTERRUPTED
    except OSError as error:
        if error.filename is None:  # it is of a stream
            raise
        message = f"{error.filename} cannot be used: {(error.strerror or str(error)).lower()}"
        hint = "check the path, its owner and mode"
        code = _failed(ResourceError("disk_failed", message, hint=hint), as_json)
    except Exception as error:  # noqa: BLE001 - whatever it is, it has a code
        code = _fault(error, as_json)
    return code


def _invoked(arguments: list[str]) -> int:
    """Run the verb; not by ``cli.main``, which ends a program whose reader went away with 1."""
    if instruction := os.environ.get(COMPLETE):
        from click.shell_completion import shell_complete  # noqa: PLC0415 - only a shell asks

        return shell_complete(cli, {}, "smpctl", COMPLETE, instruction)
    with cli.make_context("smpctl", arguments) as context:
        code = cli.invoke(context)
    return code if isinstance(code, int) else 0


def _open_streams(as_json: bool) -> None:
    """Have all three standard streams, so that no file of ours comes to be one, and any text can be written.

    Raises:
        UsageError: ``bad_request``; standard output is closed.
    """
    closed = sys.stdout is None
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # each takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - until the end
    if closed:
        raise UsageError("bad_request", "standard output is closed", hint="if nothing is to be seen: > /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper):
        if as_json:
            sys.stdout.reconfigure(encoding="utf-8")  # RFC 8259, section 8.1
        if sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text


class _Remarks(io.RawIOBase):
    """Standard error, where what cannot be written is lost."""

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """That of standard error."""
        return 2

    def isatty(self) -> bool:
        """Whether a person looks."""
        return os.isatty(2)

    def write(self, data: Any, /) -> int:
        """As much as goes; what never will counts as written."""
        try:
            return os.write(2, data)
        except OSError:
            return len(data)


def _let_remarks_fail() -> None:
    """Have a disk that is full, or a reader that went, stop nothing that only remarks on its way."""
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr.fileno() == 2:
        encoding, errors = sys.stderr.encoding, sys.stderr.errors
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(_Remarks()), encoding, errors, line_buffering=True)


def _unwritable(error: OSError) -> int:
    _silence()
    reason = (error.strerror or str(error)).lower()
    code = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "disk_failed"
    hint = "see where it goes; what the verb did is done"
    report(ResourceError(code, f"standard output cannot be written: {reason}", hint=hint))
    return ResourceError.exit_code


def _silence() -> None:
    """Drop what is not written yet, or the interpreter complains at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fault(error: Exception, as_json: bool) -> int:
    import traceback  # noqa: PLC0415 - only when something is wrong

    traceback.print_exception(error)
    hint = "report it with the lines above: CONTRIBUTING.md"
    return _failed(SmpError("internal", f"a fault in SMP: {type(error).__name__}: {error}", hint=hint), as_json)


def _misused(error: click.UsageError, as_json: bool) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not as_json:
        click.echo(error.format_message(), err=True)
        return UsageError.exit_code
    context = f" {error.ctx.command_path.removeprefix('smpctl').strip()}".rstrip() if error.ctx else ""
    message = error.format_message().rstrip(".")
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        message = "this needs a verb"
    elif isinstance(error, click.MissingParameter):
        message = " ".join(message.split())  # its choices stand below each other
    hint = f"see: smpctl{context} --help"
    return _failed(UsageError("bad_request", message[:1].lower() + message[1:], hint=hint), as_json)


def _failed(error: SmpError, as_json: bool) -> int:
    if as_json:
        from smpctl.render import json_text  # noqa: PLC0415 - only when something is wrong

        sys.stdout.write(json_text({"error": error.body()}) + "\n")
        sys.stdout.flush()
    report(error)
    return error.exit_code


def report(error: SmpError) -> None:
    """Say what went wrong and what to do next."""
    from smpctl.render import plain  # noqa: PLC0415 - only when something is wrong

    click.echo(f"smpctl: {plain(_shown(error.message))}", err=True)
    if error.hint:
        click.echo(f"hint: {plain(_shown(error.hint))}", err=True)


def _shown(text: str) -> str:
    """Of a text that repeats a very long argument, its two ends."""
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX // 2]} … {text[-_SHOWN_MAX // 4 :]}"


if __name__ == "__main__":
    main()
