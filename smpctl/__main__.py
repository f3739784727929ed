"""Start of ``smpctl``: runs a verb and turns what went wrong into a message and an exit code."""

import os
import signal
import sys
from collections.abc import Sequence

import click
import msgspec

from smp_proto.errors import SmpError, UsageError
from smpctl.cli import cli

EXIT_FAULT = 70
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141  # as a program that SIGPIPE ended


def main(args: Sequence[str] | None = None) -> None:
    """Run and exit; the codes are in ``docs/reference/commands.md``."""
    if args is None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # else half a file in the clear would stay behind
                signal.signal(number, _end)
    arguments = list(sys.argv[1:] if args is None else args)
    sys.exit(_run(arguments))


def _end(number: int, _frame: object) -> None:
    """Leave every block on the way out, and exit as a program that the signal ended."""
    sys.exit(128 + number)


def _run(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    try:
        code = cli.main(arguments, prog_name="smpctl", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        return _misused(error, as_json)
    except click.ClickException as error:
        return _failed(UsageError("bad_request", error.format_message()), as_json)
    except SmpError as error:
        return _failed(error, as_json)
    except (click.Abort, KeyboardInterrupt):
        click.echo("smpctl: interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return EXIT_PIPE
    return code if isinstance(code, int) else 0


def _misused(error: click.UsageError, as_json: bool) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return UsageError.exit_code
    context = f" {error.ctx.command_path.removeprefix('smpctl').strip()}".rstrip() if error.ctx else ""
    message = error.format_message().rstrip(".")
    hint = f"see: smpctl{context} --help"
    return _failed(UsageError("bad_request", message[:1].lower() + message[1:], hint=hint), as_json)


def _failed(error: SmpError, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(msgspec.json.encode({"error": error.body()}).decode() + "\n")
        sys.stdout.flush()
    report(error)
    return error.exit_code


def report(error: SmpError) -> None:
    """Say what went wrong and what to do next."""
    from smpctl.render import plain  # noqa: PLC0415 - only when something is wrong

    click.echo(f"smpctl: {plain(error.message)}", err=True)
    if error.hint:
        click.echo(f"hint: {plain(error.hint)}", err=True)


if __name__ == "__main__":
    main()
