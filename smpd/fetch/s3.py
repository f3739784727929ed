"""A bucket. aiobotocore signs, resolves, lists and uploads; ranges are read by :mod:`smpd.fetch.http`."""

import contextlib
import re
import ssl
from collections.abc import AsyncGenerator, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import aiohttp
import anyio
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore import UNSIGNED, exceptions
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.utils import get_environ_proxies

from smp_proto.control import ObjectInfo, S3Config, S3Secret
from smp_proto.errors import RemoteError, SmpError, UsageError
from smpd.fetch.http import Answer, RangeReader, Unspoken, Wanted, connect_error
from smpd.fetch.pins import etag_pin, parse_pin
from smpd.fetch.refusals import refusal
from smpd.fetch.remote import (
    ANEW,
    DEADLINES,
    Deadlines,
    Progress,
    changed,
    first_error,
    read_source,
    tail_of,
    unreachable,
)

PART_BYTES = 8 << 20
PARTS_MAX = 10_000
OBJECT_MAX_BYTES = 5 << 40
_UPLOAD_FLOOR_BYTES_S = 64 << 10  # a part that moves slower than this is given up
_COMPLETE_S = 600.0  # a server may be putting together thousands of parts
_URLS_MAX = 64
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")


def part_bytes(size: int) -> int:
    """The size of the parts of an upload: at least PART_BYTES, whole MiB, at most PARTS_MAX of them."""
    mib = 1 << 20
    return max(PART_BYTES, -(-size // (PARTS_MAX * mib)) * mib)


class S3Remote:
    """A bucket, or what lies below a prefix of one."""

    def __init__(
        self, config: S3Config, secret: S3Secret | None, connections: int, deadlines: Deadlines = DEADLINES
    ) -> None:
        if config.endpoint and not re.fullmatch(r"https?://[^/?#\s@]+/?", config.endpoint):
            raise UsageError(
                "bad_config", "the endpoint is not an http or https URL", hint="e.g. https://s3.example.org"
            )
        self._config = config
        self._secret = secret
        self._connections = connections
        self._deadlines = deadlines
        self._root = config.prefix.strip("/") + "/" if config.prefix.strip("/") else ""
        self._tls = _trust(config.ca_pem)
        self._reader = RangeReader(self._tls, connections, deadlines)
        self._urls: dict[str, tuple[str, str]] = {}
        self._by_client = False
        self._opening = anyio.Lock()
        self._stack = contextlib.AsyncExitStack()
        self._session: AioSession
        self._opened: Any = None

    # ── the client ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def _where(self) -> str:
        host = urlsplit(self._config.endpoint).netloc or "AWS"
        return f"bucket {self._config.bucket} at {host}"

    async def _client(self) -> Any:
        async with self._opening:
            if self._opened is None:
                self._session = AioSession(profile=self._config.profile or None)
                secret = self._secret
                self._opened = await self._stack.enter_async_context(
                    self._session.create_client(
                        "s3",
                        region_name=self._config.region or None,
                        endpoint_url=self._config.endpoint or None,
                        aws_access_key_id=secret.access_key if secret else None,
                        aws_secret_access_key=secret.secret_key if secret else None,
                        aws_session_token=(secret.session_token or None) if secret else None,
                        config=self._settings(),
                    )
                )
        return self._opened

    def _settings(self) -> AioConfig:
        tls = self._tls

        class Session(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore has no types
            def _build_verify_context(self) -> ssl.SSLContext:
                return tls

        signed = self._secret is not None or bool(self._config.profile)
        s3: dict[str, Any] = {"addressing_style": self._config.addressing}
        if not self._config.endpoint.startswith("http:"):
            s3["payload_signing_enabled"] = False  # TLS guards the body, and hashing it would hold up the loop
        return AioConfig(
            http_session_cls=Session,
            signature_version="s3v4" if signed else UNSIGNED,
            connect_timeout=self._deadlines.connect_s,
            read_timeout=self._deadlines.stall_s,
            max_pool_connections=self._connections,
            retries={"total_max_attempts": 1, "mode": "standard"},
            s3=s3,
            # Only AWS itself speaks the newer checksums everywhere; sealed objects carry their own.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )

    async def _call(self, method: str, path: str = "", seconds: float = 0.0, **parameters: Any) -> dict[str, Any]:
        """One operation of the client, with a deadline, its failures as our errors."""
        with self._translated(path):
            client = await self._client()
            with anyio.fail_after(seconds or self._deadlines.connect_s + self._deadlines.stall_s):
                answer: dict[str, Any] = await getattr(client, method)(Bucket=self._config.bucket, **parameters)
        return answer

    @contextlib.contextmanager
    def _translated(self, path: str = "") -> Iterator[None]:
        host = urlsplit(self._config.endpoint).netloc or "AWS"
        try:
            yield
        except exceptions.ClientError as error:
            meta = error.response.get("ResponseMetadata", {})
            code = str(error.response.get("Error", {}).get("Code", ""))
            headers = meta.get("HTTPHeaders", {})
            raise refusal(meta.get("HTTPStatusCode", 0), code, headers, self._where, path) from error
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.ProfileNotFound) as error:
            raise RemoteError(
                "remote_auth",
                f"the daemon has no credentials for {self._where}",
                hint=f"give a key with: {ANEW}, or set up the AWS profile for the daemon's user",
            ) from error
        except (exceptions.SSLError, exceptions.EndpointConnectionError) as error:
            cause = error.kwargs.get("error")
            cause = getattr(cause, "certificate_error", None) or getattr(cause, "os_error", None) or cause
            raise connect_error(cause, host) from error
        except (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError, TimeoutError) as error:
            raise unreachable(host, "does not answer") from error
        except (exceptions.HTTPClientError, exceptions.IncompleteReadError, aiohttp.ClientError, OSError) as error:
            raise unreachable(host, "closed the connection early") from error
        except exceptions.BotoCoreError as error:
            raise RemoteError(
                "remote_failed", f"{self._where}: {type(error).__name__}", hint="check the remote's settings"
            ) from error

    async def aclose(self) -> None:
        """Close both pools."""
        await self._reader.aclose()
        await self._stack.aclose()

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────

    async def stat(self, path: str) -> ObjectInfo:
        """See :class:`smpd.fetch.remote.Remote`."""
        try:
            head = await self._call("head_object", path, Key=self._root + path)
        except SmpError as error:
            if not error.details.get("bare"):
                raise
            # A HEAD's refusal has no body, so it cannot say why. A GET's can.
            answer = await self._call("get_object", path, Key=self._root + path, Range="bytes=0-0")
            answer["Body"].close()
            raise
        return self._info(path, head["ContentLength"], head.get("ETag", ""), head.get("LastModified"))

    def _info(self, path: str, size: int, etag: str, modified: Any) -> ObjectInfo:
        return ObjectInfo(path, size, etag_pin(size, etag), modified.timestamp() if modified else 0.0)

    async def walk(self, prefix: str, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        """See :class:`smpd.fetch.remote.Remote`."""
        more: dict[str, Any] = {} if recursive else {"Delimiter": "/"}
        while True:
            page = await self._call("list_objects_v2", Prefix=self._root + prefix, **more)
            try:
                found = self._listed(page, prefix)
            except (KeyError, TypeError, AttributeError) as error:
                raise RemoteError("remote_failed", f"{self._where} sent a listing that is none") from error
            for entry in found:
                yield entry
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or not token or token == more.get("ContinuationToken"):
                return
            more["ContinuationToken"] = token

    def _listed(self, page: dict[str, Any], prefix: str) -> list[ObjectInfo]:
        found = [ObjectInfo(folder["Prefix"], 0) for folder in page.get("CommonPrefixes", ())]
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):  # a folder's marker
                info = self._info(entry["Key"], entry["Size"], entry.get("ETag", ""), entry.get("LastModified"))
                found.append(info)
        for info in found:
            if not info.path.startswith(self._root + prefix):
                raise RemoteError("remote_failed", f"{self._where} listed an object that was not asked for")
            info.path = info.path.removeprefix(self._root)
        return sorted(found, key=lambda info: info.path.encode())

    async def tail(self, path: str, into: memoryview) -> ObjectInfo:
        """See :class:`smpd.fetch.remote.Remote`."""
        return await tail_of(self, path, into)

    async def read(self, path: str, pin: str, offset: int, into: memoryview) -> None:
        """See :class:`smpd.fetch.remote.Remote`."""
        size, etag = parse_pin(pin)
        wanted = Wanted(path, size, etag, offset, len(into))
        with self._translated(path):
            try:
                if not self._by_client:
                    return await self._read_directly(wanted, into)
            except Unspoken:
                self._by_client = True  # from now on, as the next answer will be no different
            return await self._read_by_client(wanted, into)

    async def _read_directly(self, wanted: Wanted, into: memoryview) -> None:
        url, headers = await self._signed(wanted)
        if get_environ_proxies(url):
            raise Unspoken
        answer = await self._reader.get(url, headers, wanted, into)
        if answer.status in (301, 307, 308):
            raise Unspoken
        if not answer.wanted:
            code = _CODE.search(answer.body)
            raise refusal(answer.status, code[1].decode() if code else "", answer.headers, self._where, wanted.path)

    async def _signed(self, wanted: Wanted) -> tuple[str, dict[str, str]]:
        """Where to ask for the range, and with what: Signature Version 4 in the header.

        Resolving an endpoint costs botocore a millisecond, so its result is kept for each path.
        """
        client = await self._client()
        if wanted.path not in self._urls:
            parameters = {"Bucket": self._config.bucket, "Key": self._root + wanted.path}
            presigned = urlsplit(await client.generate_presigned_url("get_object", Params=parameters))
            scope = parse_qs(presigned.query).get("X-Amz-Credential", [""])[0]
            if len(self._urls) >= _URLS_MAX:
                self._urls.clear()
            region = scope.split("/")[2] if scope else ""
            self._urls[wanted.path] = urlunsplit(presigned._replace(query="")), region
        url, region = self._urls[wanted.path]
        request = AWSRequest("GET", url, headers=wanted.headers)
        if region:
            S3SigV4Auth(await self._credentials(), "s3", region).add_auth(request)
        return url, {**request.headers, "Accept-Encoding": "identity"}

    async def _credentials(self) -> ReadOnlyCredentials:
        if self._secret is not None:
            secret = self._secret
            return ReadOnlyCredentials(secret.access_key, secret.secret_key, secret.session_token or None)
        credentials = await self._session.get_credentials()
        if credentials is None:
            raise exceptions.NoCredentialsError
        return await credentials.get_frozen_credentials()

    async def _read_by_client(self, wanted: Wanted, into: memoryview) -> None:
        """Read through aiohttp: for proxies, redirects and chunked answers. It copies, but checks the same."""
        conditions: dict[str, Any] = {name.replace("-", ""): value for name, value in wanted.headers.items()}
        answer = await self._call("get_object", wanted.path, Key=self._root + wanted.path, **conditions)
        meta = answer["ResponseMetadata"]
        async with answer["Body"] as body:
            wanted.check(Answer(meta["HTTPStatusCode"], meta["HTTPHeaders"]))
            received = 0
            while True:
                with anyio.fail_after(self._deadlines.stall_s):
                    chunk = await body.read(min(1 << 18, len(into) - received + 1))
                if not chunk:
                    break
                if received + len(chunk) > len(into):
                    raise RemoteError("remote_failed", f"the server sent more of {wanted.path} than was asked for")
                into[received : received + len(chunk)] = chunk
                received += len(chunk)
        if received != len(into):
            raise unreachable("the server", f"closed the connection after {received} of {len(into)} bytes")

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────

    async def write(self, path: str, fd: int, size: int, progress: Progress) -> ObjectInfo:
        """See :class:`smpd.fetch.remote.Remote`."""
        if size > OBJECT_MAX_BYTES:
            raise UsageError("bad_request", f"{path} is larger than an object may be", hint="split it below 5 TiB")
        if size <= PART_BYTES:
            body = await read_source(fd, size, 0)
            await self._call("put_object", path, self._part_s(size), Key=self._root + path, Body=body)
            await progress(size)
        else:
            await self._upload(path, fd, size, progress)
        info = await self.stat(path)
        if info.size != size:
            raise changed(path)
        return info

    def _part_s(self, length: int) -> float:
        return self._deadlines.connect_s + self._deadlines.stall_s + length / _UPLOAD_FLOOR_BYTES_S

    async def _upload(self, path: str, fd: int, size: int, progress: Progress) -> None:
        key = self._root + path
        # Shielded: were it cancelled on its way, an upload would stay behind whose id nobody knows.
        with anyio.CancelScope(shield=True):
            upload = (await self._call("create_multipart_upload", path, Key=key))["UploadId"]
        try:
            parts = await self._upload_parts(path, upload, fd, size, progress)
            await self._call(
                "complete_multipart_upload",
                path,
                _COMPLETE_S,
                Key=key,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
            )
        except BaseException:
            with anyio.CancelScope(shield=True), contextlib.suppress(Exception):
                await self._call("abort_multipart_upload", path, Key=key, UploadId=upload)
            raise

    async def _upload_parts(
        self, path: str, upload: str, fd: int, size: int, progress: Progress
    ) -> list[dict[str, Any]]:
        length = part_bytes(size)
        starts = iter(enumerate(range(0, size, length), start=1))
        etags: dict[int, str] = {}
        sent = 0

        async def worker() -> None:
            nonlocal sent
            for number, start in starts:
                body = await read_source(fd, min(length, size - start), start)
                answer = await self._call(
                    "upload_part",
                    path,
                    self._part_s(len(body)),
                    Key=self._root + path,
                    UploadId=upload,
                    PartNumber=number,
                    Body=body,
                )
                etags[number] = answer["ETag"]
                sent += len(body)
                await progress(sent)

        with first_error():
            async with anyio.create_task_group() as group:
                for _ in range(self._connections):
                    group.start_soon(worker)
        return [{"PartNumber": number, "ETag": etag} for number, etag in sorted(etags.items())]

    async def delete(self, path: str) -> None:
        """See :class:`smpd.fetch.remote.Remote`."""
        await self._call("delete_object", path, Key=self._root + path)

    async def probe(self) -> dict[str, str]:
        """See :class:`smpd.fetch.remote.Remote`."""
        page = await self._call("list_objects_v2", Prefix=self._root, MaxKeys=1)
        headers = page["ResponseMetadata"]["HTTPHeaders"]
        with self._translated():
            url, _ = await self._signed(Wanted("probe", 1, "none", 0, 1))
            facts = {} if get_environ_proxies(url) else await self._reader.probe(url)
        return {"server": headers.get("server", "unknown"), "endpoint": urlsplit(url).netloc, **facts}


def _trust(ca_pem: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca_pem:
        try:
            context.load_verify_locations(cadata=ca_pem)
        except ssl.SSLError as error:
            raise UsageError("bad_config", "the extra certificates are not PEM text") from error
    return context
