"""A static object server for measurements: GET and HEAD with ranges and ETags, bodies by sendfile(2).

``python -m benchmarks.server FOLDER`` prints its port and serves ``FOLDER/bucket/key`` to any S3 client that asks for
nothing else; ``GET /-/sent`` tells how many bytes of bodies it sent. It checks no signature and is as fast as this
kernel's loopback, so that the reader is what is measured.
"""

import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SENT = "/-/sent"
_RANGE = re.compile(r"bytes=(\d+)-(\d*)$")


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    root = "."
    sent = 0
    counting = threading.Lock()

    def do_GET(self) -> None:
        """Send an object or a range of it."""
        if self.path == SENT:
            self._answer(str(self.sent).encode())
            return
        path = os.path.join(self.root, os.path.normpath(self.path.split("?")[0].lstrip("/")))
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            self._answer(b"", 404)
            return
        try:
            self._send(fd, os.fstat(fd))
        finally:
            os.close(fd)

    do_HEAD = do_GET  # noqa: N815 - the name http.server looks for

    def _answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, fd: int, info: os.stat_result) -> None:
        start, end = 0, info.st_size
        asked = _RANGE.match(self.headers.get("Range", ""))
        if asked:
            start = int(asked[1])
            end = min(end, int(asked[2]) + 1) if asked[2] else end
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{info.st_size}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", f'"{info.st_mtime_ns:x}-{info.st_size:x}"')
        self.send_header("Last-Modified", self.date_time_string(info.st_mtime))
        self.end_headers()
        self.wfile.flush()
        while self.command == "GET" and start < end:
            try:
                count = os.sendfile(self.connection.fileno(), fd, start, end - start)
            except ConnectionError:  # the reader was killed, which is what is measured
                self.close_connection = True
                return
            start += count
            with self.counting:
                Handler.sent += count

    def log_message(self, *_arguments: object) -> None:
        """Be silent."""


def main() -> None:
    """Serve until killed."""
    Handler.root = sys.argv[1]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
