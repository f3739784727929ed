"""An S3 server in memory that counts what was put into effect under each name, and shows what uploads are left open.

It knows conditional writes (If-None-Match: *, If-Match) unless told not to, multipart uploads and their listing. A test
may hook into a request, by its method, before it is answered.
"""

import contextlib
import hashlib
import re
import secrets
import threading
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, takewhile
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from servers import BUCKET, Served

from smp_proto.control import S3Config, S3Secret

PAGE = 1000  # keys
_DATE = "2026-11-20T12:00:00.000Z"
_MODIFIED = "Fri, 20 Nov 2026 12:00:00 GMT"


class CountingS3:
    """What is stored, and what happened.

    Args:
        conditional: whether If-Match and If-None-Match are honoured where something is written.

    Attributes:
        effects: how often an object came to be under a key.
        requests: how many of each kind came.
        before: called with method, key and query before anything is done.
    """

    def __init__(self, *, conditional: bool = True) -> None:
        self.conditional = conditional
        self.refuses_conditions = False
        self.may_abort = True
        self.objects: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.uploads: dict[str, tuple[str, dict[int, bytes]]] = {}
        self.effects: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.before: Callable[[str, str, dict[str, list[str]]], None] = lambda *_: None
        self.lock = threading.RLock()
        self._sorted: list[str] | None = None  # until it changes

    def store(self, key: str, data: bytes, etag: str = "") -> str:
        """Put an object there, as a server does; returns its ETag."""
        with self.lock:
            if key not in self.objects:
                self._sorted = None
            self.objects[key] = data
            self.etags[key] = etag or hashlib.md5(data).hexdigest()
            self.effects[key] += 1
            return self.etags[key]

    def remove(self, key: str) -> None:
        """Take an object away, if it is there."""
        with self.lock:
            self._sorted = None
            self.objects.pop(key, None)
            self.etags.pop(key, None)

    def page(self, prefix: str, after: str) -> tuple[list[str], bool]:
        """A page of the keys that begin with ``prefix`` and come after ``after``, and whether there are more."""
        if self._sorted is None:
            self._sorted = sorted(self.objects)
        first = max(bisect_left(self._sorted, prefix), bisect_right(self._sorted, after))
        found = list(takewhile(lambda key: key.startswith(prefix), islice(self._sorted, first, first + PAGE + 1)))
        return found[:PAGE], len(found) > PAGE

    def forget(self) -> None:
        """Count anew."""
        with self.lock:
            self.effects.clear()
            self.requests.clear()

    def may_write(self, key: str, none: str | None, match: str | None) -> bool:
        """Whether the conditions of a write hold."""
        there = self.etags.get(key)
        if not self.conditional:
            return True
        if none == "*" and there is not None:
            return False
        return match is None or match.strip('"') == there


