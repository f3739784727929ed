"""Moving an object within a bucket: the server copies it, the copy is looked at, and then the source is deleted."""

import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio

from smp_proto.control import ObjectInfo
from smp_proto.errors import IntegrityError, NotFoundError, RemoteError, SmpError
from smpd.fetch.bucket import Bucket
from smpd.fetch.pins import parse_pin
from smpd.fetch.remote import Outcome, Remote, changed, is_copy, taken
from smpd.links.fetching import END_BYTES, Deadlines

COPY_MAX_BYTES = 5 << 30  # CopyObject takes no more (S3 API reference); larger ones are copied in parts
COPY_PART_BYTES = 1 << 30


class Mover:
    """Moves and deletes one version of an object of a bucket.

    Args:
        remote: looks at objects.
        root: what the bucket's keys begin with.
    """

    def __init__(self, remote: Remote, bucket: Bucket, root: str, deadlines: Deadlines) -> None:
        self._remote = remote
        self._bucket = bucket
        self._root = root
        self._deadlines = deadlines
        self._conditional = True  # until the server says that it knows no conditional deletes

    async def move(self, path: str, pin: str, target: str) -> Outcome:
        """See :class:`smpd.fetch.remote.Remote`."""
        info = await self._look(path)
        if info is None or info.pin != pin:
            return "replaced" if info else "gone"
        copy = await self._look(target)
        made = copy is None
        if copy is None:
            try:
                await self._copy(path, pin, target)
            except IntegrityError as error:  # one of the two conditions
                if (await self._remote.stat(path)).pin != pin:
                    return "replaced"
                raise taken(target) from error
            copy = await self._remote.stat(target)
        if not made and not await self._is_ours(info, copy):
            raise taken(target)
        if made and not await self._same(info, copy):
            await self.delete(target, copy.pin)  # of a version that came in between: the server ignores conditions
            return "replaced"
        try:
            await self.delete(path, pin)
        except IntegrityError:
            return "replaced"
        return "moved"

    async def delete(self, path: str, pin: str) -> None:
        """Delete this version: by the server's own check where it has one, in any case looked at just before.

        Raises:
            IntegrityError: ``source_changed``.
        """
        info = await self._look(path)
        if info is None:
            return
        if info.pin != pin:
            raise changed(path)
        etag, key = parse_pin(pin)[1], self._root + path
        conditional = self._conditional and not etag.startswith("W/")
        if conditional:
            try:
                with contextlib.suppress(NotFoundError):
                    await self._bucket.call("delete_object", path, Key=key, IfMatch=f'"{etag}"')
                return
            except SmpError as error:
                if error.details.get("status") not in (400, 501):
                    raise
        await self._bucket.call("delete_object", path, Key=key)
        if conditional:  # it was the condition that the server did not know
            self._conditional = False

    async def _look(self, path: str) -> ObjectInfo | None:
        try:
            return await self._remote.stat(path)
        except NotFoundError as error:
            if error.code != "no_such_object":
                raise
            return None

    async def _is_ours(self, info: ObjectInfo, there: ObjectInfo) -> bool:
        """Whether what is at the target was brought there before, and not by somebody else since it was looked at."""
        if info.pin == there.pin:
            return True
        try:
            return await is_copy(self._remote, info, there)
        except IntegrityError:  # one of the two changed meanwhile
            return False

    async def _same(self, info: ObjectInfo, copy: ObjectInfo) -> bool:
        """Whether what the server has just copied is a copy.

        A copy of what came in parts, or was encrypted by the server, has another ETag; then size and end tell.
        """
        if info.pin == copy.pin or info.size != copy.size:
            return info.pin == copy.pin
        ends = [memoryview(bytearray(min(info.size, END_BYTES))) for _ in range(2)]
        found = [await self._remote.tail(each.path, end) for each, end in zip((info, copy), ends, strict=True)]
        return [each.pin for each in found] == [info.pin, copy.pin] and ends[0] == ends[1]

    async def _copy(self, path: str, pin: str, target: str) -> None:
        size, etag = parse_pin(pin)
        source = {"Bucket": self._bucket.name, "Key": self._root + path}
        of: dict[str, Any] = {"CopySource": source}
        if not etag.startswith("W/"):  # a weak tag never matches
            of["CopySourceIfMatch"] = f'"{etag}"'
        if size > COPY_MAX_BYTES:
            await self._copy_parts(path, target, size, of)
            return

        key, answer_s = self._root + target, self._deadlines.complete_s
        await _unless_known(partial(self._bucket.call, "copy_object", path, answer_s=answer_s, Key=key, **of))

    async def _copy_parts(self, path: str, target: str, size: int, of: dict[str, Any]) -> None:
        call, key = self._bucket.call, self._root + target
        await self._clear(path, key)
        with anyio.CancelScope(shield=True):
            upload = (await call("create_multipart_upload", path, Key=key))["UploadId"]
        try:
            parts: list[dict[str, Any]] = []
            for start in range(0, size, COPY_PART_BYTES):
                part = {"PartNumber": len(parts) + 1}
                extent = f"bytes={start}-{min(size, start + COPY_PART_BYTES) - 1}"
                more = {"UploadId": upload, "CopySourceRange": extent, **part, **of}
                answer = await call("upload_part_copy", path, answer_s=self._deadlines.complete_s, Key=key, **more)
                parts.append({**part, "ETag": answer.get("CopyPartResult", {}).get("ETag", "")})
            if await self._look(target) is not None:  # the copying may have taken hours
                raise taken(target)
            put = {"UploadId": upload, "MultipartUpload": {"Parts": parts}}
            answer_s = self._deadlines.complete_s
            await _unless_known(partial(call, "complete_multipart_upload", path, answer_s=answer_s, Key=key, **put))
        except BaseException:
            with anyio.move_on_after(self._deadlines.cleanup_s, shield=True), contextlib.suppress(Exception):
                await call("abort_multipart_upload", path, Key=key, UploadId=upload)
            raise

    async def _clear(self, path: str, key: str) -> None:
        """Abort what an earlier try left: nobody else has a reason to make an object of that name."""
        with contextlib.suppress(NotFoundError, RemoteError):  # a server that does not list them, or not to us
            listed = await self._bucket.call("list_multipart_uploads", path, Prefix=key)
            for each in listed.get("Uploads", ()):
                if each["Key"] == key:
                    await self._bucket.call("abort_multipart_upload", path, Key=key, UploadId=each["UploadId"])


async def _unless_known(once: Callable[..., Awaitable[object]]) -> None:
    """Make a copy where nothing is at the target, as far as the server can tell; it was looked at just before."""
    try:
        await once(IfNoneMatch="*")
    except RemoteError as error:
        if error.details.get("status") not in (400, 501):
            raise
        await once()
