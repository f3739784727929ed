"""The exporter: a small HTTP server on loopback that has the metrics of the daemon.

It is a process of its own, since the daemon is to have no network, and a client like any other: what it may see is what
the user it runs as may see. One request is answered at a time, and one that is slow is dropped.
"""

import contextlib
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import FrameType
from typing import Self

from smp_proto.errors import SmpError, UsageError
from smpctl.client import Client
from smpctl.exposition import CONTENT_TYPE, render

_PATIENCE_S = 5.0  # with one who asks
PATH = "/metrics"


class Exporter:
    """Serves until it is told to stop; a context manager.

    Args:
        host: an address of loopback.
        port: 0 for any that is free.
        client: asks the daemon.

    Raises:
        UsageError: ``bad_request``, it cannot listen there.
    """

    def __init__(self, host: str, port: int, client: Client) -> None:
        kind = _Server6 if ":" in host else _Server
        try:
            self._server = kind((host, port), client)
        except OSError as error:
            message = f"{host} port {port} cannot be listened on: {(error.strerror or str(error)).lower()}"
            raise UsageError("bad_request", message, hint="choose another with: --listen") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host, port = self._server.server_address[:2]
        named = str(host)
        return f"http://{f'[{named}]' if ':' in named else named}:{port}{PATH}"

    def run(self) -> None:
        """Answer until Ctrl-C or SIGTERM."""
        before = signal.signal(signal.SIGTERM, _stop)
        try:
            with contextlib.suppress(SystemExit):
                self._server.serve_forever()
        finally:
            signal.signal(signal.SIGTERM, before)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit


class _Server(HTTPServer):
    def __init__(self, address: tuple[str, int], client: Client) -> None:
        self.client = client
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind, and ask no name server who we are."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever asked has gone."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    timeout = _PATIENCE_S
    server: _Server
    server_version, sys_version = "smp", ""

    def setup(self) -> None:
        """Have an end to waiting for the whole request; ``timeout`` is for each byte of it."""
        super().setup()
        self._late = threading.Timer(_PATIENCE_S, self._drop)
        self._late.daemon = True
        self._late.start()

    def finish(self) -> None:
        """Wait for nothing more."""
        self._late.cancel()
        super().finish()

    def _drop(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        """Ask the daemon, and answer."""
        self._late.cancel()
        if self.path.partition("?")[0] != PATH:
            self._answer(404, "text/plain; charset=utf-8", f"the metrics are at {PATH}\n")
            return
        try:
            text = render(self.server.client.metrics())
        except SmpError as error:
            self._answer(503, "text/plain; charset=utf-8", f"{error.message}\n")
        else:
            self._answer(200, CONTENT_TYPE, text)

    def _answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gives it
        """Scrapes are no news."""
