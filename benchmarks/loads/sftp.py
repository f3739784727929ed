"""One large object over SFTP with one cipher for all, against OpenSSH's own client."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from servers import Served, rclone_sftp, sshd  # the servers of the tests

from benchmarks import peers
from benchmarks.bench import Bench, Contestant, Entry, present
from benchmarks.loads.large import sized
from benchmarks.objects import MIB, seal_object
from benchmarks.results import Sample
from benchmarks.servers import CIPHER, program
from benchmarks.smp import ENDS_AS, Smp, daemon
from benchmarks.watch import run_program
from smp_proto.control import SftpConfig, SftpSecret

BYTES, QUICK_BYTES = 512 * MIB, 8 * MIB


class Sftp:
    """512 MiB over SFTP."""

    name = "sftp"
    title = "512 MiB sealed, SFTP, aes256-gcm"
    unit = "gb_s"
    ceiling = "sftp"
    rounds = 0
    note = (
        "OpenSSH's sshd where it is installed, else rclone's, which names its own cipher. One connection of SMP is one "
        "fetch process with one connection; several are the defaults."
    )

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """A server of its own, and a daemon that keeps to one connection."""
        size = bench.size(BYTES, QUICK_BYTES)
        one = {"fetch": {"processes": 1, "connections": 1}}
        with tempfile.TemporaryDirectory(dir=bench.work) as name, contextlib.ExitStack() as stack:
            folder = Path(name)
            (folder / "keys").mkdir()
            ours = program("sshd") is not None
            server = sshd(folder / "data", folder / "keys", ciphers=CIPHER) if ours else None
            served = stack.enter_context(server or rclone_sftp(folder / "data", folder / "keys"))
            single = stack.enter_context(daemon(folder / "smpd", bench.sender, one))
            acts = []
            for smp, file in ((bench.smp, "several.smp"), (single, "one.smp")):
                digest = seal_object(folder / "data" / file, size, bench.sender, smp.key)
                smp.client.remote_add("sftp", served.config, mode="streaming", secret=served.secret)
                # sshd's sessions outlive it as long as a fetch process keeps its connection.
                stack.callback(smp.client.remote_remove, "sftp")
                smp.check(f"sftp:{file}", digest)
                acts.append(_run(smp, f"sftp:{file}", size))
            yield [
                Contestant("SMP, several connections", ENDS_AS, acts[0]),
                Contestant("SMP, one connection", ENDS_AS, acts[1]),
                present("sftp", "written to tmpfs; nothing is checked", lambda: _openssh(served, folder, size)),
            ]


def _run(smp: Smp, source: str, size: int) -> Callable[[], Sample]:
    return lambda: smp.run(source, size)


def _openssh(served: Served, folder: Path, size: int) -> Callable[[], Sample]:
    """OpenSSH's client, one connection, as it is by default but for the cipher."""
    client = program("sftp")
    config, secret = served.config, served.secret
    assert isinstance(config, SftpConfig)
    assert isinstance(secret, SftpSecret)
    if client is None or not secret.private_key:
        raise peers.PeerAbsentError("OpenSSH's sftp or sshd is not installed")
    key, known = folder / "client_key", folder / "known_hosts"
    key.write_text(secret.private_key)
    key.chmod(0o600)
    known.write_text(config.known_hosts)
    options = [f"UserKnownHostsFile={known}", f"Ciphers={CIPHER}", "IdentitiesOnly=yes", "BatchMode=yes"]
    argv = [client, "-q", "-F", "none", "-P", str(config.port), "-i", str(key)]
    argv += [word for option in options for word in ("-o", option)]
    argv += [f"{config.user}@127.0.0.1:{folder}/data/one.smp", str(folder / "fetched")]
    return lambda: sized(size, run_program(argv))
