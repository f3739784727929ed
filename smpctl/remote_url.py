"""What ``remote add`` is told, made into a remote's configuration and secret. Secrets come from files, standard
input or the terminal, never from the command line or the environment.
"""

import base64
import os
import re
import sys
import tomllib
from typing import Literal, NamedTuple, cast
from urllib.parse import unquote, urlsplit

import msgspec

from smp_proto.control import AnyRemoteConfig, AnyRemoteSecret, LocalConfig, S3Config, S3Secret, SftpConfig, SftpSecret
from smp_proto.errors import KeyFileError, NotFoundError, UsageError
from smp_proto.memory import forbid_dumps
from smp_proto.sealed.filekey import wipe
from smpctl.known_hosts import DEFAULT, lines_for
from smpctl.session import on_terminal, secret_bytes
from smpctl.terminal import ask

_S3_ONLY = ("endpoint", "region", "addressing", "profile", "ca_file")
_SFTP_ONLY = ("known_hosts", "identity_file", "use_agent")
_TEXT_MAX = 1 << 18  # characters
EXAMPLES = "s3://BUCKET/PREFIX, sftp://USER@HOST/FOLDER or file:///FOLDER"


class RemoteOptions(NamedTuple):
    """The options of ``remote add``; what was not given is empty."""

    endpoint: str = ""
    region: str = ""
    addressing: str = ""
    profile: str = ""
    ca_file: str = ""
    known_hosts: str = ""
    identity_file: str = ""
    use_agent: bool = False
    secret_file: str = ""
    secret_stdin: bool = False
    no_secret: bool = False


