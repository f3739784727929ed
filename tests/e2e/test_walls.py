"""The walls between the processes: what each has loaded, holds, and could not do if it wanted to."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from box import Box, box
from gated_s3 import GatedS3, gated_s3
from scene import Following, Person, add_remote, believe, box_key, bytes_below, client, done, workers
from servers import SECRET_KEY, Served

from smp_proto.control import RunSpec, S3Secret, SftpSecret
from smp_proto.sealed.envelope import open_envelope
from smp_proto.sealed.keys import Identity, PublicIdentity
from smp_proto.sealed.layout import TRAILER_BYTES, Trailer
from smpd.links import fetching
from smpd.vault.keys import CREDENTIAL, IDENTITY

MIB = 1 << 20
FOREIGN = ("torch", "aiobotocore", "aiohttp", "botocore", "asyncssh", "h11", "kornia", "PIL")
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="reading another process's memory needs root")
CHUNK_BYTES = 8 << 20


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Box, GatedS3, Person]]:
    """A box in whose fetch process a job is held at half, so that all three processes are at work."""
    folder = tmp_path_factory.mktemp("walls")
    config = {"fetch": {"processes": 1, "slots": 3, "slot_bytes": MIB}}
    with box(folder / "box", config) as machine, gated_s3({}) as (store, served):
        machine_served = Served(served.config, S3Secret("AKIAIOSFODNN7EXAMPLE", SECRET_KEY))
        sender = Person(machine, folder, "hospital")
        sender.knows(box_key(machine, folder), "box")
        believe(machine, sender)
        add_remote(machine, "gated", machine_served)
        (folder / "scan.bin").write_bytes(os.urandom(16 * MIB))
        store.objects["scan.smp"] = sender.seal([folder / "scan.bin"], folder / "scan.smp").read_bytes()
        with Following(machine) as following, client(machine) as ctl:
            store.hold_after(8 * MIB)
            job = ctl.submit(RunSpec("gated:scan.smp", "digest"))
            following.until(job.id, lambda view: view.done_bytes > 4 * MIB)
            yield machine, store, sender
            store.release()
            done(following.final(job.id))


def all_processes(machine: Box) -> dict[str, int]:
    assert machine.process
    (fetch,), (compute,) = workers(machine, "fetch"), workers(machine, "compute")
    return {"smpd": machine.process.pid, "fetch": fetch, "compute": compute}


def mapped(pid: int) -> set[str]:
    """The files that a process has mapped."""
    return {line.split(maxsplit=5)[5] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/" in line}


def test_what_each_process_has_mapped(scene):
    """torch is in the compute process alone; neither it nor a network client's library is in the daemon."""
    pids = all_processes(scene[0])
    libraries = {name: {path for path in mapped(pid) if "site-packages" in path} for name, pid in pids.items()}
    assert any("/torch/" in path for path in libraries["compute"])
    for name in ("smpd", "fetch"):
        assert not [path for path in libraries[name] if "/torch/" in path]
    for library in ("aiohttp", "asyncssh"):
        assert not [path for path in libraries["smpd"] | libraries["compute"] if f"/{library}/" in path]
    assert any("/aiohttp/" in path for path in libraries["fetch"])
    assert not [path for path in libraries["compute"] if "/cryptography/" in path or "/nacl/" in path]


@pytest.mark.parametrize(
    ("module", "foreign"),
    [
        ("smpd.app", (*FOREIGN, "smpd.fetch", "smpd.compute", "smpd.processors")),
        ("smpd.fetch.service", ("torch", "smp_proto.sealed", "smpd.vault", "smpd.transfer", "smpd.jobs", "kornia")),
        ("smpd.compute.server", ("torch", "smp_proto.sealed", "cryptography", "nacl", "aiobotocore", "asyncssh")),
        ("smpctl.__main__", ("torch", "anyio", "structlog", "smpd")),
    ],
)
def test_what_an_import_brings(module, foreign):
    """What a process loads at its start holds nothing of the other trust domains."""
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    )
    assert module in loaded
    assert not loaded & set(foreign)


def fields(kind: Any, seen: set[Any]) -> Iterator[tuple[str, Any]]:
    """All fields that a message may hold, however deep, with their types."""
    for part in (kind, *get_args(kind)):
        if isinstance(part, type) and issubclass(part, msgspec.Struct) and part not in seen:
            seen.add(part)
            for field in msgspec.structs.fields(part):
                yield f"{part.__name__}.{field.name}", field.type
                yield from fields(field.type, seen)
        elif part is not kind:
            yield from fields(part, seen)


def test_no_message_to_a_fetch_process_has_room_for_a_key():
    """Of all that the daemon can tell a fetch process, only the remote's own credentials are secret; none is bytes."""
    found = dict(fields(fetching.AnyRequest, set()))
    secret = {name for name in found if re.search(r"key|secret|pass|token", name.rpartition(".")[2])}
    own = {f"{kind.__name__}.{name}" for kind in (S3Secret, SftpSecret) for name in kind.__struct_fields__}
    assert secret <= own | {"Setup.secret"}
    assert "Setup.secret" in found
    assert not [name for name, kind in found.items() if kind in (bytes, bytearray, memoryview, Any, msgspec.Raw)]


