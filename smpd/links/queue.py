"""Where a queue that tells of new objects may be: what is asked of it is signed with the remote's key."""

import re
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from smp_proto.errors import UsageError

_REGION = r"[a-z]+(?:-[a-z]+)+-[0-9]+"
# SQS's own names (AWS General Reference, "Amazon SQS endpoints"). Customers have hosts below these domains, too.
_AWS = re.compile(
    rf"sqs(?:-fips)?\.(?P<sqs>{_REGION})\.(?:amazonaws\.(?:com|com\.cn|eu)|api\.aws)"
    rf"|(?:(?P<legacy>{_REGION})\.)?queue\.amazonaws\.com(?:\.cn)?"
    rf"|vpce-[0-9a-z-]+\.sqs\.(?P<private>{_REGION})\.vpce\.amazonaws\.com(?:\.cn)?"
)
_PORTS = {"http": 80, "https": 443}


class Place(NamedTuple):
    """Where a queue is."""

    endpoint: str
    region: str

    @classmethod
    def of(cls, url: str, bucket: str, region: str) -> "Place":
        """Take the URL of a queue apart. It is SQS's at AWS, by https, or at the very server that has the bucket.

        Args:
            bucket: the bucket's endpoint, empty for AWS.
            region: the bucket's.

        Raises:
            UsageError: ``bad_config``.
        """
        home = f"the remote's own endpoint, {bucket}" if bucket else "the remote's own endpoint, which is AWS"
        refused = UsageError(
            "bad_config",
            f"the URL of the queue is not one that this remote may use: neither SQS at AWS by https, nor at {home}",
            hint="it looks like https://sqs.eu-central-1.amazonaws.com/123456789012/NAME",
        )
        try:
            found = urlsplit(url)
            server = _server(found)
            at_home = bool(bucket) and server == _server(urlsplit(bucket))
        except ValueError:
            raise refused from None
        aws = _AWS.fullmatch(found.hostname or "") if (server[0], server[2]) == ("https", 443) else None
        if not (aws or at_home) or found.query or found.fragment or "@" in found.netloc or len(found.path) < 2:
            raise refused
        named = next(filter(None, aws.groups()), "") if aws else ""
        return cls(f"{found.scheme}://{found.netloc}", named or region)


def _server(url: SplitResult) -> tuple[str, str, int | None]:
    """Scheme, host and port: another port of a host may be another person's.

    Raises:
        ValueError: the port is none.
    """
    return url.scheme, url.hostname or "", url.port or _PORTS.get(url.scheme)
