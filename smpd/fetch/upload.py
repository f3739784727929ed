"""Uploads: whole where small, else in parts, several at a time, aborted unless completed."""

import contextlib
from functools import partial
from typing import Any
from urllib.parse import quote

import anyio

from smp_proto.errors import RemoteError
from smpd.fetch.bucket import Bucket
from smpd.fetch.connection import Body
from smpd.fetch.exchange import Unspoken
from smpd.fetch.remote import Progress, first_error, read_source
from smpd.fetch.signing import UNSIGNED_PAYLOAD
from smpd.links.fetching import Deadlines

PART_BYTES = 8 << 20
PARTS_MAX = 10_000
OBJECT_MAX_BYTES = 5 << 40


def part_bytes(size: int) -> int:
    """The size of the parts of an upload: at least PART_BYTES, whole MiB, at most PARTS_MAX of them."""
    mib = 1 << 20
    return max(PART_BYTES, -(-size // (PARTS_MAX * mib)) * mib)


class Uploader:
    """Writes objects of one bucket.

    Bodies are not hashed for the signature: a sealed object carries its own digests. Servers that want them hashed
    over plain HTTP get them so, from the client.
    """

    def __init__(self, bucket: Bucket, connections: int, deadlines: Deadlines) -> None:
        self._bucket = bucket
        self._connections = connections
        self._deadlines = deadlines
        self._by_client = False

    async def upload(self, path: str, key: str, fd: int, size: int, progress: Progress) -> None:
        """Write bytes ``[0, size)`` of ``fd`` to ``key``; ``path`` is its name in errors."""
        if size <= PART_BYTES:
            await self._bucket.steps.do(partial(self._put, "put_object", path, key, fd, 0, size))
            await progress(size)
            return
        # Shielded: were it cancelled on its way, an upload would stay behind whose id nobody knows.
        with anyio.CancelScope(shield=True):
            create = partial(self._bucket.call, "create_multipart_upload", path, Key=key)
            upload = (await self._bucket.steps.do(create))["UploadId"]
        try:
            parts = await self._put_parts(path, key, upload, fd, size, progress)
            await self._bucket.call(
                "complete_multipart_upload",
                path,
                answer_s=self._deadlines.complete_s,
                Key=key,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
            )
        except BaseException:
            with anyio.move_on_after(self._deadlines.cleanup_s, shield=True), contextlib.suppress(Exception):
                await self._bucket.call("abort_multipart_upload", path, Key=key, UploadId=upload)
            raise

    async def _put_parts(
        self, path: str, key: str, upload: str, fd: int, size: int, progress: Progress
    ) -> list[dict[str, Any]]:
        length = part_bytes(size)
        starts = iter(enumerate(range(0, size, length), start=1))
        etags: dict[int, str] = {}
        sent = 0

        async def worker() -> None:
            nonlocal sent
            for number, start in starts:
                count = min(length, size - start)
                put = partial(self._put, "upload_part", path, key, fd, start, count, PartNumber=number, UploadId=upload)
                etags[number] = await self._bucket.steps.do(put)
                sent += count
                await progress(sent)

        with first_error():
            async with anyio.create_task_group() as group:
                for _ in range(self._connections):
                    group.start_soon(worker)
        return [{"PartNumber": number, "ETag": etag} for number, etag in sorted(etags.items())]

    async def _put(self, method: str, path: str, key: str, fd: int, start: int, length: int, **part: str | int) -> str:
        """Send one body; returns the ETag that the server gave it."""
        if not self._by_client:
            try:
                with self._bucket.translated(path):
                    return await self._put_directly(path, key, fd, start, length, part)
            except Unspoken:
                self._by_client = True
        return await self._put_by_client(method, path, key, fd, start, length, part)

    async def _put_by_client(
        self,
        method: str,
        path: str,
        key: str,
        fd: int,
        start: int,
        length: int,
        part: dict[str, str | int],
    ) -> str:
        body = await read_source(fd, length, start)
        answer = await self._bucket.call(method, path, answer_s=self._deadlines.answer_s, Key=key, Body=body, **part)
        return _etag_of(answer.get("ETag", ""))

    async def _put_directly(
        self, path: str, key: str, fd: int, start: int, length: int, part: dict[str, str | int]
    ) -> str:
        pool = await self._bucket.pool()
        query = "&".join(f"{name}={quote(str(value), safe='-_.~')}" for name, value in sorted(_query(part)))
        headers = {"content-length": str(length)}
        head = await self._bucket.request("PUT", key, headers, query, UNSIGNED_PAYLOAD)
        body = Body(fd, start, length)
        answer = await pool.ask("PUT", head, body, answer_s=self._deadlines.answer_s)
        if answer.status == 200:
            return _etag_of(answer.headers.get("etag", ""))
        if not pool.origin.secure and answer.status in (400, 403, 501):
            raise Unspoken  # it may want the body's hash under the signature
        raise self._bucket.refused(answer, path)


def _query(part: dict[str, str | int]) -> list[tuple[str, str | int]]:
    return [(name[0].lower() + name[1:], value) for name, value in part.items()]


def _etag_of(etag: str) -> str:
    if not etag:
        raise RemoteError("remote_failed", "the server gave no ETag for what it was sent", retryable=False)
    return etag
