"""What a fetch process may still do once it knows its remote: read code and what names and TLS need, and connect.

Where it may connect to is not limited. Beyond that, of files: an AWS profile opens ``~/.aws``, a local remote its
root, which it may also watch. Of sockets: the SSH agent, if it is to be used, a stream to a Unix socket.

No Netlink: getaddrinfo of glibc then takes both families of addresses for usable (check_pf.c). NSS modules that ask
a daemon over a Unix socket answer UNAVAIL, and the next of nsswitch.conf is asked.
"""

import os
import signal
import socket
import ssl
from collections.abc import Iterator

from smp_proto.control import AnyRemoteConfig, LocalConfig, S3Config, SftpConfig
from smpd.fetch.remote import missing_root
from smpd.walls.landlock import FILES, Rule
from smpd.walls.sandbox import Kernel, Sandbox, code_folders
from smpd.walls.seccomp import Sockets

# The folders below /run are those of resolv.conf's writers, who replace the file.
_NAMES = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services"),
    *("/etc/protocols", "/etc/passwd", "/etc/mime.types"),
    *("/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager/resolv.conf"),
)
# Not /etc/ssl or /etc/pki, where private keys lie beside.
_TRUST = (
    *("/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/ssl/ca-bundle.pem", "/etc/ssl/openssl.cnf"),
    *("/etc/pki/tls/certs", "/etc/pki/tls/cert.pem", "/etc/pki/tls/openssl.cnf", "/etc/pki/ca-trust/extracted"),
    *("/etc/ca-certificates/extracted", "/etc/crypto-policies", "/usr/share/crypto-policies"),
    *("/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/var/lib/ca-certificates"),
)
_DATAGRAM, _STREAM = socket.SOCK_DGRAM, socket.SOCK_STREAM


def enter(mode: str, kernel: Kernel, config: AnyRemoteConfig | None) -> dict[str, str]:
    """Raise the walls for a remote, or with None for a webhook: before its first connection, in the only thread.

    Returns:
        Each wall, and ``on`` or why it is not up.

    Raises:
        UsageError: ``bad_config``, no such mode.
        ResourceError: ``sandbox``, ``required`` cannot be had.
        NotFoundError: ``no_such_bucket``, the root of a local remote, to which the walls are to be fitted.
    """
    sandbox = Sandbox(mode, kernel)
    if sandbox.on and isinstance(config, LocalConfig) and not os.path.isdir(config.root):
        raise missing_root(f"the folder {config.root}")
    sandbox.forgo_privileges(signal.SIGTERM)
    sandbox.enter_landlock(_rules(config), tcp=True)
    sandbox.enter_seccomp(_sockets(config), watches=isinstance(config, LocalConfig))
    return sandbox.walls


def _rules(config: AnyRemoteConfig | None) -> Iterator[Rule]:
    trust = ssl.get_default_verify_paths()
    found = (trust.cafile, trust.capath, trust.openssl_cafile, trust.openssl_capath)
    for path in (*code_folders(("smpd", "smp_proto")), *_NAMES, *_TRUST, *filter(None, found)):
        yield Rule(path)
    if isinstance(config, S3Config) and config.profile:
        yield Rule(os.path.expanduser("~/.aws"))
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            if name in os.environ:
                yield Rule(os.path.expanduser(os.environ[name]))
    if isinstance(config, LocalConfig):
        yield Rule(config.root, FILES)


def _sockets(config: AnyRemoteConfig | None) -> Sockets:
    sockets: dict[int, tuple[int, ...]] = {socket.AF_INET: (_STREAM, _DATAGRAM), socket.AF_INET6: (_STREAM, _DATAGRAM)}
    if isinstance(config, SftpConfig) and config.use_agent:
        sockets[socket.AF_UNIX] = (_STREAM,)
    return sockets
