"""A bucket: aiobotocore resolves and signs all but bodies and listings; all goes over connections of our own."""

import contextlib
import functools
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

import aiohttp
import anyio
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore import UNSIGNED, exceptions
from botocore.loaders import Loader
from botocore.parsers import ResponseParserError
from botocore.utils import get_environ_proxies

from smp_proto.control import S3Config, S3Secret
from smp_proto.errors import RemoteError, SmpError
from smpd.fetch.exchange import Answer, Unspoken
from smpd.fetch.http import Origin, Pool, Trust, connect_error
from smpd.fetch.pausing import Steps
from smpd.fetch.refusals import refusal
from smpd.fetch.remote import ANEW, unreachable
from smpd.fetch.signing import EMPTY_SHA256, Signer
from smpd.fetch.speaking import PAGE_MAX_BYTES, Speaker, operation, session_over
from smpd.links.fetching import Deadlines

_TIME_MAX = 64  # characters
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")


class Place(NamedTuple):
    """Where the objects of a bucket lie, as botocore resolves it: once, since it takes a millisecond."""

    origin: Origin
    path: str  # of the bucket, percent-encoded, with a slash at the end
    region: str  # empty where requests are not signed

    @classmethod
    def of(cls, presigned: str) -> "Place":
        """Take the presigned URL of an object called ``k`` apart.

        Raises:
            Unspoken: the bucket wants another signature than version 4 for one region.
        """
        url = urlsplit(presigned)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        region = ""
        if query:
            scope = query.get("X-Amz-Credential", "").split("/")[-4:]
            if query.get("X-Amz-Algorithm") != "AWS4-HMAC-SHA256" or scope[2:] != ["s3", "aws4_request"]:
                raise Unspoken
            region = scope[1]
        return cls(Origin.of(presigned), url.path.removesuffix("k"), region)

    def path_of(self, key: str) -> str:
        """The path of an object's URL, percent-encoded as botocore does; with no key, of the bucket's."""
        return self.path + quote(key, safe="/~") if key else self.path.removesuffix("/") or "/"


def timestamp(value: str) -> datetime:
    """A time as S3 writes it in listings (ISO 8601) and heads (RFC 9110 §5.6.7).

    botocore's own way guesses at any text, takes some 40 times as long, and warns about what it does not know.

    Raises:
        ValueError: it is none.
    """
    if len(value) > _TIME_MAX:
        raise ValueError("a time that is too long")
    try:
        found = datetime.fromisoformat(value) if value[:1].isdigit() else parsedate_to_datetime(value)
        found = found if found.tzinfo else found.replace(tzinfo=UTC)
        found.timestamp()  # an offset may lead out of the years there are
    except (TypeError, OverflowError, IndexError) as error:
        raise ValueError("no time") from error
    return found


class _Tables(Loader):  # type: ignore[misc]  # botocore has no types
    """botocore's tables of services, for those that are asked.

    It would look into the folders of all of the 400 for the name of one, twice: a fifth of the time a client takes.
    """

    def list_available_services(self, type_name: str) -> list[str]:
        return ["s3", "sqs"]


_tables = functools.cache(_Tables)  # read once a process


