"""Pages of a bucket's listing: read as botocore reads them, asked for as it asks for them."""

import contextlib
import itertools
from urllib.parse import parse_qsl, quote, urlsplit
from xml.sax.saxutils import escape

import pytest
from botocore.parsers import RestXMLParser
from botocore.session import Session
from fetch_link import fetch_in_process
from hypothesis import given
from hypothesis import strategies as st
from scripted_http import Asked, Peer, Script, refusal, scripted

from smp_proto.control import S3Config, S3Secret
from smp_proto.errors import SmpError
from smpd.fetch import listing
from smpd.fetch.bucket import timestamp
from smpd.fetch.exchange import Unspoken
from smpd.fetch.listing import Lister, Page, parse_page

SECRET = S3Secret("key", "secret")
OPERATION = Session().get_service_model("s3").operation_model("ListObjectsV2")
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
TIMES = st.sampled_from(["", "2026-11-26T15:00:00.000Z", "2026-11-26T15:00:00Z", "Thu, 26 Nov 2026 15:00:00 GMT"])
OBJECTS = st.lists(
    st.tuples(TEXT, st.integers(0, 1 << 43), st.sampled_from(["", '"e"', "e", 'W/"e"']), TIMES), max_size=5
)


def written(
    objects: list[tuple[str, int, str, str]], folders: list[str], token: str, *, coded: bool, space: str
) -> bytes:
    """A page as a server writes it."""

    def name(text: str) -> str:
        return escape(quote(text, safe="/") if coded else text)

    rows = "".join(
        f"<Contents><Key>{name(key)}</Key><Size>{size}</Size>"
        + (f"<ETag>{escape(etag)}</ETag>" if etag else "")
        + (f"<LastModified>{modified}</LastModified>" if modified else "")
        + "<Owner><ID>1</ID></Owner></Contents>"
        for key, size, etag, modified in objects
    )
    rows += "".join(f"<CommonPrefixes><Prefix>{name(folder)}</Prefix></CommonPrefixes>" for folder in folders)
    more = f"<NextContinuationToken>{escape(token)}</NextContinuationToken>" if token else ""
    coding = "<EncodingType>url</EncodingType>" if coded else ""
    whole = f"<IsTruncated>{'true' if token else 'false'}</IsTruncated>{more}{coding}{rows}"
    return f'<?xml version="1.0"?>\n<ListBucketResult{space}>{whole}</ListBucketResult>'.encode()


def by_botocore(body: bytes) -> Page:
    """The page as the client has it, which undoes the coding of names in a step of its own."""
    answer = {"headers": {}, "status_code": 200, "body": body}
    page = RestXMLParser(timestamp_parser=timestamp).parse(answer, OPERATION.output_shape)
    if page.get("EncodingType") == "url":
        for each, key in [(each, "Key") for each in page.get("Contents", [])] + [
            (each, "Prefix") for each in page.get("CommonPrefixes", [])
        ]:
            each[key] = listing.unquote_plus(each[key])
    return listing._page_of(page)


