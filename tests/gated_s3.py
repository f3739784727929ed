"""An S3 server that serves objects from memory up to a gate, counts what it served, and lets a test open the gate."""

import contextlib
import hashlib
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from servers import BUCKET, Served

from smp_proto.control import S3Config, S3Secret

CHUNK_BYTES = 256 << 10


class GatedS3:
    """What is stored, what was sent, and how much may be.

    Args:
        objects: by key; a test may change it while the server runs.
        conditional: whether If-Match is honoured; not every server does.
    """

    def __init__(self, objects: dict[str, bytes], *, conditional: bool = False) -> None:
        self.objects = objects
        self.conditional = conditional
        self._etags: dict[int, str] = {}
        self.sent = 0
        self.ranges: list[tuple[str, int, int]] = []
        self._limit: int | None = None
        self._changed = threading.Condition()
        self._waiting = 0
        self._closed = False

    def hold_after(self, limit: int) -> None:
        """Send only so many bytes of ranges, counted from now on, until :meth:`release`."""
        with self._changed:
            self.sent, self._limit = 0, limit
            self.ranges.clear()

    def release(self) -> None:
        """Send everything."""
        with self._changed:
            self._limit = None
            self._changed.notify_all()

    def etag(self, data: bytes) -> str:
        """The MD5 of an object, computed once."""
        if id(data) not in self._etags:
            self._etags[id(data)] = hashlib.md5(data).hexdigest()
        return self._etags[id(data)]

    def close(self) -> None:
        """Let go of whoever waits."""
        self._closed = True
        self.release()

    def may_send(self, count: int) -> bool:
        """Wait until so many bytes more may go; False when the server is closing."""
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._limit is None or self.sent + count <= self._limit)
            self._waiting -= 1
            self.sent += count
            return not self._closed

    def until_held(self, count: int) -> None:
        """Wait until so many answers are held."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._waiting >= count, 60.0)


def _handler(store: GatedS3) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _object(self) -> bytes | None:
            key = unquote(self.path.partition("?")[0]).removeprefix(f"/{BUCKET}/")
            data = store.objects.get(key)
            if data is None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
            return data

        def _head(self, status: int, data: bytes, length: int, where: str = "") -> None:
            self.send_response(status)
            self.send_header("ETag", f'"{store.etag(data)}"')
            self.send_header("Last-Modified", "Fri, 20 Nov 2026 12:00:00 GMT")
            self.send_header("Content-Length", str(length))
            if where:
                self.send_header("Content-Range", where)
            self.end_headers()

        def do_HEAD(self) -> None:
            if (data := self._object()) is not None:
                self._head(200, data, len(data))

        def do_GET(self) -> None:
            data = self._object()
            if data is None:
                return
            found = re.fullmatch(r"bytes=(\d*)-(\d+)", self.headers.get("Range", ""))
            wanted = self.headers.get("If-Match", "").strip('"')
            if store.conditional and wanted and wanted != store.etag(data):
                self.send_response(412)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, end = 0, len(data)
            if found and found[1]:
                start, end = int(found[1]), min(int(found[2]) + 1, len(data))
            elif found:  # the last so many bytes
                start = max(0, len(data) - int(found[2]))
            store.ranges.append((self.path, start, end))
            with contextlib.suppress(ConnectionError):
                self._head(206, data, end - start, f"bytes {start}-{end - 1}/{len(data)}")
                for at in range(start, end, CHUNK_BYTES):
                    part = data[at : min(at + CHUNK_BYTES, end)]
                    if not store.may_send(len(part)):
                        self.close_connection = True
                        return
                    self.wfile.write(part)

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went is none."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def gated_s3(objects: dict[str, bytes], *, conditional: bool = False) -> Iterator[tuple[GatedS3, Served]]:
    """Run the server; the bucket is ``scans``."""
    store = GatedS3(objects, conditional=conditional)
    server = _Server(("127.0.0.1", 0), _handler(store))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        yield store, Served(S3Config(BUCKET, endpoint=endpoint, addressing="path"), S3Secret("key", "secret"))
    finally:
        store.close()
        server.shutdown()
        server.server_close()
        thread.join()
