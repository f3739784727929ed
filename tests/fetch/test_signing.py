"""Signatures and URLs of our own, against AWS's published examples and botocore."""

import datetime
import hashlib
import string
from urllib.parse import urlsplit

import botocore.auth
import botocore.config
import botocore.session
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import example, given
from hypothesis import strategies as st

from smp_proto.errors import UsageError
from smpd.fetch.bucket import Place
from smpd.fetch.exchange import Unspoken
from smpd.fetch.http import Origin
from smpd.fetch.signing import EMPTY_SHA256, UNSIGNED_PAYLOAD, Signer

ACCESS, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
PRINTABLE = st.text(string.ascii_letters + string.digits + "/+=", min_size=1, max_size=40)
KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "payload", "signature"),
    [
        (
            *("GET", "/test.txt", "", {"range": "bytes=0-9"}, EMPTY_SHA256),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            *("PUT", "/test%24file.text", ""),
            {"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
            hashlib.sha256(b"Welcome to Amazon S3.").hexdigest(),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        (
            *("GET", "/", "lifecycle=", {}, EMPTY_SHA256),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            *("GET", "/", "max-keys=2&prefix=J", {}, EMPTY_SHA256),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
)
def test_published_examples(
    method: str, path: str, query: str, headers: dict[str, str], payload: str, signature: str
) -> None:
    """The four examples of AWS's page on signing in the header."""
    now = datetime.datetime(2013, 5, 24, tzinfo=datetime.UTC).timestamp()
    signer = Signer(ACCESS, SECRET, "", "us-east-1")
    signed = signer.sign(method, "examplebucket.s3.amazonaws.com", path, query, headers, payload, now)
    assert signed["authorization"].endswith(f"Signature={signature}")


@given(
    st.sampled_from(["GET", "PUT"]),
    st.booleans(),
    PRINTABLE,
    PRINTABLE,
    st.just("") | PRINTABLE,
    KEYS,
    st.lists(st.integers(0, 4_000_000_000), min_size=1, max_size=3),
)
def test_it_signs_as_botocore(
    method: str, unsigned: bool, access: str, secret: str, token: str, key: str, times: list[int]
) -> None:
    """The same fields, byte for byte, over days that change between requests of one signer."""
    signer = Signer(access, secret, token, "eu-central-1")
    place = Place(Origin(False, "host.example", 9000), "/bucket/", "eu-central-1")
    path, query = place.path_of(key), "partNumber=7&uploadId=a%2Fb"
    headers = {"range": "bytes=0-9", "if-match": '"tag"'}
    for now in times:
        request = AWSRequest(method, f"http://host.example:9000{path}?{query}", headers=headers)
        config = botocore.config.Config(s3={"payload_signing_enabled": not unsigned})
        request.context["client_config"] = config
        with pytest.MonkeyPatch.context() as patch:
            clock = datetime.datetime.fromtimestamp(now, datetime.UTC)
            patch.setattr(botocore.auth, "get_current_datetime", lambda clock=clock: clock)
            S3SigV4Auth(ReadOnlyCredentials(access, secret, token or None), "s3", "eu-central-1").add_auth(request)
        payload = UNSIGNED_PAYLOAD if unsigned else EMPTY_SHA256
        ours = signer.sign(method, "host.example:9000", path, query, headers, payload, now)
        assert {name.lower(): value for name, value in request.headers.items()} == {
            name: value for name, value in ours.items() if name != "host"
        }


@pytest.mark.parametrize(("access", "token"), [("a\r\nX: y", ""), ("a", "t\n"), ("ä", ""), ("a b", "")])
def test_a_credential_that_breaks_a_header_is_refused(access: str, token: str) -> None:
    """No credential can add a field of its own."""
    with pytest.raises(UsageError):
        Signer(access, "s", token, "r")


def presign(bucket: str, key: str, style: str = "path", endpoint: str | None = None) -> str:
    client = _clients.get((style, endpoint))
    if client is None:
        client = _clients[style, endpoint] = botocore.session.Session().create_client(
            "s3",
            region_name="eu-central-1",
            endpoint_url=endpoint,
            aws_access_key_id="k",
            aws_secret_access_key="s",
            config=botocore.config.Config(signature_version="s3v4", s3={"addressing_style": style}),
        )
    return str(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}))


_clients: dict[tuple[str, str | None], object] = {}


@given(KEYS, st.sampled_from(["path", "virtual"]), st.sampled_from([None, "http://127.0.0.1:9000", "https://[::1]"]))
@example("a b/é+%41~.bin", "path", None)
@example("k", "virtual", None)
@example("//x//../k/", "path", None)
@example("?#&=;:@!$'()*,", "path", None)
def test_urls_are_botocores(key: str, style: str, endpoint: str | None) -> None:
    """A key's URL made from the bucket's is the one that botocore makes for it."""
    place = Place.of(presign("scans-1", "k", style, endpoint))
    url = urlsplit(presign("scans-1", key, style, endpoint))
    assert (f"{url.scheme}://{url.netloc}", url.path, place.region) == (
        f"{'https' if place.origin.secure else 'http'}://{place.origin}",
        place.path_of(key),
        "eu-central-1",
    )


def test_other_signatures_are_left_to_the_client() -> None:
    """Directory buckets and multi-region access points are signed in ways of their own."""
    for algorithm, scope in (
        ("AWS4-HMAC-SHA256", "k/20260101/us-east-1/s3express/aws4_request"),
        ("AWS4-ECDSA-P256-SHA256", "k/20260101/s3/aws4_request"),
        ("AWS4-HMAC-SHA256", ""),
    ):
        with pytest.raises(Unspoken):
            Place.of(f"https://h/k?X-Amz-Algorithm={algorithm}&X-Amz-Credential={scope}")
    assert Place.of("https://h:443/b/k") == Place(Origin(True, "h", 443), "/b/", "")
    assert str(Origin(True, "h", 443)) == "h"
    assert str(Origin(False, "::1", 443)) == "[::1]:443"
