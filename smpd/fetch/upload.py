"""Uploads: whole where small, else in parts, several at a time, aborted unless completed."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

import anyio

from smp_proto.errors import IntegrityError, NotFoundError, RemoteError, SmpError
from smpd.fetch.bucket import Bucket
from smpd.fetch.connection import Body
from smpd.fetch.exchange import Unspoken
from smpd.fetch.pins import parse_pin
from smpd.fetch.remote import PLAINLY, Progress, Writing, first_error, read_source, taken
from smpd.fetch.signing import UNSIGNED_PAYLOAD
from smpd.links.fetching import Clear, Deadlines

PART_BYTES = 8 << 20
PARTS_MAX = 10_000
PARTS_AT_ONCE = 8
OBJECT_MAX_BYTES = 5 << 40
TOLD_S = 60.0  # progress is told so often at least, since on a slow line a part takes long
_FIELDS = {"IfMatch": "if-match", "IfNoneMatch": "if-none-match"}


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
        self._at_once = min(connections, PARTS_AT_ONCE)
        self._deadlines = deadlines
        self._by_client = False
        self._conditional = True

    async def upload(self, path: str, key: str, fd: int, size: int, progress: Progress, how: Writing = PLAINLY) -> str:
        """Write bytes ``[0, size)`` of ``fd`` to ``key``; ``path`` is its name in errors. Returns the object's ETag."""
        condition = _condition(how.replaces) if self._conditional else {}
        try:
            return await self._upload(path, key, fd, size, progress, how, condition)
        except IntegrityError as error:
            if not condition or error.code != "source_changed":
                raise
            raise taken(path) from error
        except NotFoundError as error:
            if "IfMatch" not in condition or error.code != "no_such_object":
                raise
            return await self.upload(path, key, fd, size, progress, how._replace(replaces=""))  # it went meanwhile
        except SmpError as error:
            if not condition or not _may_be_unknown(error):
                raise
        # It may not know conditional writes; what was looked at before has to do.
        etag = await self._upload(path, key, fd, size, progress, how, {})
        self._conditional = False
        return etag

    async def _upload(
        self, path: str, key: str, fd: int, size: int, progress: Progress, how: Writing, condition: dict[str, str]
    ) -> str:
        if size <= PART_BYTES:
            put = partial(self._put, "put_object", path, key, fd, 0, size, condition)
            async with _told(progress, lambda: 0):
                etag = await self._bucket.steps.do(put)
            await progress(size)
            return etag

        async def create() -> str:
            # Shielded: were it cancelled on its way, an upload would stay behind whose id nobody knows.
            with anyio.CancelScope(shield=True):
                answer = await self._bucket.call("create_multipart_upload", path, Key=key)
            return str(answer["UploadId"])

        # Once: one that was made, and not told of, is to be cleared away before there is another beside it.
        upload = await self._bucket.steps.do(create, attempts=1)
        try:
            if how.begun is not None:
                await how.begun(upload)
            parts = await self._put_parts(path, key, upload, fd, size, progress)
            complete = partial(
                self._bucket.call,
                "complete_multipart_upload",
                path,
                answer_s=self._deadlines.complete_s,
                Key=key,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                **condition,
            )
            answer = await self._bucket.steps.do(complete)
        except BaseException:
            with anyio.move_on_after(self._deadlines.cleanup_s, shield=True), contextlib.suppress(Exception):
                await self._bucket.call("abort_multipart_upload", path, Key=key, UploadId=upload)
            raise
        return str(answer.get("ETag", ""))

    async def clear(self, key: str, asked: Clear) -> None:
        """Abort an upload that was cut off; with no id known, those of this key that have no part yet, if asked to.

        A process that is killed after the server began an upload, and before its id was kept, has sent no part of it. A
        server that does not list its uploads, or not to us, keeps what it has.
        """
        path = asked.path
        if asked.upload:
            await self._abort(path, key, asked.upload)
        if asked.upload or not asked.unknown:
            return
        try:
            listed = await self._bucket.call("list_multipart_uploads", path, Prefix=key)
            for each in listed.get("Uploads", ()):
                if each["Key"] == key and each["UploadId"] not in asked.spared:
                    parts = await self._bucket.call("list_parts", path, Key=key, UploadId=each["UploadId"])
                    if not parts.get("Parts"):
                        await self._abort(path, key, each["UploadId"])
        except (NotFoundError, RemoteError) as error:
            if error.retryable and error.details.get("status") not in (404, 501):
                raise

    async def _abort(self, path: str, key: str, upload: str) -> None:
        try:
            await self._bucket.call("abort_multipart_upload", path, Key=key, UploadId=upload)
        except SmpError as error:
            if error.details.get("status") != 404:
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
                part: dict[str, str | int] = {"PartNumber": number, "UploadId": upload}
                put = partial(self._put, "upload_part", path, key, fd, start, count, part)
                etags[number] = await self._bucket.steps.do(put)
                sent += count
                await progress(sent)

        async with _told(progress, lambda: sent), anyio.create_task_group() as group:
            for _ in range(self._at_once):
                group.start_soon(worker)
        return [{"PartNumber": number, "ETag": etag} for number, etag in sorted(etags.items())]

    async def _put(
        self, method: str, path: str, key: str, fd: int, start: int, length: int, more: Mapping[str, str | int]
    ) -> str:
        """Send one body, with these parameters of the client's; returns the ETag that the server gave it."""
        if not self._by_client:
            try:
                with self._bucket.translated(path):
                    return await self._put_directly(path, key, fd, start, length, more)
            except Unspoken:
                self._by_client = True
        return await self._put_by_client(method, path, key, fd, start, length, more)

    async def _put_by_client(
        self,
        method: str,
        path: str,
        key: str,
        fd: int,
        start: int,
        length: int,
        more: Mapping[str, str | int],
    ) -> str:
        body = await read_source(fd, length, start)
        answer = await self._bucket.call(method, path, answer_s=self._deadlines.answer_s, Key=key, Body=body, **more)
        return _etag_of(answer.get("ETag", ""))

    async def _put_directly(
        self, path: str, key: str, fd: int, start: int, length: int, more: Mapping[str, str | int]
    ) -> str:
        pool = await self._bucket.pool()
        query = "&".join(f"{name}={quote(str(value), safe='-_.~')}" for name, value in sorted(_query(more)))
        conditions = {_FIELDS[name]: str(value) for name, value in more.items() if name in _FIELDS}
        headers = {"content-length": str(length), **conditions}
        head = partial(self._bucket.request, "PUT", key, headers, query, UNSIGNED_PAYLOAD)
        body = Body(fd, start, length)
        answer = await pool.ask("PUT", head, body, answer_s=self._deadlines.answer_s)
        if answer.status == 200:
            return _etag_of(answer.headers.get("etag", ""))
        if not pool.origin.secure and answer.status in (400, 403, 501):
            raise Unspoken  # it may want the body's hash under the signature
        raise self._bucket.refused(answer, path)


