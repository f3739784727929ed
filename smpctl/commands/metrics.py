"""Metrics: print them, keep them in a file, or serve them on loopback."""

import ipaddress
import os

import click

from smp_proto.durable import write_file
from smp_proto.errors import UsageError
from smpctl.exposition import render
from smpctl.landing import check_replaceable, disk_error
from smpctl.session import Session, VerbGroup

LISTEN = "127.0.0.1:9464"
_FILE_MODE = 0o644  # a collector of another user reads it


@click.group(cls=VerbGroup)
def metrics() -> None:
    """What the daemon counts, in the text format of Prometheus."""


@metrics.command("print")
def print_(session: Session) -> None:
    """Print the metrics."""
    found = session.client.metrics()
    session.show(found, lambda: click.echo(render(found), nl=False))


@metrics.command()
@click.argument("file")
def write(session: Session, file: str) -> None:
    """Write the metrics to FILE, whole or not at all: for the textfile collector of node_exporter.

    The collector reads files whose names end in .prom.
    """
    text = render(session.client.metrics()).encode()
    folder, name = os.path.split(file)
    if name in ("", ".", ".."):
        raise UsageError("bad_request", f"{file} is no file name", hint="name a file, as /var/lib/…/smp.prom")
    try:
        check_replaceable(file)
        write_file(folder or ".", name, text, _FILE_MODE)
    except OSError as error:
        raise disk_error(file, error) from None


@metrics.command()
@click.option("--listen", default=LISTEN, show_default=True, metavar="ADDRESS:PORT", help="On loopback; port 0 is any.")
def serve(session: Session, listen: str) -> None:
    """Answer GET /metrics on loopback until Ctrl-C or SIGTERM.

    Each request asks the daemon anew; while it is away the answer is 503.
    """
    from smpctl.exporter import Exporter  # noqa: PLC0415 - nobody else pays for http.server

    with Exporter(*_address(listen), session.client) as exporter:
        session.note(f"metrics are at {exporter.url}")
        exporter.run()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
        number = int(port)
    except ValueError:
        loopback, number = False, -1
    if not loopback or not 0 <= number < 1 << 16:
        hint = f"as {LISTEN} or [::1]:9464; for others put a proxy that knows who asks in front of it"
        raise UsageError("bad_request", f"{text} is no address of loopback with a port", hint=hint)
    return host, number