def parse_url(url: str, options: RemoteOptions) -> AnyRemoteConfig:
    """The configuration that a URL and its options mean.

    Raises:
        UsageError: ``bad_request``; another scheme, a part missing, a password in it, an option of another kind.
        RemoteError: ``remote_untrusted``; the SSH host is unknown.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError("bad_request", f"{_shown(url)} is no URL", hint=f"one of {EXAMPLES}") from None
    if parts.scheme:
        # A folder, bucket or host may be meant to hold them; cut off, it would be another one.
        for sign, code in (("#", "%23"), ("?", "%3F")):
            if sign in url:
                hint = f"write {code} for a {sign} that is part of a name"
                raise UsageError("bad_request", f"the URL holds a {sign}, and nothing may follow it", hint=hint)
    if parts.password:
        raise UsageError("bad_request", "the URL holds a password", hint="others see it; use --secret-stdin")
    path = unquote(parts.path)
    if "\0" in unquote(url):
        raise UsageError("bad_request", "the URL holds a NUL character", hint=f"one of {EXAMPLES}")
    if parts.scheme == "s3":
        _refuse(options, _SFTP_ONLY, "s3")
        return _s3(unquote(parts.netloc), path.lstrip("/"), options)
    if parts.scheme == "sftp":
        _refuse(options, _S3_ONLY, "sftp")
        if not parts.hostname or not parts.username:
            raise UsageError("bad_request", f"{url} names no user or no host", hint="sftp://USER@HOST/FOLDER")
        hosts = lines_for(parts.hostname, port or 22, options.known_hosts or DEFAULT)
        return SftpConfig(parts.hostname, unquote(parts.username), hosts, port or 22, path, options.use_agent)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        _refuse(options, _S3_ONLY + _SFTP_ONLY, "file")
        return LocalConfig(os.path.normpath(path))
    if not parts.scheme:
        _refuse(options, _S3_ONLY + _SFTP_ONLY, "file")
        return LocalConfig(os.path.abspath(os.path.expanduser(url)))
    raise UsageError("bad_request", f"{url} is no remote", hint=f"one of {EXAMPLES}")


def _s3(bucket: str, prefix: str, options: RemoteOptions) -> S3Config:
    if not bucket:
        raise UsageError("bad_request", "the URL names no bucket", hint="s3://BUCKET/PREFIX")
    if options.endpoint and not _is_endpoint(options.endpoint):
        hint = "for example: --endpoint https://s3.example.org"
        raise UsageError("bad_request", f"{_shown(options.endpoint)} is no endpoint", hint=hint)
    config = S3Config(bucket, prefix, options.endpoint, profile=options.profile)
    config.region = options.region or config.region
    config.addressing = cast(Literal["auto", "path", "virtual"], options.addressing or "auto")
    if options.ca_file:
        config.ca_pem = _certificates(options.ca_file)
    return config


def _shown(url: str) -> str:
    """A URL that is none, without what may be a password in it."""
    return re.sub(r"(//[^/@:]*):.*@", r"\1:…@", url)


def _is_endpoint(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and parts.username is None
    except ValueError:
        return False


def _refuse(options: RemoteOptions, names: tuple[str, ...], kind: str) -> None:
    given = [name for name in names if getattr(options, name)]
    if given:
        raise UsageError("bad_request", f"--{given[0].replace('_', '-')} means nothing for {kind}", hint="leave it out")


def secret_for(config: AnyRemoteConfig, options: RemoteOptions) -> AnyRemoteSecret | None:
    """The credentials of a remote, asked for on the terminal when nothing says where they are.

    Raises:
        UsageError: ``bad_request``; there is nothing to take them from, or they are not of this kind.
    """
    if isinstance(config, LocalConfig):
        if options.secret_file or options.secret_stdin:
            raise UsageError("bad_request", "a folder has no credentials", hint="leave the secret out")
        return None
    secret = _given(config, options)
    if isinstance(config, S3Config):
        if secret is not None or options.no_secret or options.profile:
            return secret
        how = "--secret-file FILE, --secret-stdin, --profile NAME, or --no-secret for a public bucket"
        return S3Secret(_asked("Access key", how), _asked("Secret key", how))
    given = secret if isinstance(secret, SftpSecret) else None
    if options.identity_file:
        given = _with_key(given or SftpSecret(), options.identity_file)
    if given is not None or options.no_secret or options.use_agent:
        return given
    how = "--identity-file FILE, --secret-file FILE, --secret-stdin or --use-agent"
    return SftpSecret(password=_asked(f"Password of {config.user} at {config.host}", how))


def _given(config: S3Config | SftpConfig, options: RemoteOptions) -> AnyRemoteSecret | None:
    if options.secret_stdin and options.secret_file:
        raise UsageError("bad_request", "--secret-stdin and --secret-file say two things", hint="use one of them")
    if options.secret_file:
        data = secret_bytes(options.secret_file, "secret")
    elif options.secret_stdin:
        forbid_dumps()
        data = bytearray(sys.stdin.buffer.read(1 << 16))
    else:
        return None
    return parse_secret(data, S3Secret if isinstance(config, S3Config) else SftpSecret)


def parse_secret(data: bytearray, kind: type[AnyRemoteSecret]) -> AnyRemoteSecret:
    """The secret in a file's lines of TOML, which are wiped.

    Raises:
        UsageError: ``bad_request``; they are not of the documented form.
    """
    keys = ", ".join(kind.__struct_fields__)
    hint = f'lines as in: {kind.__struct_fields__[0]} = "..."; the keys are {keys}'
    try:
        found = tomllib.loads(data.decode())
        if set(found) <= set(kind.__struct_fields__):
            return msgspec.convert({**found, "kind": kind.__struct_config__.tag}, kind)
    except (ValueError, RecursionError):
        pass  # the parser's own message would quote the secret
    finally:
        wipe(data)
    raise UsageError("bad_request", "the secret is not of the documented form", hint=hint)


def _with_key(secret: SftpSecret, path: str) -> SftpSecret:
    forbid_dumps()
    secret.private_key = _text(path, "private key")
    locked = encrypted(secret.private_key)
    if locked and not secret.passphrase:
        secret.passphrase = _asked(f"Passphrase of {path}", 'put passphrase = "..." into --secret-file FILE')
    return secret


def encrypted(key: str) -> bool:
    """Whether a private key in PEM or OpenSSH form has a passphrase.

    Raises:
        KeyFileError: ``key_invalid``; it is neither.
    """
    if "PRIVATE KEY-----" not in key:
        raise KeyFileError("key_invalid", "this is no private key of SSH", hint="name the file without .pub")
    if "BEGIN OPENSSH" not in key:
        return "ENCRYPTED" in key
    body = "".join(line for line in key.splitlines() if line and not line.startswith("-"))
    try:
        data = base64.b64decode(body)
    except ValueError:  # also of what is no ASCII
        raise KeyFileError("key_invalid", "the private key is damaged", hint="restore it from a backup") from None
    return not data.startswith(b"openssh-key-v1\0\0\0\0\x04none")


def _text(path: str, what: str) -> str:
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            text = file.read(_TEXT_MAX + 1)
    except (OSError, UnicodeDecodeError):
        raise NotFoundError("no_such_file", f"the {what} {path} cannot be read", hint="check the path") from None
    if len(text) > _TEXT_MAX:  # cut off it would be another
        hint = "name a file with what is needed alone"
        raise UsageError("bad_request", f"the {what} {path} is over {_TEXT_MAX >> 10} KiB", hint=hint)
    return text


def _certificates(path: str) -> str:
    """Certificates in PEM form that TLS takes: the remote could not be used with others."""
    import ssl  # noqa: PLC0415 - only who brings some pays for it

    pem = _text(path, "certificate")
    try:
        text = pem.encode("ascii", "ignore").decode()  # comments may be in any language
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ValueError, ssl.SSLError):
        hint = "name a file of certificates in PEM form"
        raise UsageError("bad_request", f"{path} holds no certificate", hint=hint) from None
    return pem


def _asked(prompt: str, otherwise: str) -> str:
    if not on_terminal(0, 2):
        raise UsageError("bad_request", f"nothing says where the credentials are ({prompt.lower()})", hint=otherwise)
    typed = ask(prompt, otherwise=otherwise)
    try:
        return typed.decode()
    except UnicodeDecodeError:  # whose text would quote it
        message = f"what was typed is not UTF-8 ({prompt.lower()})"
        raise UsageError("bad_request", message, hint=f"set the terminal to UTF-8, or: {otherwise}") from None
    finally:
        wipe(typed)
