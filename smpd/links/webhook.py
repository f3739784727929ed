"""What a webhook is configured with: an address, and a header line with a secret. Both ends of a link read them so."""

import ipaddress
import re
from typing import NamedTuple

from smp_proto.errors import UsageError

HEADER_MAX_BYTES = 8192
_URL_MAX = 2048
# A part of RFC 3986 §3: no user, no fragment, and nothing that would have to be encoded before it is sent.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9][A-Za-z0-9.-]{0,252})"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/[\w.~!$&'()*+,;=:@%/-]*)?(?P<query>\?[\w.~!$&'()*+,;=:@%/?-]*)?",
    re.ASCII,
)
# RFC 9110 §5.1 and §5.5; of values only visible ASCII and spaces.
_HEADER = re.compile(r"(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(?P<value>[!-~](?:[ -~]*[!-~])?)", re.ASCII)
_OURS = frozenset(
    (
        *("host", "content-type", "content-length", "transfer-encoding", "connection", "accept-encoding"),
        *("expect", "upgrade", "te", "trailer"),
    )
)


class Address(NamedTuple):
    """Where to: ``host`` without the brackets of IPv6, and ``target``, path and query as they are sent."""

    secure: bool
    host: str
    port: int
    target: str

    @property
    def loopback(self) -> bool:
        """Whether what is sent there does not leave the machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"


def parse_url(url: str) -> Address:
    """The address of a webhook. What is wrong is said without the URL, whose path may be a secret.

    Raises:
        UsageError: ``bad_config``.
    """
    found = _URL.fullmatch(url) if len(url) <= _URL_MAX else None
    if found is None:
        hint = "write https://HOST/PATH, percent-encoded and without a user; a token goes into notify.header_file"
        raise UsageError("bad_config", "notify.url is not an http or https URL", hint=hint)
    secure, host = found["scheme"] == "https", found["host"].strip("[]")
    port = int(found["port"] or (443 if secure else 80))
    if not 0 < port < 1 << 16:
        raise UsageError("bad_config", f"notify.url has the port {port}", hint="a port is 1 to 65535")
    if found["host"].startswith("["):
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise UsageError("bad_config", f"notify.url has the host [{host}]", hint="mend the IPv6 address") from None
    return Address(secure, host, port, (found["path"] or "/") + (found["query"] or ""))


def check_url(url: str, *, plain_http: bool) -> None:
    """Refuse the URL of a configuration that cannot be used, or that would send in clear what should not be.

    Raises:
        UsageError: ``bad_config``.
    """
    address = parse_url(url)
    if not (address.secure or address.loopback or plain_http):
        hint = "write https://, or set notify.plain_http = true if that network is yours alone"
        raise UsageError("bad_config", "notify.url would send over http, which anybody on the way can read", hint=hint)


def parse_header(line: bytes | bytearray) -> str:
    """A header line as it is sent: ``Name: value``, one line. What is wrong is said without the line.

    Raises:
        UsageError: ``bad_config``.
    """
    found = None
    if len(line) <= HEADER_MAX_BYTES:
        found = _HEADER.fullmatch(line.decode("latin-1").strip(" \t\r\n"))
    if found is None:
        hint = "write one line such as: Authorization: Bearer TOKEN"
        raise UsageError("bad_config", "notify.header_file does not hold one header line in ASCII", hint=hint)
    if found["name"].lower() in _OURS:
        hint = f"another field than {', '.join(sorted(_OURS))}"
        raise UsageError("bad_config", f"notify.header_file sets {found['name']}, which is ours to set", hint=hint)
    return f"{found['name']}: {found['value']}"
