"""Remotes: their configurations and credentials, what is asked of them, and their objects."""

from typing import Annotated, Literal

import msgspec

from smp_proto.control.base import Request

Mode = Literal["zero-knowledge", "standard", "streaming"]


class RemoteConfig(msgspec.Struct, tag_field="kind"):
    """Base of the three kinds of remote."""


class S3Config(RemoteConfig, tag="s3"):
    """A bucket. ``endpoint`` empty means AWS; ``profile`` names one of the daemon user's AWS profiles.

    ``ca_pem`` are extra trusted certificates, as text, for a server with its own authority.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = "us-east-1"
    addressing: Literal["auto", "path", "virtual"] = "auto"
    profile: str = ""
    ca_pem: str = ""


class SftpConfig(RemoteConfig, tag="sftp"):
    """An SFTP server. ``known_hosts`` holds the lines that apply, as text: nothing is trusted on first use."""

    host: str
    user: str
    known_hosts: str
    port: int = 22
    root: str = ""
    use_agent: bool = False


class LocalConfig(RemoteConfig, tag="local"):
    """A folder of the daemon's machine. Only an admin adds one."""

    root: str


AnyRemoteConfig = S3Config | SftpConfig | LocalConfig


class RemoteSecret(msgspec.Struct, tag_field="kind"):
    """Base of the credentials; their repr shows nothing."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class S3Secret(RemoteSecret, tag="s3"):
    """An access key."""

    access_key: str
    secret_key: str
    session_token: str = ""

    __repr__ = RemoteSecret.__repr__


class SftpSecret(RemoteSecret, tag="sftp"):
    """A private key in OpenSSH or PEM form, with its passphrase if it has one, or a password."""

    private_key: str = ""
    passphrase: str = ""
    password: str = ""

    __repr__ = RemoteSecret.__repr__


AnyRemoteSecret = S3Secret | SftpSecret


class RemoteView(msgspec.Struct):
    """A remote as shown; whether it has a secret, never the secret."""

    name: str
    mode: Mode
    config: AnyRemoteConfig
    has_secret: bool


SIZE_MAX = (1 << 53) - 1  # more than any store holds, and so little that sums of sizes stay numbers everywhere
Size = Annotated[int, msgspec.Meta(ge=0, le=SIZE_MAX)]


class ObjectInfo(msgspec.Struct):
    """An object of a remote, of less than 2⁵³ bytes.

    ``pin`` is ``etag:…`` or ``stat:SIZE:MTIME_NS``: what must not change in a job.
    """

    path: Annotated[str, msgspec.Meta(max_length=1 << 14)]
    size: Size
    pin: Annotated[str, msgspec.Meta(max_length=512)] = ""
    modified: float = 0.0


class RemoteAdd(Request, tag="remote-add"):
    """Keep a remote; its secret is sealed at rest. Reply: RemoteView. Errors: exists, bad_name.

    ``replace``: the remote is kept already, and gets this secret and these settings, while jobs and syncs use it.
    Errors: no_such_remote, wrong_state where this is another place, or another mode.
    """

    name: str
    config: AnyRemoteConfig
    mode: Mode = "zero-knowledge"
    secret: AnyRemoteSecret | None = None
    replace: bool = False


class RemoteList(Request, tag="remote-list"):
    """DATA: Remotes. Reply: Remotes. The reply has the last of them; those that do not fit come before it, as DATA."""


class Remotes(msgspec.Struct):
    """Remotes, or the next of them."""

    remotes: list[RemoteView]


class RemoteTest(Request, tag="remote-test"):
    """Connect, authenticate, list. Reply: RemoteTested."""

    name: str


class RemoteTested(msgspec.Struct):
    """A remote that works, with what it said of itself."""

    name: str
    milliseconds: float
    facts: dict[str, str] = {}


class RemoteRemove(Request, tag="remote-remove"):
    """Forget a remote and its secret. Reply: None. Errors: no_such_remote, wrong_state while jobs use it."""

    name: str


class ListObjects(Request, tag="ls"):
    """DATA: Objects, in batches. Reply: None."""

    location: str
    recursive: bool = True


class RemoveObject(Request, tag="rm"):
    """Remove one object of a remote; one that is not there is no error. Reply: None."""

    location: str


class Objects(msgspec.Struct):
    """A batch of a listing."""

    objects: list[ObjectInfo]
