"""Telling somebody by a webhook: a fetch process for the length of one message, since smpd has no network."""

from typing import NamedTuple

import anyio

from smp_proto.errors import ResourceError, SmpError, UsageError
from smpd.host.credentials import read_secret
from smpd.links import fetching
from smpd.links.webhook import parse_header, parse_url
from smpd.transfer.workers import start_worker

_CA_MAX_BYTES = 1 << 20
_HINT = "see that server, notify.url and notify.ca_file, then: smpctl notify test"


class Webhook(NamedTuple):
    """Where a message goes, and how it is held.

    Attributes:
        header_file: has the secret header line; read for each message, so that it can be changed while smpd runs.
        ca_file: has the certificates that are trusted beside the system's.
        timeout_s: for all of it, the start of the process included.
    """

    url: str
    header_file: str
    ca_file: str
    timeout_s: float
    sandbox: str
    deadlines: fetching.Deadlines

    @property
    def name(self) -> str:
        """The server, for messages. Not the URL: its path may be a secret."""
        return f"the webhook at {parse_url(self.url).host}"

    async def run(self, message: bytes) -> None:
        """Send a message, and wait until the server took it.

        Raises:
            ResourceError: ``notify_failed``.
        """
        try:
            with anyio.fail_after(self.timeout_s):
                await self._post(message)
        except TimeoutError:
            raise self._failed(f"did not take it within {self.timeout_s:g} s") from None
        except SmpError as error:
            raise self._failed(f"did not take it: {error.message}", error) from error

    async def _post(self, message: bytes) -> None:
        setup = await anyio.to_thread.run_sync(self._setup)
        async with start_worker("fetch", self.name) as worker:
            await worker.caller.call(setup, fetching.Walls, secret=True)
            del setup
            await worker.caller.call(fetching.Post(message), type(None))

    def _setup(self) -> fetching.SetupWebhook:
        header, ca_pem = "", ""
        if self.header_file:
            line = read_secret(self.header_file)
            try:
                header = parse_header(line)
            finally:
                line[:] = bytes(len(line))
        if self.ca_file:
            try:
                with open(self.ca_file, encoding="ascii", errors="replace") as file:
                    ca_pem = file.read(_CA_MAX_BYTES)
            except OSError as error:
                raise UsageError("bad_config", f"notify.ca_file cannot be read: {error.strerror}") from error
        return fetching.SetupWebhook(self.url, header, ca_pem, self.sandbox, self.deadlines)

    def _failed(self, how: str, cause: SmpError | None = None) -> ResourceError:
        hint = cause.hint if isinstance(cause, UsageError) and cause.hint else _HINT
        return ResourceError("notify_failed", f"{self.name} {how}", hint=hint)