class Bucket:
    """The client of one bucket, made when it is first needed, and the way round it for bodies."""

    def __init__(
        self, config: S3Config, secret: S3Secret | None, connections: int, deadlines: Deadlines, tls: Trust
    ) -> None:
        self._config = config
        self._secret = secret
        self._connections = connections
        self._deadlines = deadlines
        self._tls = tls
        self._opening = anyio.Lock()
        self._stack = contextlib.AsyncExitStack()
        self._session: AioSession
        self._opened: Any = None
        self.steps = Steps()
        self._place: Place | None = None
        self._pools: dict[Origin, Pool] = {}
        self._signer: tuple[tuple[str, str, str], Signer] | None = None

    @property
    def where(self) -> str:
        """The bucket, for messages."""
        return f"bucket {self._config.bucket} at {self.host}"

    @property
    def name(self) -> str:
        """What the bucket is called."""
        return self._config.bucket

    @property
    def home(self) -> tuple[str, str]:
        """The endpoint, empty for AWS, and the region."""
        return self._config.endpoint, self._config.region

    @property
    def host(self) -> str:
        """The server, for messages."""
        return urlsplit(self._config.endpoint).netloc or "AWS"

    async def _client(self) -> Any:
        async with self._opening:
            if self._opened is None:
                self._session = AioSession(profile=self._config.profile or None)
                if not self._config.profile:  # which may ask other services
                    self._session.register_component("data_loader", _tables())
                factory = self._session.get_component("response_parser_factory")
                factory.set_parser_defaults(timestamp_parser=timestamp)
                place = self._config.region, self._config.endpoint
                self._opened = await self._make(self._stack, "s3", *place, self._settings())
        return self._opened

    async def _make(
        self, stack: contextlib.AsyncExitStack, service: str, region: str, endpoint: str, settings: AioConfig
    ) -> Any:
        secret = self._secret
        client = self._session.create_client(
            service,
            region_name=region or None,
            endpoint_url=endpoint or None,
            aws_access_key_id=secret.access_key if secret else None,
            aws_secret_access_key=secret.secret_key if secret else None,
            aws_session_token=(secret.session_token or None) if secret else None,
            config=settings,
        )
        return await stack.enter_async_context(client)

    @contextlib.asynccontextmanager
    async def queue(self, region: str, endpoint: str) -> AsyncIterator[Any]:
        """A client of SQS with the bucket's credentials, over a connection of its own: it is waited on for long."""
        await self._client()
        pools: dict[Origin, Pool] = {}
        async with contextlib.AsyncExitStack() as stack:

            def pool_of(origin: Origin) -> Pool:
                if origin not in pools:
                    pools[origin] = Pool(origin, self._tls, 1, self._deadlines)
                    stack.push_async_callback(pools[origin].aclose)
                return pools[origin]

            yield await self._make(stack, "sqs", region, endpoint, self._common(pool_of, "v4"))

    def _settings(self) -> AioConfig:
        s3: dict[str, Any] = {"addressing_style": self._config.addressing}
        if not self._config.endpoint.startswith("http:"):
            s3["payload_signing_enabled"] = False  # TLS guards the body, and hashing it would hold up the loop
        return self._common(self._pool_of, "s3v4", s3=s3)

    def _common(self, pool_of: Callable[[Origin], Pool], signature: str, **more: Any) -> AioConfig:
        signed = self._secret is not None or bool(self._config.profile)
        return AioConfig(
            http_session_cls=session_over(Speaker(pool_of), self._tls),
            signature_version=signature if signed else UNSIGNED,
            connect_timeout=self._deadlines.connect_s,
            read_timeout=self._deadlines.stall_s,
            max_pool_connections=self._connections,
            retries={"total_max_attempts": 1, "mode": "standard"},
            **more,
            # Only AWS itself speaks the newer checksums everywhere; sealed objects carry their own.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )

    async def call(self, method: str, path: str = "", *, answer_s: float = 0.0, **parameters: Any) -> dict[str, Any]:
        """One operation of the client, its failures as our errors.

        Args:
            path: the object it is about, for messages.
            answer_s: how long the answer may take, where that is not ``stall_s``.
        """
        deadlines = self._deadlines
        size = PAGE_MAX_BYTES + len(parameters.get("Body", b""))
        # Our own connections are judged by what moves. This is for what has to go through a proxy.
        most_s = deadlines.connect_s + max(answer_s, deadlines.stall_s) + size / deadlines.rate_min
        with self.translated(path), operation(answer_s):
            client = await self._client()
            with anyio.fail_after(most_s):
                answer: dict[str, Any] = await getattr(client, method)(Bucket=self._config.bucket, **parameters)
        return answer

    @contextlib.contextmanager
    def translated(self, path: str = "", where: str = "") -> Iterator[None]:
        """What the client's libraries raise, as errors of ours.

        Args:
            path: the object it is about.
            where: what was asked, where that is not the bucket.
        """
        where, host = where or self.where, where or self.host
        try:
            yield
        except exceptions.ClientError as error:
            meta = error.response.get("ResponseMetadata", {})
            code = str(error.response.get("Error", {}).get("Code", ""))
            headers = meta.get("HTTPHeaders", {})
            raise refusal(meta.get("HTTPStatusCode", 0), code, headers, where, path) from error
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.ProfileNotFound) as error:
            raise RemoteError(
                "remote_auth",
                f"the daemon has no credentials for {where}",
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
        except (ResponseParserError, ValueError) as error:
            raise RemoteError("remote_failed", f"{where} sent an answer that cannot be read") from error
        except exceptions.BotoCoreError as error:
            raise RemoteError(
                "remote_failed", f"{where}: {type(error).__name__}", hint="check the remote's settings"
            ) from error

    # ── past the client ────────────────────────────────────────────────────────────────────────────────

    async def pool(self) -> Pool:
        """The connections for bodies.

        Raises:
            Unspoken: only the client can talk to this bucket: through a proxy, or with another kind of signature.
        """
        if self._place is None:
            client = await self._client()
            parameters = {"Bucket": self._config.bucket, "Key": "k"}
            url = await client.generate_presigned_url("get_object", Params=parameters)
            place = Place.of(url)
            if get_environ_proxies(url):
                raise Unspoken
            self._place = place
        return self._pool_of(self._place.origin)

    def _pool_of(self, origin: Origin) -> Pool:
        if origin not in self._pools:
            self._pools[origin] = Pool(origin, self._tls, self._connections, self._deadlines)
        return self._pools[origin]

    async def request(
        self, method: str, key: str, headers: Mapping[str, str], query: str = "", payload: str = EMPTY_SHA256
    ) -> bytes:
        """The head of a signed request, for :meth:`pool`'s connections. Arguments as for :meth:`Signer.sign`."""
        assert self._place is not None, "there is a pool"
        path, host = self._place.path_of(key), str(self._place.origin)
        fields = {"host": host, **headers}
        if self._place.region:
            fields = (await self._sign_with(self._place.region)).sign(method, host, path, query, headers, payload)
        target = f"{path}?{query}" if query else path
        lines = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
        return f"{method} {target} HTTP/1.1\r\n{lines}accept-encoding: identity\r\n\r\n".encode("ascii")

    async def _sign_with(self, region: str) -> Signer:
        if self._secret is not None:
            found = self._secret.access_key, self._secret.secret_key, self._secret.session_token
        else:  # of a profile they may change
            credentials = await self._session.get_credentials()
            if credentials is None:
                raise exceptions.NoCredentialsError
            frozen = await credentials.get_frozen_credentials()
            found = frozen.access_key, frozen.secret_key, frozen.token or ""
        if self._signer is None or self._signer[0] != found:
            self._signer = found, Signer(*found, region)
        return self._signer[1]

    def refused(self, answer: Answer, path: str) -> SmpError:
        """The error for an answer that came past the client.

        Raises:
            Unspoken: the client may follow where this points.
        """
        found = _CODE.search(answer.body)
        code = found[1].decode() if found else ""
        # By the second AWS says that the bucket is in another region, where a name leads to the right server already.
        if answer.status in (301, 307, 308) or code == "AuthorizationHeaderMalformed":
            raise Unspoken
        return refusal(answer.status, code, answer.headers, self.where, path)

    async def aclose(self) -> None:
        """Close both kinds of connections."""
        for pool in self._pools.values():
            await pool.aclose()
        await self._stack.aclose()
