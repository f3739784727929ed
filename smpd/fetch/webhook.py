"""The webhook of a fetch process: one request, one bounded answer, no redirects."""

from smp_proto.errors import RemoteError
from smpd.fetch.http import Origin, Pool, trusting
from smpd.links.fetching import SetupWebhook
from smpd.links.webhook import parse_header, parse_url


class Webhook:
    """Takes what is to be told to one address.

    Raises:
        UsageError: ``bad_config``, the URL, the header or the certificates cannot be used.
    """

    def __init__(self, setup: SetupWebhook) -> None:
        secure, host, port, self._target = parse_url(setup.url)
        self._more = f"{parse_header(setup.header.encode())}\r\n" if setup.header else ""
        self._answer_s = setup.deadlines.answer_s
        tls = trusting(setup.ca_pem, secure=secure)
        self._pool = Pool(Origin(secure, host, port), tls, 1, setup.deadlines)

    async def post(self, body: bytes) -> None:
        """Send JSON; return once the server took it, with a status of 2xx.

        The body of an answer is not passed on: a server may repeat in it what it was sent, the secret as well.

        Raises:
            RemoteError: ``remote_unreachable``, ``remote_untrusted``; ``remote_failed`` for any other answer.
        """
        host = str(self._pool.origin)
        head = (
            f"POST {self._target} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\naccept-encoding: identity\r\nconnection: close\r\n{self._more}\r\n"
        )
        answer = await self._pool.ask("POST", head.encode("ascii"), body, answer_s=self._answer_s)
        if 300 <= answer.status < 400:
            text = f"{host} answered with status {answer.status}: redirects are not followed"
            raise RemoteError("remote_failed", text, details={"status": answer.status})
        if not 200 <= answer.status < 300:
            text = f"{host} answered with status {answer.status}"
            raise RemoteError("remote_failed", text, details={"status": answer.status})

    async def aclose(self) -> None:
        """Close what is open."""
        await self._pool.aclose()
