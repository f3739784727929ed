"""The storage that all contestants read from and write to: one server for all, on loopback, its data on tmpfs.

nginx where it is installed, else :mod:`benchmarks.server`; that one also takes the uploads, which nginx cannot, and
answers listings behind nginx. OpenSSH's sshd with one cipher serves the same folder over SFTP.
"""

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from benchmarks.results import ROOT
from benchmarks.server import SENT

BUCKET = "bucket"
ACCESS_KEY, SECRET_KEY = "key", "secret"
CIPHER = "aes256-gcm@openssh.com"
_SETTLE_S = 0.2

_NGINX = """
daemon off; {user} worker_processes auto; pid {work}/nginx.pid; error_log {work}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    log_format traffic '$body_bytes_sent';
    access_log {work}/access.log traffic;
    sendfile on; tcp_nopush on; keepalive_requests 10000000; default_type application/octet-stream;
    client_body_temp_path {work}/b; proxy_temp_path {work}/p; fastcgi_temp_path {work}/f; uwsgi_temp_path {work}/u;
    scgi_temp_path {work}/s; client_max_body_size 0;
    map "$request_method $request_uri" $elsewhere {{ default 0; "~^(PUT|POST|DELETE)" 1; "~^GET /[^/?]+/?(\\?|$)" 1; }}
    server {{
        listen 127.0.0.1:{http}; listen 127.0.0.1:{https} ssl;
        ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;
        root {root};
        location / {{ if ($elsewhere) {{ proxy_pass {dynamic}; }} }}
    }}
}}
"""


@dataclass
class Store:
    """A running server.

    Attributes:
        root: its folder; objects lie in ``root/bucket/key``.
        http, https: endpoints to read from.
        uploads: the endpoint that takes multipart uploads.
        ca: the certificate to trust.
        name: which server it is.
    """

    root: Path
    http: str
    https: str
    uploads: str
    ca: Path
    name: str
    _access_log: Path | None = None
    _last: tuple[int, int] = field(default=(0, 0))

    @property
    def bucket(self) -> Path:
        """The folder of the bucket."""
        return self.root / BUCKET

    def url(self, key: str, *, tls: bool = False) -> str:
        """Where an object is read from."""
        return f"{self.https if tls else self.http}/{BUCKET}/{key}"

    def traffic(self, at_least: int = 0) -> tuple[int, int]:
        """Bytes of bodies sent and requests answered since the last call.

        nginx logs a request a moment after its last byte: until ``at_least`` bytes are there, it is given that moment.
        """
        deadline = time.monotonic() + _SETTLE_S
        while True:
            sent, requests = self._total()
            if sent - self._last[0] >= at_least or time.monotonic() > deadline:
                break
            time.sleep(0.005)
        before, self._last = self._last, (sent, requests)
        return sent - before[0], requests - before[1]

    @cached_property
    def _trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)

    def _total(self) -> tuple[int, int]:
        if self._access_log is not None:
            lines = self._access_log.read_bytes().split()
            return sum(map(int, lines)), len(lines)
        sent = requests = 0
        for endpoint in (self.http, self.https):
            with urllib.request.urlopen(endpoint + SENT, timeout=10, context=self._trusted) as answer:
                counts = [int(word) for word in answer.read().split()]
            sent, requests = sent + counts[0], requests + counts[1]
        return sent, requests


def program(name: str) -> str | None:
    """The path of a program: beside this interpreter, on PATH, or where servers are kept."""
    folders = [os.path.dirname(sys.executable), os.environ.get("PATH", ""), "/usr/sbin"]
    return shutil.which(name, path=os.pathsep.join(folders))


@contextlib.contextmanager
def own_server(root: Path, *options: str | Path) -> Iterator[int]:
    """:mod:`benchmarks.server` over a folder; its port."""
    argv = [sys.executable, "-m", "benchmarks.server", str(root), *map(str, options)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@contextlib.contextmanager
def store(work: Path, certificate: tuple[Path, Path], *, nginx: bool = True) -> Iterator[Store]:
    """Serve ``work/store`` over HTTP and HTTPS.

    Args:
        work: a folder of the caller's, on tmpfs.
        certificate: PEM files of a certificate for 127.0.0.1 and of its key.
        nginx: use it if it is there.
    """
    root = work / "store"
    (root / BUCKET).mkdir(parents=True)
    binary = program("nginx") if nginx else None
    with contextlib.ExitStack() as stack:
        dynamic = f"http://127.0.0.1:{stack.enter_context(own_server(root))}"
        if binary is None:
            secure = f"https://127.0.0.1:{stack.enter_context(own_server(root, '--tls', *certificate))}"
            yield Store(root, dynamic, secure, dynamic, certificate[0], "benchmarks/server.py")
            return
        http, https = stack.enter_context(_nginx(binary, work / "nginx", root, certificate, dynamic))
        log = work / "nginx" / "access.log"
        named = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stderr.rpartition(" ")[2]
        yield Store(root, http, https, dynamic, certificate[0], named.strip(), log)


@contextlib.contextmanager
def _nginx(
    binary: str, work: Path, root: Path, certificate: tuple[Path, Path], dynamic: str
) -> Iterator[tuple[str, str]]:
    """nginx, given sockets that are bound already: it takes those in the variable NGINX, as when it is upgraded."""
    work.mkdir()
    with socket.socket() as plain, socket.socket() as secure:
        for sock in (plain, secure):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", 0))
            sock.listen(511)
            sock.setblocking(False)  # nginx takes it to be so, and a worker would wait in accept(2) for ever
        ports = [sock.getsockname()[1] for sock in (plain, secure)]
        fds = [sock.fileno() for sock in (plain, secure)]
        config = work / "nginx.conf"
        # A worker of a master that is root becomes nobody, who may not enter our folder.
        user = "user root;" if os.geteuid() == 0 else ""
        cert, key = certificate
        paths = {"work": work, "root": root, "cert": cert, "key": key, "dynamic": dynamic, "user": user}
        config.write_text(_NGINX.format(http=ports[0], https=ports[1], **paths))
        (work / "access.log").touch()
        argv = [binary, "-c", str(config), "-p", str(work), "-e", str(work / "error.log")]
        environment = {**os.environ, "NGINX": ";".join(map(str, fds)) + ";"}
        with subprocess.Popen(argv, pass_fds=fds, env=environment) as process:
            try:
                with socket.create_connection(("127.0.0.1", ports[0]), timeout=10):
                    pass
                yield f"http://127.0.0.1:{ports[0]}", f"https://127.0.0.1:{ports[1]}"
            finally:
                process.terminate()  # the master takes its workers along
                process.wait(10)