@given(
    OBJECTS,
    st.lists(TEXT, max_size=3),
    st.one_of(st.just(""), TEXT),
    st.booleans(),
    st.sampled_from(["", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"', ' xmlns="urn:other"']),
)
def test_a_page_is_read_as_botocore_reads_it(objects, folders, token, coded, space):
    """With and without namespace and coding of names, whatever is in them."""
    body = written(objects, folders, token, coded=coded, space=space)
    assert parse_page(body) == by_botocore(body)


@given(
    st.one_of(st.binary(max_size=200), TEXT.map(lambda text: f"<ListBucketResult>{text}</ListBucketResult>".encode()))
)
def test_anything_else_is_a_value_error(body):
    """Nothing but the documented error, whatever comes."""
    with contextlib.suppress(ValueError):
        parse_page(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>Welcome</body></html>",
        b'<?xml version="1.0" encoding="klingon"?><ListBucketResult/>',
        b"<ListBucketResult><Contents><Size>1</Size></Contents></ListBucketResult>",
        b"<ListBucketResult><EncodingType>url</EncodingType><Contents><Size>1</Size></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key/><Size>1</Size></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key><Size>1</Size><LastModified>soon</LastModified></Contents></ListBucketResult>",
    ],
)
def test_no_page(body):
    """Other documents, and objects that lack what each has."""
    with pytest.raises(ValueError, match=r".+"):
        parse_page(body)


@pytest.mark.parametrize("coding", ["utf-8", "utf-16", "utf-16-le"])
def test_entities_do_not_grow_without_end(coding: str) -> None:
    """A thousand million of a page of a kilobyte; no page that declares any is read, however it is written."""
    names = [f"e{depth}" for depth in range(10)]
    lines = [f'<!ENTITY {names[0]} "{"x" * 100}">']
    lines += [f'<!ENTITY {name} "{f"&{below};" * 10}">' for below, name in itertools.pairwise(names)]
    body = f"<!DOCTYPE r [{''.join(lines)}]><ListBucketResult><Name>&{names[-1]};</Name></ListBucketResult>"
    with pytest.raises(ValueError, match="declares entities"):
        parse_page(body.encode(coding))


def noting(asked: list[str], *bodies: bytes) -> Script:
    """Answers with these pages, and takes down what was asked."""
    left = list(bodies)

    async def script(peer: Peer, each: Asked) -> bool:
        asked.append(each.head)
        body = left.pop(0)
        await peer.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        return True

    return script


@pytest.mark.parametrize("prefix", ["", "a b/ä+%&=?#~*'(/"])
@pytest.mark.parametrize("recursive", [True, False])
async def test_it_is_asked_for_as_botocore_asks(prefix, recursive, monkeypatch):
    """The same resource, the same parameters with the same coding, one page after the other, from where it was left."""
    heads: dict[bool, list[str]] = {False: [], True: []}
    inside = f"in/{prefix}"
    pages = [
        written([(f"{inside}{n}", 1, "e", "")], [], "t/+ =" if n == 1 else "", coded=True, space="") for n in (1, 2)
    ]
    for by_client, asked in heads.items():
        with monkeypatch.context() as patch:
            if by_client:
                patch.setattr(Lister, "_page_directly", _unspoken)
            async with scripted({"b": noting(asked, *pages)}) as endpoint:
                config = S3Config("b", prefix="in", endpoint=endpoint, addressing="path", region="eu-west-3")
                async with fetch_in_process(config, SECRET) as link:
                    assert [info.path for info in await link.list(prefix, recursive)] == [f"{prefix}1", f"{prefix}2"]
    ours, theirs = ([urlsplit(head.split(" ")[1]) for head in asked] for asked in heads.values())
    assert [url.path for url in ours] == [url.path for url in theirs] == ["/b", "/b"]
    assert [sorted(url.query.split("&")) for url in ours] == [sorted(url.query.split("&")) for url in theirs]
    assert dict(parse_qsl(ours[1].query))["continuation-token"] == "t/+ ="
    assert all("/eu-west-3/s3/aws4_request" in head for asked in heads.values() for head in asked)


async def _unspoken(*_arguments: object) -> Page:
    raise Unspoken


async def test_an_error_of_status_200_is_one():
    """S3 may send it so: the page is asked for again."""
    asked: list[str] = []
    page = written([("a", 1, "e", "")], [], "", coded=False, space="")
    async with scripted({"b": noting(asked, b"<Error><Code>InternalError</Code></Error>", page)}) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path")
        async with fetch_in_process(config, SECRET) as link:
            assert [info.path for info in await link.list()] == ["a"]
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (refusal("403 Forbidden", "AccessDenied"), "remote_forbidden"),
        (refusal("403 Forbidden", "InvalidAccessKeyId"), "remote_auth"),
        (refusal("404 Not Found", "NoSuchBucket"), "no_such_bucket"),
        (refusal("400 Bad Request", "InvalidArgument"), "remote_failed"),
    ],
)
async def test_refusals(script, code):
    """They are told as of any other request."""
    async with scripted({"b": script}) as endpoint:
        async with fetch_in_process(S3Config("b", endpoint=endpoint, addressing="path"), SECRET) as link:
            with pytest.raises(SmpError) as caught:
                await link.list()
            assert caught.value.code == code


async def test_a_bucket_of_another_region_is_listed():
    """AWS points there with 301, or says 400 and names the region: the client finds it."""
    page = written([("a", 1, "e", "")], [], "", coded=False, space="")
    for status in ("301 Moved Permanently", "400 Bad Request"):
        body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-3</Region></Error>"

        async def script(peer: Peer, each: Asked, status: str = status, body: bytes = body) -> bool:
            there = "/eu-west-3/s3/" in each.head
            head = "HTTP/1.1 200 OK" if there else f"HTTP/1.1 {status}\r\nx-amz-bucket-region: eu-west-3"
            sent = page if there else body
            await peer.send(f"{head}\r\nContent-Length: {len(sent)}\r\n\r\n".encode() + sent)
            return True

        async with scripted({"b": script}) as endpoint:
            config = S3Config("b", endpoint=endpoint, addressing="path", region="us-east-1")
            async with fetch_in_process(config, SECRET) as link:
                assert [info.path for info in await link.list()] == ["a"]