def memory(pid: int) -> Iterator[bytes]:
    """The readable memory of a process, in overlapping pieces; rings are shared memory and come along."""
    spans = re.findall(r"^(\w+)-(\w+) r.*$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE)
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for first, last in spans:
            start, end = int(first, 16), int(last, 16)
            for at in range(start, end, CHUNK_BYTES):
                try:
                    yield os.pread(fd, min(CHUNK_BYTES + 64, end - at), at)
                except (OSError, OverflowError):  # what is reserved but has no memory, and vsyscall
                    break
    finally:
        os.close(fd)


def holding(pid: int, secrets: dict[str, bytes]) -> set[str]:
    """Which of these are in a process's memory."""
    return {name for part in memory(pid) for name, secret in secrets.items() if secret in part}


def secrets_of(machine: Box, sealed: bytes) -> dict[str, bytes]:
    """The halves of the box's identity and the file key of an object, found as the daemon finds them."""
    keys = machine.state / "keys"
    credential = bytearray((keys / CREDENTIAL).read_bytes())
    identity = Identity.from_file((keys / IDENTITY).read_bytes(), credential=credential)
    trailer = Trailer.parse(sealed[-TRAILER_BYTES:], len(sealed))
    envelope = sealed[trailer.payload_bytes : -TRAILER_BYTES]
    sender = PublicIdentity.parse((machine.folder.parent / "hospital" / "public").read_text().strip())
    opened = open_envelope(envelope, trailer, [identity], lambda _: sender)
    return {
        "encryption key": hashlib.shake_256(bytes(identity._secret[:32])).digest(96)[64:],  # its X25519 half
        "signing key": bytes(identity._secret[32:]),
        "file key": bytes(opened.file_key.material),
        "payload key": bytes(opened.file_key.payload_key()),
    }


@ROOT_ONLY
def test_what_is_in_each_process_s_memory(scene):
    """In the middle of a job the keys are in the daemon's memory (so the search works) and in no other process."""
    machine, store, _ = scene
    secrets = secrets_of(machine, store.objects["scan.smp"])
    pids = all_processes(machine)
    assert holding(pids["smpd"], secrets) >= {"encryption key", "signing key", "file key"}
    assert holding(pids["fetch"], secrets) == set()
    assert holding(pids["compute"], {**secrets, "credentials": SECRET_KEY.encode()}) == set()
    assert holding(pids["fetch"], {"credentials": SECRET_KEY.encode()}) == {"credentials"}


@ROOT_ONLY
def test_plaintext_is_not_in_the_fetch_process(scene):
    """What the sealed object holds is in the compute process and not in the one that speaks to the server."""
    machine, _, _ = scene
    plain = (machine.folder.parent / "scan.bin").read_bytes()
    pieces = {str(at): plain[at : at + 32] for at in range(0, 4 * MIB, MIB // 2)}
    pids = all_processes(machine)
    assert holding(pids["fetch"], pieces) == set()
    assert holding(pids["compute"], pieces) != set()


@pytest.mark.parametrize("role", ["fetch", "compute"])
def test_the_credentials_of_a_worker_are_nowhere_to_be_seen(scene, role):
    """No argument and no environment of any process holds a secret, and compute's environment holds no credential."""
    for name, pid in all_processes(scene[0]).items():
        seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        assert SECRET_KEY.encode() not in seen, name
    environment = Path(f"/proc/{all_processes(scene[0])[role]}/environ").read_bytes()
    assert not re.search(rb"(?i)secret|passw|token|AWS_A|SSH_AUTH", environment)


def test_the_secret_of_a_remote_is_sealed_at_rest(scene):
    """A remote's secret key is in no file of the state folder and in no line of the log."""
    machine, _, sender = scene
    for path, data in [*bytes_below(machine.state), (machine.log, machine.log.read_bytes())]:
        assert SECRET_KEY.encode() not in data, path
        assert b"scan.bin" not in data, path
    assert sender.secret.read_bytes().strip() not in machine.log.read_bytes()


def status(pid: int) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):\s*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))


def test_the_compute_process_is_behind_its_walls(scene):
    """The kernel itself says so: seccomp filters, no new privileges, no capabilities, and no descriptor of a network."""
    pids = all_processes(scene[0])
    found = status(pids["compute"])
    assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", "1")
    assert int(found["CapEff"], 16) == 0
    sockets = set()
    inet = {line.split()[9] for kind in ("tcp", "tcp6", "udp", "udp6") for line in _table(pids["compute"], kind)}
    for fd in Path(f"/proc/{pids['compute']}/fd").iterdir():
        if (found_socket := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd))) is not None:
            sockets.add(found_socket[1])
    assert sockets
    assert not sockets & inet


def _table(pid: int, kind: str) -> list[str]:
    path = Path(f"/proc/{pid}/net/{kind}")
    return path.read_text().splitlines()[1:] if path.exists() else []
