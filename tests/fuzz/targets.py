"""The parsers, each as a function from bytes with the errors that it may raise.

Nothing of ours is imported here before a target is made: whoever runs one under atheris has to hook the imports first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fuzz import local, protocol, remote, sealed

CORPUS = Path(__file__).parent / "corpus"
Parse = Callable[[bytes], None]


class Found(Exception):
    """A parser did what it must not."""


@dataclass(frozen=True)
class Target:
    """One parser.

    Args:
        make: imports it and returns a function that feeds it.
        allowed: what it may raise: the name of an exception, and the codes of one that is an SmpError.
    """

    name: str
    make: Callable[[], Parse]
    allowed: Mapping[str, str]

    def checked(self) -> Parse:
        """The function, which raises :class:`Found` for all that is not allowed."""
        parse = self.make()
        allowed = {kind: frozenset(codes.split()) for kind, codes in self.allowed.items()}

        def run(data: bytes) -> None:
            try:
                parse(data)
            except Found:
                raise
            except BaseException as error:
                kinds = [each.__name__ for each in type(error).__mro__ if each.__name__ in allowed]
                code = getattr(error, "code", "")
                if not kinds or (allowed[kinds[0]] and code not in allowed[kinds[0]]):
                    raise Found(f"{self.name}: {type(error).__name__} {code}: {error}"[:500]) from error

        return run

    def seeds(self) -> list[bytes]:
        """What is kept in the tree; never none."""
        return [path.read_bytes() for path in sorted((CORPUS / self.name).iterdir())]


_PROTOCOL = {"DaemonError": "protocol"}
_OBJECT = {"IntegrityError": "corrupt unsupported truncated not_sealed"}
_KEY = {"KeyFileError": "key_invalid"}
_NOTE = {"AuditError": "audit_broken"}

TARGETS = [
    # The first ones have planted faults.
    Target("frame", protocol.frame, _PROTOCOL),
    Target("request", protocol.request, _PROTOCOL),
    Target("head", remote.head, {}),
    Target("sftp-fields", remote.sftp_fields, {"SFTPBadMessage": ""}),
    Target("config", local.config, {"UsageError": "bad_config"}),
    Target("reply", protocol.reply, _PROTOCOL),
    Target("fetch-link", protocol.fetch_link, _PROTOCOL),
    Target("compute-link", protocol.compute_link, _PROTOCOL),
    Target("opening-link", protocol.opening_link, _PROTOCOL),
    Target("trailer", sealed.trailer, _OBJECT),
    Target("envelope", sealed.envelope, _OBJECT),
    Target(
        "opened-envelope", sealed.opened_envelope, {"IntegrityError": "corrupt unsupported truncated wrong_recipient"}
    ),
    Target("index", sealed.index, {"ValueError": ""}),
    Target("payload", sealed.payload, _OBJECT),
    Target("key-file", sealed.key_file, {"KeyFileError": "key_invalid key_locked"}),
    Target("public-key", sealed.public_key, _KEY),
    Target("checkpoint", sealed.checkpoint, _NOTE),
    Target("verifier-key", sealed.verifier_key, _KEY),
    Target("audit-line", sealed.audit_line, {"ValueError": "", "MsgspecError": ""}),
    Target("refusal", remote.refusal, {}),
    Target("listing", remote.listing, {"ValueError": ""}),
    Target("listing-time", remote.listing_time, {"ValueError": ""}),
    Target("notification", remote.notification, {}),
    Target("pin", remote.pin, {"UsageError": "bad_request"}),
    Target("sftp-stream", remote.sftp_stream, {"SFTPBadMessage": ""}),
    Target("known-hosts", local.known_hosts, {}),
    Target("remote-url", local.remote_url, {"UsageError": "bad_request", "RemoteError": "remote_untrusted"}),
    Target("webhook", local.webhook, {"UsageError": "bad_config"}),
    Target("location", local.location, {"UsageError": "bad_name"}),
    Target("secret", local.secret, {"UsageError": "bad_request"}),
    Target("private-key", local.private_key, _KEY),
    Target("record", local.record, {}),
]
BY_NAME = {target.name: target for target in TARGETS}
