"""A bucket's objects. Bodies go past the client where they can; what goes how is in ``bucket``."""

import re
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from smp_proto.control import ObjectInfo, S3Config, S3Secret
from smp_proto.errors import RemoteError, SmpError, UsageError
from smpd.fetch.bucket import Bucket, timestamp
from smpd.fetch.events import Notifications
from smpd.fetch.exchange import Answer, Suffix, Unspoken, Wanted
from smpd.fetch.http import trusting
from smpd.fetch.listing import Lister, object_info
from smpd.fetch.moving import Mover
from smpd.fetch.patience import while_moving
from smpd.fetch.pins import bare_etag, parse_pin
from smpd.fetch.remote import PLAINLY, Outcome, Progress, Writing, is_same, tail_of, taken, unreachable
from smpd.fetch.upload import OBJECT_MAX_BYTES, PART_BYTES, Uploader
from smpd.links.fetching import Clear, Deadlines, Seen


class S3Remote:
    """A bucket, or what lies below a prefix of one."""

    def __init__(self, config: S3Config, secret: S3Secret | None, connections: int, deadlines: Deadlines) -> None:
        if config.endpoint and not re.fullmatch(r"https?://[^/?#\s@]+/?", config.endpoint):
            raise UsageError(
                "bad_config", "the endpoint is not an http or https URL", hint="e.g. https://s3.example.org"
            )
        self.at_once = connections
        self._deadlines = deadlines
        self._root = config.prefix.strip("/") + "/" if config.prefix.strip("/") else ""
        tls = trusting(config.ca_pem, secure=not config.endpoint.startswith("http:"))
        self._bucket = Bucket(config, secret, connections, deadlines, tls)
        self._lister = Lister(self._bucket, self._root)
        self._uploader = Uploader(self._bucket, connections, deadlines)
        self._mover = Mover(self, self._bucket, self._root, deadlines)
        self._by_client = False

    def hold(self, seconds: float) -> None:
        """See :class:`smpd.fetch.remote.Remote`."""
        self._bucket.steps.hold(seconds)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._bucket.aclose()

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────

    async def stat(self, path: str) -> ObjectInfo:
        """See :class:`smpd.fetch.remote.Remote`."""
        try:
            head = await self._bucket.call("head_object", path, Key=self._root + path)
        except SmpError as error:
            if not error.details.get("bare"):
                raise
            # A HEAD's refusal has no body, so it cannot say why. A GET's can.
            answer = await self._bucket.call("get_object", path, Key=self._root + path, Range="bytes=0-0")
            answer["Body"].close()
            raise
        return self._info(path, head["ContentLength"], head.get("ETag", ""), head.get("LastModified"))

    def _info(self, path: str, size: int, etag: str, modified: Any) -> ObjectInfo:
        return object_info(self._bucket.where, path, size, etag, modified.timestamp() if modified else 0.0)

    def walk(self, prefix: str, recursive: bool, after: str = "") -> AsyncGenerator[ObjectInfo, None]:
        """See :class:`smpd.fetch.remote.Remote`."""
        return self._lister.walk(prefix, recursive, after)

    async def tail(self, path: str, into: memoryview) -> ObjectInfo:
        """See :class:`smpd.fetch.remote.Remote`. One request, where the server knows suffix ranges."""
        if into and not self._by_client:
            suffix = Suffix(path, len(into))
            with self._bucket.translated(path):
                try:
                    answer = await self._get(suffix, into)
                    if answer.wanted:
                        return self._told(path, answer)
                    if answer.status != 416:  # of an empty object no byte can be asked for
                        raise self._bucket.refused(answer, path)
                except Unspoken:
                    pass  # a server may still know other ranges, and the client follow where it points
        return await tail_of(self, path, into)

    def _told(self, path: str, answer: Answer) -> ObjectInfo:
        """What an answer's head tells of the object: the same as :meth:`stat`."""
        assert answer.extent is not None, "it was checked"
        try:
            modified = timestamp(answer.headers.get("last-modified", ""))
        except ValueError:
            modified = None
        return self._info(path, answer.extent[2], answer.headers.get("etag", ""), modified)

    async def read(self, path: str, pin: str, offset: int, into: memoryview) -> None:
        """See :class:`smpd.fetch.remote.Remote`."""
        size, etag = parse_pin(pin)
        wanted = Wanted(path, size, etag, offset, len(into))
        with self._bucket.translated(path):
            try:
                if not self._by_client:
                    answer = await self._get(wanted, into)
                    if answer.wanted:
                        return
                    raise self._bucket.refused(answer, path)
            except Unspoken:
                self._by_client = True  # from now on, as the next answer will be no different
            await self._read_by_client(wanted, into)

    async def _get(self, wanted: Wanted | Suffix, into: memoryview) -> Answer:
        pool = await self._bucket.pool()
        head = partial(self._bucket.request, "GET", self._root + wanted.path, wanted.headers)
        return await pool.get(head, wanted, into)

    async def _read_by_client(self, wanted: Wanted, into: memoryview) -> None:
        """Read through aiohttp: for proxies, redirects and chunked answers. It copies, but checks the same."""
        conditions: dict[str, Any] = {"Range": wanted.headers["range"]}
        if "if-match" in wanted.headers:
            conditions["IfMatch"] = wanted.headers["if-match"]
        answer = await self._bucket.call("get_object", wanted.path, Key=self._root + wanted.path, **conditions)
        meta = answer["ResponseMetadata"]
        received = 0
        async with answer["Body"] as body:
            wanted.check(Answer(meta["HTTPStatusCode"], meta["HTTPHeaders"]))
            with while_moving(self._deadlines, lambda: received):
                while chunk := await body.read(min(1 << 18, len(into) - received + 1)):
                    if received + len(chunk) > len(into):
                        raise RemoteError("remote_failed", f"the server sent more of {wanted.path} than was asked for")
                    into[received : received + len(chunk)] = chunk
                    received += len(chunk)
        if received != len(into):
            raise unreachable("the server", f"closed the connection after {received} of {len(into)} bytes")

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────

    async def write(self, path: str, fd: int, size: int, progress: Progress, how: Writing = PLAINLY) -> ObjectInfo:
        """See :class:`smpd.fetch.remote.Remote`."""
        if size > OBJECT_MAX_BYTES:
            raise UsageError("bad_request", f"{path} is larger than an object may be", hint="split it below 5 TiB")
        etag = await self._uploader.upload(path, self._root + path, fd, size, progress, how)
        info = await self.stat(path)
        if info.size != size:
            raise taken(path)
        # Of an object in parts some servers answer another ETag than they have afterwards.
        if parse_pin(info.pin)[1] != bare_etag(etag) and not (await is_same(self, path, fd, size))[1]:
            raise taken(path)
        return info

    async def settle(self, path: str) -> None:
        """See :class:`smpd.fetch.remote.Remote`. What a bucket shows it keeps."""

    async def clear(self, asked: Clear) -> None:
        """See :class:`smpd.fetch.remote.Remote`."""
        if asked.size > PART_BYTES:
            await self._uploader.clear(self._root + asked.path, asked)

    async def delete(self, path: str, pin: str = "") -> None:
        """See :class:`smpd.fetch.remote.Remote`."""
        if pin:
            await self._mover.delete(path, pin)
        else:
            await self._bucket.call("delete_object", path, Key=self._root + path)

    async def move(self, path: str, pin: str, target: str) -> Outcome:
        """See :class:`smpd.fetch.remote.Remote`."""
        return await self._mover.move(path, pin, target)

    def watch(self, prefix: str, queue: str) -> AsyncGenerator[Seen, None]:
        """See :class:`smpd.fetch.remote.Remote`."""
        return Notifications(self._bucket, self._deadlines).follow(queue, self._root, prefix)

    async def probe(self) -> dict[str, str]:
        """See :class:`smpd.fetch.remote.Remote`."""
        page = await self._bucket.call("list_objects_v2", Prefix=self._root, MaxKeys=1)
        headers = page["ResponseMetadata"]["HTTPHeaders"]
        facts = {"server": headers.get("server", "unknown"), "endpoint": self._bucket.host}
        facts |= {"date": headers["date"]} if "date" in headers else {}
        with self._bucket.translated():
            try:
                pool = await self._bucket.pool()
            except Unspoken:
                return facts
            return {**facts, "endpoint": str(pool.origin), **await pool.probe()}