@contextlib.asynccontextmanager
async def _told(progress: Progress, sent: Callable[[], int]) -> AsyncIterator[None]:
    """Tell now and then how much is sent, for the length of a block; of several errors in it the first is raised."""

    async def tell() -> None:
        while True:
            await anyio.sleep(TOLD_S)
            await progress(sent())

    with first_error():
        async with anyio.create_task_group() as group:
            group.start_soon(tell)
            yield
            group.cancel_scope.cancel()


def _may_be_unknown(error: SmpError) -> bool:
    """Whether a server that refused a conditional write may not know the condition; not where it took too long, say."""
    status = error.details.get("status")
    return status == 501 or (status == 400 and error.code == "remote_failed" and not error.retryable)


def _condition(replaces: str | None) -> dict[str, str]:
    """What a write asks for, so that nothing is replaced but an object with this pin."""
    if replaces == "":
        return {"IfNoneMatch": "*"}
    etag = parse_pin(replaces)[1] if replaces else "W/"
    return {} if etag.startswith("W/") else {"IfMatch": f'"{etag}"'}  # a weak tag never matches


def _query(more: Mapping[str, str | int]) -> list[tuple[str, str | int]]:
    return [(name[0].lower() + name[1:], value) for name, value in more.items() if name not in _FIELDS]


def _etag_of(etag: str) -> str:
    if not etag:
        raise RemoteError("remote_failed", "the server gave no ETag for what it was sent", retryable=False)
    return etag
