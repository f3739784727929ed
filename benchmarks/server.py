"""A small S3 server for measurements, so fast that the client is what is measured.

``python -m benchmarks.server FOLDER [--tls CERT KEY]`` prints its port and serves ``FOLDER/bucket/key``: GET and HEAD
with ranges and ETags, bodies by sendfile(2) where there is no TLS; listings; PUT and multipart uploads, whose bodies
are counted and **thrown away**, so that only their sizes can be asked for afterwards. ``GET /-/sent`` tells how many
bytes of bodies it sent and how many requests it answered. It checks no signature.
"""

import argparse
import functools
import hashlib
import os
import re
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

SENT = "/-/sent"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")
_BLOCK_BYTES = 1 << 20
_PAGE_KEYS = 1000


class Stored(NamedTuple):
    """An object, as a listing or a HEAD shows it. The ETag is made as nginx makes it."""

    size: int
    modified: int  # whole seconds, as nginx has them: st_mtime is a float, and may be of the next one

    @property
    def etag(self) -> str:
        """Quoted, as it goes over the wire."""
        return f'"{self.modified:x}-{self.size:x}"'


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    root = "."
    sent = requests = 0
    uploaded: dict[str, Stored] = {}  # noqa: RUF012 - one for the server, as http.server makes a handler for each connection
    parts: dict[str, dict[int, int]] = {}  # noqa: RUF012 - as above
    counting = threading.Lock()

    def setup(self) -> None:
        """Answer at once: without this small answers wait for the client's delayed acknowledgement."""
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def parse_request(self) -> bool:
        """Split the path once for all methods."""
        if not super().parse_request():
            return False
        split = urlsplit(self.path)
        self.key, self.query = unquote(split.path), parse_qs(split.query, keep_blank_values=True)
        return True

    # ── reading ──

    def do_GET(self) -> None:
        """Send an object, a range of it, or a listing."""
        if self.key == SENT:
            self._answer(f"{self.sent} {self.requests}".encode())
            return
        path = os.path.join(self.root, os.path.normpath(self.key.lstrip("/")))
        if os.path.isdir(path):
            bucket = "/" not in self.key.strip("/")  # below it there are only keys, whatever the disk has
            self._list(path) if bucket and self.command == "GET" else self._answer(b"", 200 if bucket else 404)
            return
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            known = self.uploaded.get(self.key)
            self._head(known.size, known) if known else self._answer(b"", 404)
            return
        try:
            info = os.fstat(fd)
            self._send(fd, Stored(info.st_size, info.st_mtime_ns // 10**9))
        finally:
            os.close(fd)

    do_HEAD = do_GET  # noqa: N815 - the name http.server looks for

    def _send(self, fd: int, stored: Stored) -> None:
        if self.headers.get("If-Match", stored.etag) != stored.etag:
            self._answer(b"", 412)
            return
        start, end, asked = 0, stored.size, _RANGE.match(self.headers.get("Range", ""))
        if asked and asked[1]:
            start, end = int(asked[1]), min(end, int(asked[2]) + 1) if asked[2] else end
        elif asked:
            start = max(0, end - int(asked[2]))
        self._head(end - start, stored, f"bytes {start}-{end - 1}/{stored.size}" if asked else "")
        if self.command == "GET":
            try:
                self._body(fd, start, end)
            except ConnectionError:  # the reader was killed, which is what is measured
                self.close_connection = True

    def _head(self, length: int, stored: Stored, content_range: str = "") -> None:
        self.send_response(206 if content_range else 200)
        if content_range:
            self.send_header("Content-Range", content_range)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", stored.etag)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", self.date_time_string(stored.modified))
        self.end_headers()
        self.wfile.flush()
        self._count(0, requests=1)

    def _body(self, fd: int, start: int, end: int) -> None:
        while start < end:
            if isinstance(self.connection, ssl.SSLSocket):
                count = self.wfile.write(os.pread(fd, min(end - start, _BLOCK_BYTES), start))
            else:
                count = os.sendfile(self.connection.fileno(), fd, start, end - start)
            start += count
            self._count(count)

    def _list(self, folder: str) -> None:
        """ListObjectsV2, and V1 for those who ask so."""
        asked = {name: values[0] for name, values in self.query.items()}
        prefix, token = asked.get("prefix", ""), asked.get("continuation-token") or asked.get("marker", "")
        found = [each for each in _walk(folder, os.stat(folder).st_mtime_ns) if each[0].startswith(prefix)]
        found = [each for each in found if each[0] > token]
        size = min(_PAGE_KEYS, int(asked.get("max-keys", _PAGE_KEYS)))
        page, more = found[:size], len(found) > size
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{_iso(stored.modified)}</LastModified>"
            f"<ETag>{escape(stored.etag)}</ETag><Size>{stored.size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key, stored in page
        )
        last = escape(page[-1][0]) if page else ""
        following = (
            f"<NextContinuationToken>{last}</NextContinuationToken><NextMarker>{last}</NextMarker>" if more else ""
        )
        head = (
            f"<Name>{os.path.basename(folder)}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
        )
        head += f"<MaxKeys>{size}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{following}"
        self._xml(f"<ListBucketResult>{head}{rows}</ListBucketResult>")

    # ── writing ──

    def do_PUT(self) -> None:
        """Take an object or a part of one, and keep its size."""
        length = int(self.headers.get("Content-Length", 0))
        size = int(self.headers.get("X-Amz-Decoded-Content-Length", length))
        self._discard(length)
        if "partNumber" in self.query:
            number, upload = int(self.query["partNumber"][0]), self.query["uploadId"][0]
            self.parts[upload][number] = size
            self._answer(b"", etag=f'"{number:032x}"')
            return
        stored = self.uploaded[self.key] = Stored(size, 0)
        self._answer(b"", etag=stored.etag)

    def do_POST(self) -> None:
        """Begin or complete a multipart upload."""
        self._discard(int(self.headers.get("Content-Length", 0)))
        where = f"<Bucket/><Key>{escape(self.key)}</Key>"
        if "uploads" in self.query:
            upload = hashlib.sha256(os.urandom(16)).hexdigest()
            self.parts[upload] = {}
            self._xml(
                f"<InitiateMultipartUploadResult>{where}<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            )
            return
        parts = self.parts.pop(self.query["uploadId"][0])
        stored = self.uploaded[self.key] = Stored(sum(parts.values()), 0)
        etag = f"<ETag>{escape(stored.etag)}</ETag>"
        self._xml(f"<CompleteMultipartUploadResult>{where}{etag}</CompleteMultipartUploadResult>")

    def do_DELETE(self) -> None:
        """Abort an upload, or forget an object."""
        self.parts.pop(self.query.get("uploadId", [""])[0], None)
        self.uploaded.pop(self.key, None)
        self._answer(b"", 204)

    def _discard(self, length: int) -> None:
        """Take a body from the socket. MSG_TRUNC has the kernel drop it without a copy (tcp(7))."""
        if isinstance(self.connection, ssl.SSLSocket):
            while length:
                length -= len(self.rfile.read(min(length, _BLOCK_BYTES)))
            return
        if length:  # what came with the head is in the buffer of rfile; this empties it
            length -= len(self.rfile.read1(min(length, 1 << 16)))
        buffer = bytearray(min(length, _BLOCK_BYTES))
        while length:
            count = self.connection.recv_into(buffer, min(length, _BLOCK_BYTES), socket.MSG_TRUNC)
            if not count:
                raise ConnectionError
            length -= count

    # ── answering ──

    def _xml(self, text: str) -> None:
        self._answer(f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode())

    def _answer(self, body: bytes, status: int = 200, etag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if self.key != SENT:
            self._count(0, requests=1)

    def _count(self, count: int, requests: int = 0) -> None:
        with self.counting:
            Handler.sent += count
            Handler.requests += requests

    def handle(self) -> None:
        """As http.server does; a client that was killed is no fault."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *_arguments: object) -> None:
        """Be silent."""


@functools.lru_cache(maxsize=8)
def _walk(folder: str, _mtime_ns: int) -> list[tuple[str, Stored]]:
    """All keys below a bucket's folder, sorted; kept until the folder itself changes."""
    found = []
    for top, _, names in os.walk(folder):
        for name in names:
            info = os.stat(os.path.join(top, name))
            path = os.path.relpath(os.path.join(top, name), folder)
            found.append((path, Stored(info.st_size, info.st_mtime_ns // 10**9)))
    return sorted(found)


def _iso(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class Server(ThreadingHTTPServer):
    """A thread for each connection; with TLS the handshake is done in it."""

    daemon_threads = True
    request_queue_size = 128
    context: ssl.SSLContext | None = None

    def finish_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        """Wrap the socket, when there is a certificate."""
        if self.context is not None:
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    options = parser.parse_args()
    Handler.root = options.folder
    server = Server(("127.0.0.1", 0), Handler)
    if options.tls:
        server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.context.load_cert_chain(*options.tls)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
