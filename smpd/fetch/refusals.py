"""What an S3 server's refusal means to us."""

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from smp_proto.errors import RemoteError, SmpError
from smpd.fetch.remote import ANEW, changed, missing, missing_root

RETRY_AFTER_MAX_S = 3600.0

_AUTH = {
    "AuthFailure", "AuthorizationHeaderMalformed", "ExpiredToken", "InvalidAccessKeyId", "InvalidSecurity",
    "InvalidToken", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired",
}  # fmt: skip
_BUSY = {"BandwidthLimitExceeded", "RequestLimitExceeded", "ServiceUnavailable", "SlowDown", "TooManyRequests"}


def refusal(status: int, code: str, headers: Mapping[str, str], where: str, path: str) -> SmpError:
    """The error for an answer that is no success.

    Args:
        code: the server's own, empty where the answer had none (then ``details`` has ``bare``).
        where: the bucket and host, for the message.
        path: the object asked for, or empty.
    """
    what = f"{path} in {where}" if path else where
    if status in (412, 416) or code in ("PreconditionFailed", "InvalidRange"):
        return changed(path)
    if code == "NoSuchUpload":  # a rule of the bucket aborted it, or who cleared up; it says nothing of the object
        error: SmpError = RemoteError("remote_failed", f"{where} let go of an upload of {path} before it was whole")
    elif status == 404 or code in ("NoSuchBucket", "NoSuchKey"):
        error = missing(path, where) if path and code != "NoSuchBucket" else missing_root(where)
    elif status in (429, 503) or code in _BUSY or code.startswith("Throttl"):
        error = RemoteError("remote_busy", f"{where} asked us to slow down")
        error.details["retry_after"] = retry_after(headers.get("retry-after", ""))
    elif status in (401, 403) or code in _AUTH:
        error = _denied(status, code, where, what)
    else:
        error = RemoteError(
            "remote_failed",
            f"{what}: the server answered {status}{' ' + code[:64] if code and not code.isdigit() else ''}",
            hint="check the endpoint, the region and the addressing style of the remote" if status < 500 else "",
            retryable=status >= 500 or status in (408, 409) or code == "RequestTimeout",
        )
    error.details["status"] = status
    if not code or code.isdigit():
        error.details["bare"] = True
    return error


def _denied(status: int, code: str, where: str, what: str) -> RemoteError:
    if code == "RequestTimeTooSkewed":
        return RemoteError(
            "remote_auth",
            f"{where} refused the credentials because this machine's clock differs from its own",
            hint="set this machine's clock",
        )
    if status == 401 or code in _AUTH:
        hint = f"check the key, then: {ANEW}"
        return RemoteError("remote_auth", f"{where} refused the credentials", hint=hint)
    hint = "give the key leave to do this, or use another key"
    return RemoteError("remote_forbidden", f"the credentials do not allow this on {what}", hint=hint)


def retry_after(value: str) -> float:
    """Seconds to wait, from a Retry-After field (RFC 9110 §10.2.3); 0 where it says nothing usable."""
    try:
        seconds = float(int(value)) if value.isascii() and value.isdigit() else _until(value)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S)


def _until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time.time()
