"""The errors of SMP: one family per exit code, one code per situation.

An error that crosses a socket travels as an :class:`ErrorBody` and is raised again on the other side as
the same family. ``CODES`` is the whole list; ``docs/reference/errors.md`` is tested against it.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import msgspec

MESSAGE_MAX = 8192  # characters
DETAILS_MAX = 65_536


class ErrorBody(msgspec.Struct, omit_defaults=True):
    """An error as it travels (END frame) and as it is kept with a job."""

    code: str
    message: str
    hint: str = ""
    retryable: bool = False
    details: dict[str, Any] = {}


class SmpError(Exception):
    """Base of all errors meant for a person.

    Args:
        code: a key of :data:`CODES`.
        message: what happened and to what, lower case, no full stop.
        hint: what to do next.
        retryable: whether the same act may succeed later; the code's own answer when None.
        details: structured facts for ``--json``; never a secret, never patient data.
    """

    exit_code: ClassVar[int] = 70

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str = "",
        retryable: bool | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.retryable = CODES[code].retryable if retryable is None and code in CODES else bool(retryable)
        self.details = details or {}

    def body(self) -> ErrorBody:
        """The form that travels: what quotes somebody's megabyte is cut to what fits every frame and record."""
        details = self.details if len(repr(self.details)) <= DETAILS_MAX else {}
        return ErrorBody(self.code, self.message[:MESSAGE_MAX], self.hint[:MESSAGE_MAX], self.retryable, details)

    @staticmethod
    def from_body(body: ErrorBody) -> "SmpError":
        """The exception for an error that arrived; an unknown code (a newer peer) becomes the base class."""
        family = CODES[body.code].family if body.code in CODES else SmpError
        return family(body.code, body.message, hint=body.hint, retryable=body.retryable, details=body.details)


class UsageError(SmpError):
    """The request itself is wrong; nothing was done."""

    exit_code = 2


class DaemonError(SmpError):
    """The daemon could not be reached or speaks another protocol."""

    exit_code = 3


class DeniedError(SmpError):
    """The caller's role or permissions do not allow this."""

    exit_code = 4


class NotFoundError(SmpError):
    """A named thing does not exist."""

    exit_code = 5


class RemoteError(SmpError):
    """A storage server could not be used."""

    exit_code = 6


class IntegrityError(SmpError):
    """Data is not what its sender sealed, or is not for us. The job is quarantined."""

    exit_code = 7


class ResourceError(SmpError):
    """This machine lacks something: disk, memory, a sandbox feature."""

    exit_code = 8


class ProcessorError(SmpError):
    """A processor failed, overran its limits or returned nonsense."""

    exit_code = 9


class StateError(SmpError):
    """The thing exists but is not in a state that allows this."""

    exit_code = 10


class AuditError(SmpError):
    """The audit log could not be written, or does not verify."""

    exit_code = 11


class KeyFileError(SmpError):
    """A key could not be unlocked or read."""

    exit_code = 12


class ErrorCode(NamedTuple):
    """What a code means."""

    family: type[SmpError]
    retryable: bool
    meaning: str


