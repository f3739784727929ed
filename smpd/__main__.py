"""``smpd``: run the daemon, or check its configuration."""

import argparse
import errno
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial

import anyio

from smp_proto import __version__
from smp_proto.errors import ResourceError, SmpError, UsageError, one_error
from smpd.config import Config
from smpd.configuring import check_config, load_config
from smpd.control.actor import unknown_accounts
from smpd.host.process import bind_now, harden, note
from smpd.host.scheduling import work_in_bulk


def main() -> None:
    """Parse the command line and run.

    Exit status 0 after SIGTERM or SIGINT; the error's own code when it cannot start.
    """
    hung_up = note(signal.SIGHUP)  # it would end what is only just starting
    parser = argparse.ArgumentParser(prog="smpd", description="The daemon of SMP: from storage to GPU, sealed.")
    parser.add_argument("--version", action="version", version=f"smpd {__version__}")
    parser.add_argument("--config", metavar="FILE", help="configuration file (TOML)")
    parser.add_argument("command", nargs="?", choices=["run", "check-config"], default="run")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config)
        if arguments.command == "check-config":
            _show([check_config(config), *(f"# {unknown}" for unknown in unknown_accounts(config))])
        else:
            bind_now()
            _run(config, partial(load_config, arguments.config), hung_up)
    except SmpError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        print(f"smpd: {error.message}{hint}", file=sys.stderr)  # noqa: T201 - for a person, before there is a log
        sys.exit(error.exit_code)


def _show(lines: Sequence[str]) -> None:
    """Print what was asked for, to somebody who may have enough of it.

    Raises:
        UsageError: ``bad_request``; standard output is closed.
        ResourceError: ``disk_full`` or ``disk_failed``; it cannot be written.
    """
    if sys.stdout is None:
        raise UsageError("bad_request", "standard output is closed", hint="if nothing is to be seen: > /dev/null")
    try:
        print(*lines, sep="\n", flush=True)  # noqa: T201 - the output
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be written at the end
        if isinstance(error, BrokenPipeError):
            sys.exit(141)  # as of a program that SIGPIPE ended
        code = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "disk_failed"
        message = f"standard output cannot be written: {(error.strerror or str(error)).lower()}"
        raise ResourceError(code, message, hint="see where it goes") from None


def _run(config: Config, read: Callable[[], Config], hung_up: Sequence[int]) -> None:
    if importlib.util.find_spec("structlog") is None:
        message = "only the client is installed: structlog and what else a daemon needs is missing"
        hint = "run: pip install 'secure-media-processor[daemon,gpu,images]'"
        raise UsageError("bad_config", message, hint=hint)
    # structlog would import rich for tracebacks, which this log does not show: 5 MiB for nothing.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    from smpd import app  # noqa: PLC0415
    from smpd.host.logs import configure_logs  # noqa: PLC0415

    configure_logs(config.log.level, config.log.format)
    harden()
    work_in_bulk()
    uvloop = importlib.util.find_spec("uvloop") is not None
    with one_error():
        anyio.run(app.run, config, read, hung_up, backend_options={"use_uvloop": uvloop})


if __name__ == "__main__":
    main()
