"""A server that webhooks are sent to: over HTTP or TLS, from a thread, and not there before it is asked to listen."""

import http.server
import queue
import ssl
import threading
from collections.abc import Callable
from email.message import Message
from typing import Self

WAIT_S = 100.0
Posted = tuple[str, Message, bytes]


class HookServer:
    """Keeps each request as (path, headers, body); ``answer`` gives the status, more header fields and the body.

    Until :meth:`listen` its port is taken, and connections are refused.
    """

    def __init__(self, certificate: tuple[str, str] | None = None) -> None:
        self.posted: queue.Queue[Posted] = queue.Queue()
        self.answer: Callable[[], tuple[int, dict[str, str], bytes]] = lambda: (204, {}, b"")
        keeps = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = WAIT_S

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, fields, said = keeps.answer()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(said)), **fields}.items():
                    self.send_header(name, value)
                self.end_headers()
                keeps.posted.put((self.path, self.headers, body))
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """A client that does not trust us is expected."""

        self._server = Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.server_bind()
        self.port = self._server.server_address[1]
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def listen(self) -> Self:
        """Be there from now on."""
        self._server.server_activate()
        self._thread.start()
        return self

    def next(self) -> Posted:
        """The next request, waited for."""
        return self.posted.get(timeout=WAIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
