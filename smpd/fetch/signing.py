"""AWS Signature Version 4 in the Authorization field, for the requests that go past the client.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html; the client's own signer takes a
tenth of what a small object costs in all.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Mapping

from smp_proto.errors import UsageError

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"


class Signer:
    """Signs with one credential for one region.

    Raises:
        UsageError: ``bad_config``, the credential cannot stand in a header.
    """

    def __init__(self, access_key: str, secret_key: str, token: str, region: str, service: str = "s3") -> None:
        if not re.fullmatch(r"[!-~]*", access_key + token):
            raise UsageError("bad_config", "the access key or the token holds a character that no header may")
        self._access_key = access_key
        self._secret_key = secret_key
        self._token = token
        self._scope = f"{region}/{service}/aws4_request"
        self._day = ""
        self._key = b""

    def sign(
        self,
        method: str,
        host: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        payload: str,
        now: float | None = None,
    ) -> dict[str, str]:
        """All fields to send: ``headers``, Host, and the signature over them.

        Args:
            path: percent-encoded.
            query: ``name=value`` joined by ``&``, percent-encoded and sorted by name.
            headers: by lower-case name; values without white space at the ends or doubled.
            payload: the body's SHA-256 in hexadecimal, or UNSIGNED_PAYLOAD.
            now: seconds since the epoch; the clock's when None.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        fields = {**headers, "host": host, "x-amz-content-sha256": payload, "x-amz-date": stamp}
        if self._token:
            fields["x-amz-security-token"] = self._token
        names = sorted(fields)
        signed = ";".join(names)
        lines = "".join([f"{name}:{fields[name]}\n" for name in names])
        request = f"{method}\n{path}\n{query}\n{lines}\n{signed}\n{payload}"
        scope = f"{stamp[:8]}/{self._scope}"
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
        signature = hmac.digest(self._key_of(stamp[:8]), text.encode(), "sha256").hex()
        fields["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self._access_key}/{scope}, SignedHeaders={signed}, Signature={signature}"
        )
        return fields

    def _key_of(self, day: str) -> bytes:
        """The signing key, which holds for a day."""
        if day != self._day:
            key = f"AWS4{self._secret_key}".encode()
            for part in (day, *self._scope.split("/")):
                key = hmac.digest(key, part.encode(), "sha256")
            self._day, self._key = day, key
        return self._key