CODES: dict[str, ErrorCode] = {
    "bad_request": ErrorCode(UsageError, False, "the request is malformed or contradicts itself"),
    "bad_parameter": ErrorCode(UsageError, False, "a processor's parameter is unknown or of the wrong type"),
    "bad_config": ErrorCode(UsageError, False, "the configuration has an unknown key or a wrong value"),
    "bad_name": ErrorCode(UsageError, False, "a name is not allowed (absolute, '..', NUL, too long)"),
    "daemon_down": ErrorCode(DaemonError, True, "nothing answers on the control socket"),
    "protocol": ErrorCode(DaemonError, False, "the peer sent what the protocol does not allow"),
    "protocol_version": ErrorCode(DaemonError, False, "the two sides share no protocol version"),
    "busy": ErrorCode(DaemonError, True, "too many requests are open, or the user database does not answer"),
    "rate_limited": ErrorCode(DaemonError, True, "one user asks more often than the daemon allows"),
    "too_many_jobs": ErrorCode(DaemonError, True, "one user has as many unfinished jobs as the daemon allows"),
    "lagged": ErrorCode(DaemonError, True, "a watch fell behind; resume from the sequence in details"),
    "forbidden": ErrorCode(DeniedError, False, "the caller's role or permissions do not allow this"),
    "no_such_job": ErrorCode(NotFoundError, False, "no job has this id"),
    "no_such_remote": ErrorCode(NotFoundError, False, "no remote has this name"),
    "no_such_object": ErrorCode(NotFoundError, False, "the remote has no such object"),
    "no_such_bucket": ErrorCode(NotFoundError, False, "the remote has no such bucket or folder"),
    "no_such_key": ErrorCode(NotFoundError, False, "no identity or sender has this name"),
    "no_such_sync": ErrorCode(NotFoundError, False, "no sync has this name"),
    "no_such_processor": ErrorCode(NotFoundError, False, "no processor of this name is loaded"),
    "no_such_file": ErrorCode(NotFoundError, False, "a local file does not exist"),
    "remote_unreachable": ErrorCode(RemoteError, True, "the server cannot be reached or stopped answering"),
    "remote_auth": ErrorCode(RemoteError, False, "the server refused the credentials"),
    "remote_forbidden": ErrorCode(RemoteError, False, "the credentials do not allow this act"),
    "remote_busy": ErrorCode(RemoteError, True, "the server asked us to slow down"),
    "remote_failed": ErrorCode(RemoteError, True, "the server answered with an error of its own"),
    "quiet_hours": ErrorCode(RemoteError, True, "the configuration has this remote left alone at this time of day"),
    "remote_untrusted": ErrorCode(RemoteError, False, "the host key or certificate is unknown or changed"),
    "not_sealed": ErrorCode(IntegrityError, False, "the object is not a sealed object"),
    "truncated": ErrorCode(IntegrityError, False, "the object is shorter or longer than it says"),
    "corrupt": ErrorCode(IntegrityError, False, "a tag, digest or signature does not match"),
    "unsupported": ErrorCode(IntegrityError, False, "the object uses a version or suite unknown here"),
    "wrong_recipient": ErrorCode(IntegrityError, False, "the object was sealed for someone else"),
    "untrusted_sender": ErrorCode(
        IntegrityError, False, "the signer is unknown, expired, removed or out of its prefix"
    ),
    "older_version": ErrorCode(IntegrityError, False, "a newer object was accepted at this location before"),
    "misplaced": ErrorCode(IntegrityError, False, "the object was sealed for another place than where it lies"),
    "source_changed": ErrorCode(IntegrityError, False, "the object changed while it was being read"),
    "disk_full": ErrorCode(ResourceError, True, "no space is left for the spool, the vault or the journal"),
    "disk_failed": ErrorCode(ResourceError, True, "the disk reported an error"),
    "no_memory": ErrorCode(ResourceError, True, "this machine, or the limit on the daemon, has too little memory left"),
    "no_descriptors": ErrorCode(ResourceError, True, "the daemon has no file descriptor left"),
    "spool_corrupt": ErrorCode(ResourceError, True, "a spooled range does not match its journal"),
    "sandbox": ErrorCode(ResourceError, False, 'this kernel lacks what sandbox = "required" needs'),
    "program_replaced": ErrorCode(ResourceError, True, "another version was installed over the one that runs"),
    "worker_died": ErrorCode(ResourceError, True, "a worker process ended unexpectedly"),
    "setup_failed": ErrorCode(ResourceError, False, "the machine could not be set up as a box"),
    "notify_failed": ErrorCode(
        ResourceError, True, "the command or webhook that tells somebody did not take the message"
    ),
    "device_memory": ErrorCode(ResourceError, False, "the device has too little memory for this entry"),
    "processor_failed": ErrorCode(ProcessorError, False, "the processor raised an exception"),
    "processor_timeout": ErrorCode(ProcessorError, False, "the processor ran past its limit"),
    "processor_output": ErrorCode(ProcessorError, False, "the processor returned something that is no output"),
    "processor_input": ErrorCode(ProcessorError, False, "the processor cannot take this media type"),
    "wrong_state": ErrorCode(StateError, False, "the job's state does not allow this"),
    "exists": ErrorCode(StateError, False, "a thing of this name exists already"),
    "target_changed": ErrorCode(StateError, False, "somebody else's object appeared at a result's target; it is kept"),
    "cancelled": ErrorCode(StateError, False, "the job was cancelled"),
    "audit_unwritable": ErrorCode(AuditError, True, "the audit log cannot be written, so the act was not done"),
    "audit_broken": ErrorCode(AuditError, False, "the audit log does not match its checkpoints"),
    "key_locked": ErrorCode(KeyFileError, False, "wrong passphrase or credential"),
    "key_invalid": ErrorCode(KeyFileError, False, "a key file or public key is malformed"),
    "internal": ErrorCode(SmpError, False, "a fault in SMP itself"),
}


@contextlib.contextmanager
def one_error() -> Iterator[None]:
    """Let one error leave a task group as itself: the first SmpError in it, else the first other exception.

    When a task of a group fails, the others are cancelled; what a person needs is why the first one failed.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        known = group.subgroup(SmpError)
        first: BaseException = known or group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from group