def _handler(store: CountingS3) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _begin(self) -> tuple[str, dict[str, list[str]], bytes]:
            url = urlsplit(self.path)
            key = unquote(url.path).removeprefix(f"/{BUCKET}").removeprefix("/")
            query = parse_qs(url.query, keep_blank_values=True)
            length = int(self.headers.get("Content-Length", "0"))
            body = self.rfile.read(length)
            if len(body) < length:
                raise ConnectionError("who sent this was killed on the way; a store keeps nothing of it")
            kind = next((f" {n}" for n in ("uploads", "uploadId", "list-type") if n in query), "")
            store.before(self.command, key, query)
            if store.refuses_conditions and {"If-Match", "If-None-Match"} & {name.title() for name in self.headers}:
                raise NotImplementedError
            with store.lock:
                store.requests[self.command + kind] += 1
            return key, query, body

        def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                if "Content_Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def _refuse(self, status: int, code: str) -> None:
            self._answer(status, b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode())

        def do_HEAD(self) -> None:
            key, _, _ = self._begin()
            with store.lock:
                data, etag = store.objects.get(key), store.etags.get(key)
            if data is None:
                return self._refuse(404, "NoSuchKey")
            length = str(len(data))
            return self._answer(200, ETag=f'"{etag}"', Last_Modified=_MODIFIED, Content_Length=length)

        def do_GET(self) -> None:
            key, query, _ = self._begin()
            if "list-type" in query:
                return self._list(query)
            if "uploads" in query:
                return self._list_uploads(query.get("prefix", [""])[0])
            if "uploadId" in query:
                return self._list_parts(query["uploadId"][0])
            with store.lock:
                data, etag = store.objects.get(key), store.etags.get(key)
            if data is None:
                return self._refuse(404, "NoSuchKey")
            found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-"))
            assert found
            if not found[1]:
                start, end = max(0, len(data) - int(found[2])), len(data)
            else:
                start, end = int(found[1]), min(int(found[2] or len(data) - 1) + 1, len(data))
            where = f"bytes {start}-{end - 1}/{len(data)}"
            more = {"ETag": f'"{etag}"', "Last_Modified": _MODIFIED, "Content_Range": where}
            return self._answer(206, data[start:end], **more)

        def _list(self, query: dict[str, list[str]]) -> None:
            prefix, after, token = (
                query.get(name, [""])[0] for name in ("prefix", "start-after", "continuation-token")
            )
            with store.lock:
                found, more = store.page(prefix, token or after)
                rows = "".join(
                    f"<Contents><Key>{escape(key)}</Key><Size>{len(store.objects[key])}</Size>"
                    f"<ETag>&quot;{store.etags[key]}&quot;</ETag><LastModified>{_DATE}</LastModified></Contents>"
                    for key in found
                )
            told = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
            if more:
                told += f"<NextContinuationToken>{escape(found[-1])}</NextContinuationToken>"
            self._xml(f"<ListBucketResult>{told}{rows}</ListBucketResult>")

        def _list_uploads(self, prefix: str) -> None:
            with store.lock:
                found = [(key, name) for name, (key, _) in store.uploads.items() if key.startswith(prefix)]
            rows = "".join(
                f"<Upload><Key>{escape(key)}</Key><UploadId>{name}</UploadId><Initiated>{_DATE}</Initiated></Upload>"
                for key, name in found
            )
            self._xml(f"<ListMultipartUploadsResult>{rows}</ListMultipartUploadsResult>")

        def _list_parts(self, upload: str) -> None:
            with store.lock:
                if upload not in store.uploads:
                    return self._refuse(404, "NoSuchUpload")
                parts = store.uploads[upload][1]
                rows = "".join(
                    f"<Part><PartNumber>{n}</PartNumber><Size>{len(d)}</Size></Part>" for n, d in sorted(parts.items())
                )
            return self._xml(f"<ListPartsResult>{rows}</ListPartsResult>")

        def _xml(self, text: str) -> None:
            self._answer(200, f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode(), Content_Type="application/xml")

        def do_PUT(self) -> None:
            try:
                key, query, body = self._begin()
            except NotImplementedError:
                return self._refuse(501, "NotImplemented")
            with store.lock:
                if "uploadId" in query:
                    upload = query["uploadId"][0]
                    if upload not in store.uploads:
                        return self._refuse(404, "NoSuchUpload")
                    if source := self.headers.get("x-amz-copy-source"):  # UploadPartCopy
                        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["x-amz-copy-source-range"])
                        assert found
                        data = store.objects[unquote(source).lstrip("/").removeprefix(f"{BUCKET}/")]
                        body = data[int(found[1]) : int(found[2]) + 1]
                    store.uploads[upload][1][int(query["partNumber"][0])] = body
                    etag = hashlib.md5(body).hexdigest()
                    if source:
                        text = f"<CopyPartResult><ETag>&quot;{etag}&quot;</ETag></CopyPartResult>"
                        return self._xml(text)
                elif store.may_write(key, self.headers.get("If-None-Match"), self.headers.get("If-Match")):
                    etag = store.store(key, body)
                else:
                    return self._refuse(412, "PreconditionFailed")
            return self._answer(200, ETag=f'"{etag}"')

        def do_POST(self) -> None:
            try:
                key, query, body = self._begin()
            except NotImplementedError:
                return self._refuse(501, "NotImplemented")
            with store.lock:
                if "uploads" in query:
                    upload = secrets.token_hex(8)
                    store.uploads[upload] = (key, {})
                    return self._xml(
                        f"<InitiateMultipartUploadResult><Key>{escape(key)}</Key><UploadId>{upload}</UploadId>"
                        "</InitiateMultipartUploadResult>"
                    )
                upload = query["uploadId"][0]
                if upload not in store.uploads:
                    return self._refuse(404, "NoSuchUpload")
                if not store.may_write(key, self.headers.get("If-None-Match"), self.headers.get("If-Match")):
                    return self._refuse(412, "PreconditionFailed")
                parts = store.uploads.pop(upload)[1]
                numbers = [int(n) for n in re.findall(rb"<PartNumber>(\d+)</PartNumber>", body)]
                data = b"".join(parts[number] for number in numbers)
                etag = store.store(key, data, f"{hashlib.md5(data).hexdigest()}-{len(numbers)}")
            return self._xml(
                f"<CompleteMultipartUploadResult><ETag>&quot;{etag}&quot;</ETag></CompleteMultipartUploadResult>"
            )

        def do_DELETE(self) -> None:
            key, query, _ = self._begin()
            with store.lock:
                if "uploadId" in query:
                    if not store.may_abort:
                        return self._refuse(403, "AccessDenied")
                    if store.uploads.pop(query["uploadId"][0], None) is None:
                        return self._refuse(404, "NoSuchUpload")
                else:
                    store.remove(key)
            return self._answer(204)

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no error."""


@contextlib.contextmanager
def counting_s3(*, conditional: bool = True) -> Iterator[tuple[CountingS3, Served]]:
    """Run the server; the bucket is ``scans``."""
    store = CountingS3(conditional=conditional)
    server = _Server(("127.0.0.1", 0), _handler(store))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        yield store, Served(S3Config(BUCKET, endpoint=endpoint, addressing="path"), S3Secret("key", "secret"))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
