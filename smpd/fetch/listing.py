"""The pages of a bucket's listing (ListObjectsV2), read past the client: its own reader takes eight times as long.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
"""

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_plus
from xml.etree import ElementTree

from smp_proto.control import SIZE_MAX, ObjectInfo
from smp_proto.errors import RemoteError
from smpd.fetch.bucket import Bucket, timestamp
from smpd.fetch.exchange import Unspoken
from smpd.fetch.pins import etag_pin
from smpd.fetch.speaking import PAGE_MAX_BYTES, declares_entities


class Listed(NamedTuple):
    """An object as a page tells of it; ``modified`` in seconds since the epoch, 0 where it is not said."""

    key: str
    size: int
    etag: str
    modified: float


class Page(NamedTuple):
    """One page; ``token`` is what to ask the next one with, where there is one."""

    objects: list[Listed]
    folders: list[str]
    truncated: bool
    token: str


def parse_page(body: bytes) -> Page | None:
    """Read the body of an answer; None for a refusal, which S3 may send with status 200.

    Raises:
        ValueError: it is neither.
    """
    if declares_entities(body):
        raise ValueError("a page declares entities")
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - without entities nothing grows
    except (ElementTree.ParseError, LookupError) as error:  # LookupError: of an encoding that nobody knows
        raise ValueError("no XML") from error
    if (kind := _local(root.tag)) != "ListBucketResult":
        if kind == "Error":
            return None
        raise ValueError("another document")
    said, folders, found = dict[str, str](), list[str](), list[dict[str, str]]()
    for child in root:
        name = _local(child.tag)
        if name == "Contents":
            found.append(_texts(child))
            if not found[-1].get("Key"):
                raise ValueError("an object without a name")
        elif name == "CommonPrefixes":
            folders += [each.text or "" for each in child if _local(each.tag) == "Prefix"]
        else:
            said[name] = child.text or ""
    if said.get("EncodingType") == "url":
        folders = [unquote_plus(folder) for folder in folders]
        for fields in found:
            fields["Key"] = unquote_plus(fields["Key"])
    truncated = said.get("IsTruncated", "").strip() == "true"
    return Page([_listed(fields) for fields in found], folders, truncated, said.get("NextContinuationToken", ""))


def _local(tag: str) -> str:
    """A tag's name without its namespace, which servers leave out or have their own."""
    return tag.rpartition("}")[2]


def _texts(element: ElementTree.Element) -> dict[str, str]:
    return {_local(each.tag): each.text or "" for each in element}


def _listed(fields: dict[str, str]) -> Listed:
    modified = fields.get("LastModified", "")
    seconds = timestamp(modified).timestamp() if modified else 0.0
    return Listed(fields["Key"], int(fields.get("Size", "")), fields.get("ETag", ""), seconds)


def object_info(where: str, path: str, size: int, etag: str, modified: float) -> ObjectInfo:
    """What is known of an object of a bucket.

    Args:
        where: the bucket, for messages.

    Raises:
        RemoteError: ``remote_failed``, the server says what cannot be.
    """
    if not 0 <= size <= SIZE_MAX:
        raise RemoteError("remote_failed", f"{where} says that an object has {size} bytes")
    return ObjectInfo(path, size, etag_pin(size, etag), modified)


class Lister:
    """Lists a bucket.

    Args:
        root: what all names begin with; paths are what follows.
    """

    def __init__(self, bucket: Bucket, root: str) -> None:
        self._bucket = bucket
        self._root = root
        self._by_client = False

    async def walk(self, prefix: str, recursive: bool, after: str = "") -> AsyncGenerator[ObjectInfo, None]:
        """See :class:`smpd.fetch.remote.Remote`."""
        asked: dict[str, Any] = {"Prefix": self._root + prefix}
        if not recursive:
            asked["Delimiter"] = "/"
        if after:
            asked["StartAfter"] = self._root + after
        marked, pages = "", 0
        while True:
            page = await self._bucket.steps.do(partial(self._page, asked))
            for info in self._infos(page, prefix):
                yield info
            if not page.truncated:
                return
            token, pages = page.token, pages + 1
            if not token or token == marked:  # what is behind it would go unseen, or the same come for ever
                raise RemoteError(
                    "remote_failed", f"{self._bucket.where} does not come to the end of a listing", retryable=False
                )
            if not pages & (pages - 1):  # a token of which page 1, 2, 4, 8 ...: any circle meets one of them
                marked = token
            asked["ContinuationToken"] = token

    async def _page(self, asked: dict[str, Any]) -> Page:
        """One page; ``asked`` by the names that the client has for it."""
        if not self._by_client:
            try:
                with self._bucket.translated():
                    return await self._page_directly(asked)
            except Unspoken:
                self._by_client = True  # from now on, as the next answer will be no different
        page = await self._bucket.call("list_objects_v2", **asked)
        try:
            return _page_of(page)
        except (KeyError, TypeError, AttributeError) as error:
            raise RemoteError("remote_failed", f"{self._bucket.where} sent a listing that is none") from error

    async def _page_directly(self, asked: dict[str, Any]) -> Page:
        pool = await self._bucket.pool()
        fields = {"list-type": "2", "encoding-type": "url"} | {_NAMES[name]: value for name, value in asked.items()}
        query = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(fields.items()))
        answer = await pool.ask("GET", partial(self._bucket.request, "GET", "", {}, query), keep_bytes=PAGE_MAX_BYTES)
        page = parse_page(answer.body) if answer.status == 200 else None
        if page is None:
            status = 500 if answer.status == 200 else answer.status  # as the client has it, too
            raise self._bucket.refused(answer._replace(status=status), "")
        return page

    def _infos(self, page: Page, prefix: str) -> list[ObjectInfo]:
        found = [ObjectInfo(folder, 0) for folder in page.folders]
        where = self._bucket.where
        for key, size, etag, modified in page.objects:
            if not key.endswith("/"):  # a folder's marker
                found.append(object_info(where, key, size, etag, modified))
        for info in found:
            if not info.path.startswith(self._root + prefix):
                raise RemoteError("remote_failed", f"{where} listed an object that was not asked for")
            info.path = info.path.removeprefix(self._root)
        return sorted(found, key=lambda info: info.path.encode())


_NAMES = {
    "Prefix": "prefix",
    "Delimiter": "delimiter",
    "StartAfter": "start-after",
    "ContinuationToken": "continuation-token",
}


def _page_of(page: dict[str, Any]) -> Page:
    """What the client made of a page."""
    objects = [
        Listed(
            each["Key"],
            each["Size"],
            each.get("ETag", ""),
            each["LastModified"].timestamp() if each.get("LastModified") else 0.0,
        )
        for each in page.get("Contents", ())
    ]
    folders = [each["Prefix"] for each in page.get("CommonPrefixes", ())]
    return Page(objects, folders, bool(page.get("IsTruncated")), page.get("NextContinuationToken") or "")
