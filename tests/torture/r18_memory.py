"""R18: after each job, and at the end of smpctl, the memory of the processes is searched for what they used.

Searched for: the box's identity (its seeds, and the keys made of them), what unlocks it, the keys of each object and of its
result, the secret of the remote, and a mark that the content is full of. In smpd the two private keys in use must be
there exactly once, in OpenSSL's own objects, and of a key before that only the one that opens; in fetch nothing but its remote's secret; in
opening the keys that open, once each, and neither content nor what signs; in compute no key. What a plugin's libraries leave of the content in a compute process is counted, not judged.
"""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from box import Box
from gated_s3 import GatedS3, gated_s3
from scene import add_remote, done, workers
from servers import Served

from smp_proto.control import GetSpec, JobView, RunSpec, S3Secret
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.envelope import open_envelope
from smp_proto.sealed.filekey import hkdf
from smp_proto.sealed.keys import Identity, PublicIdentity
from smp_proto.sealed.layout import TRAILER_BYTES, Trailer
from smpctl import Client
from smpd.vault.keys import CREDENTIAL, IDENTITY
from torture.harness import Experiment, Trial, Trials
from torture.memory import find
from torture.planted import planting

MIB = 1 << 20
KINDS = ("get", "rotate", "put", "open", "crowd", "run", "standard", "smpctl")
CROWD = 600
IN_USE = {"decryption key", "signing key"}  # in smpd, once each, for as long as it runs
_CONFIG = {
    "fetch": {"processes": 1, "slots": 3, "slot_bytes": MIB},
    "compute": {"slots": 2, "processors": ["tensor.stats"]},
}
# What smpctl does last: stop, with all that it freed still in its memory.
_STOPPED = "import atexit, os, sys; atexit.register(os.kill, os.getpid(), 19); from smpctl.__main__ import main; main()"


def keys_of(sealed: bytes, who: Identity, sender: PublicIdentity, name: str) -> dict[str, bytes]:
    """Every key of an object, as one of its recipients finds them."""
    trailer = Trailer.parse(sealed[-TRAILER_BYTES:], len(sealed))
    envelope = open_envelope(sealed[trailer.payload_bytes : -TRAILER_BYTES], trailer, [who], lambda _: sender)
    key, signed = envelope.file_key, envelope.signed
    payload = key.payload_key()
    keys = {"file": key.material, "payload": payload, "index": key.index_key(), "recipients": key.mac_key()}
    keys["segments"] = hkdf(payload, salt=signed.header[1:33], info=signed.object_id)
    return {f"{name}: {what} key": bytes(value) for what, value in keys.items()}


def private_parts(identity: Identity) -> dict[str, bytes]:
    """The seeds of an identity and the keys made of them (X-Wing, section 5.2; Ed25519's private key is its seed)."""
    seed, signing = bytes(identity._secret[:32]), bytes(identity._secret[32:])
    expanded = hashlib.shake_256(seed).digest(96)
    return {"seed": seed, "seed of ML-KEM": expanded[:64], "decryption key": expanded[64:], "signing key": signing}


class Scene:
    """A box, a sender who knows all keys, an S3 server, and a folder that is a remote in mode ``standard``."""

    def __init__(self, folder: Path, store: GatedS3, served: Served, *, passphrase: bool) -> None:
        self.folder, self.store, self.served = folder, store, served
        self.sender = Identity.generate("sender")
        self.remote_secret = os.urandom(20).hex()
        self.retired: list[Identity] = []
        self.unlocks = {"credential": b""}
        config = dict(_CONFIG)
        folder.mkdir()
        if passphrase:
            self.unlocks = {"passphrase": os.urandom(16).hex().encode()}
            file = self.file("unlock", self.unlocks["passphrase"])
            config["keys"] = {"passphrase_file": str(file)}
        self.box = Box(folder / "box", config)

    def file(self, name: str, data: bytes) -> Path:
        """A file for nobody else."""
        path = self.folder / name
        path.write_bytes(data)
        path.chmod(0o600)
        return path

    def start(self, stack: ExitStack) -> None:
        """Start the daemon, and have it know its remotes and the sender."""
        stack.callback(self.box.close)
        self.box.start()
        if "credential" in self.unlocks:
            self.unlocks["credential"] = (self.box.state / "keys" / CREDENTIAL).read_bytes()
        self.read_key()
        self.client = stack.enter_context(Client(str(self.box.socket)))
        add_remote(self.box, "s3", Served(self.served.config, S3Secret("AKIAIOSFODNN7EXAMPLE", self.remote_secret)))
        (self.folder / "open").mkdir()
        self.box.ctl("remote", "add", "ward", f"file://{self.folder / 'open'}", "--mode", "standard")
        (self.folder / "crowd").mkdir()
        self.box.ctl("remote", "add", "crowd", f"file://{self.folder / 'crowd'}", "--mode", "streaming")
        self.client.trust_add("sender", self.sender.public.text())

    def read_key(self) -> None:
        """Know the box's key, its private parts included."""
        unlock = {name: bytearray(value) for name, value in self.unlocks.items()}
        self.identity = Identity.from_file((self.box.state / "keys" / IDENTITY).read_bytes(), **unlock)
        self.public = self.identity.public
        self.key_file = self.file("box.pub", self.public.text().encode())

    def seal(self, name: str, data: bytes) -> bytes:
        """Seal something for the box into the bucket."""
        sealed = bytearray()
        writer = BundleWriter(sealed.extend, sender=self.sender, recipients=[self.public, self.sender.public])
        writer.begin("scan.bin")
        writer.write(data)
        writer.end()
        writer.finish()
        self.store.objects[name] = bytes(sealed)
        return bytes(sealed)

    def job(self, spec: GetSpec | RunSpec) -> JobView:
        """Have a job done."""
        return done(self.client.wait(self.client.submit(spec).id))

    def vaulted(self, view: JobView) -> bytes:
        """What the vault holds of a job."""
        (path,) = (self.box.state / "vault" / "objects").glob(f"{view.result.vault_id}*")
        return path.read_bytes()

    def pids(self) -> Iterator[tuple[str, int]]:
        """All processes there are."""
        assert self.box.process
        yield "smpd", self.box.process.pid
        for role in ("fetch", "compute", "opening"):
            for pid in workers(self.box, role):
                yield role, pid


def _use(scene: Scene, trial: Trial, kind: str, data: bytes) -> dict[str, bytes]:
    """Do a job of a kind; returns the keys of all that it opened and made."""
    name = f"{trial.number}.smp"
    if kind == "rotate":
        scene.client.box_rotate()
        scene.retired.append(scene.identity)
        scene.read_key()
        return {}
    if kind == "put":
        scene.box.ctl("put", scene.file("put.bin", data), f"ward:{name}", "--to", scene.key_file)
        return keys_of((scene.folder / "open" / name).read_bytes(), scene.identity, scene.public, "bundle")
    if kind == "standard":
        (scene.folder / "open" / "scan.bin").write_bytes(data)
        view = scene.job(GetSpec("ward:scan.bin"))
        return keys_of(scene.vaulted(view), scene.identity, scene.public, "bundle")
    found = keys_of(scene.seal(name, data), scene.sender, scene.sender.public, "object")
    if kind == "run":
        view = scene.job(RunSpec(f"s3:{name}", "tensor.stats"))
        return found | keys_of(scene.vaulted(view), scene.sender, scene.public, "result")
    if kind == "crowd":
        (folder := scene.folder / "crowd" / str(trial.number)).mkdir()
        for number in range(CROWD):
            (folder / f"{number:03}.smp").write_bytes(scene.store.objects[name])
        while not workers(scene.box, "opening"):
            scene.job(RunSpec(f"crowd:{trial.number}/", "tensor.stats"))
        view = scene.job(RunSpec(f"crowd:{trial.number}/", "tensor.stats"))
        return found | keys_of(scene.vaulted(view), scene.sender, scene.public, "result")
    view = scene.job(GetSpec(f"s3:{name}"))
    if kind == "open":
        scene.box.ctl("vault", "open", view.result.vault_id, "-o", scene.folder / f"out-{trial.number}")
    return found


def _judge(scene: Scene, trials: Trials, needles: dict[str, bytes], content: bytes) -> None:
    before = {f"{name} {n}": part for n, each in enumerate(scene.retired) for name, part in private_parts(each).items()}
    in_use = IN_USE | {f"decryption key {n}" for n in range(len(scene.retired))}
    box = before | private_parts(scene.identity) | scene.unlocks | {"remote's secret": scene.remote_secret.encode()}
    for role, pid in scene.pids():
        found = find(pid, needles | box | {"content": content})
        places = {name: len(each) for name, each in found.items()}
        if role == "smpd":
            assert places == dict.fromkeys(in_use, 1), f"in smpd, besides its keys in use: {found}"
        elif role == "fetch":
            assert set(places) <= {"remote's secret"}, f"in fetch: {found}"
        elif role == "opening":  # of a key that came since it was given some it knows nothing before the next batch
            assert set(places) <= in_use - {"signing key"}, f"in opening: {found}"
            assert set(places.values()) == {1}, f"in opening: {found}"
        else:
            left = places.pop("content", 0)
            trials.figures["pieces of content left in compute, at most"] = max(
                left, trials.figures.get("pieces of content left in compute, at most", 0)
            )
            assert not places, f"in compute: {found}"


def _client(scene: Scene, trial: Trial, content: bytes, data: bytes) -> None:
    """``smpctl open`` with a passphrase, stopped at its end."""
    person, phrase = Identity.generate("person"), os.urandom(16).hex().encode()
    sealed = bytearray()
    writer = BundleWriter(sealed.extend, sender=scene.sender, recipients=[person.public])
    writer.begin("scan.bin")
    writer.write(data)
    writer.end()
    writer.finish()
    needles = private_parts(person) | keys_of(bytes(sealed), person, scene.sender.public, "object")
    needles |= {"passphrase": phrase, "content": content}
    env = {**scene.box.env, "XDG_CONFIG_HOME": str(trial.folder / "xdg")}
    secret, file = (
        scene.file("phrase", phrase + b"\n"),
        scene.file("person.key", person.to_file(passphrase=bytearray(phrase))),
    )
    for arguments in (
        ("keys", "import", file, "--name", "person"),
        ("keys", "import", scene.file("sender.pub", scene.sender.public.text().encode()), "--name", "sender"),
    ):
        subprocess.run([sys.executable, "-m", "smpctl", *map(str, arguments)], env=env, check=True, capture_output=True)
    arguments = [
        "open",
        scene.file("object.smp", bytes(sealed)),
        "-o",
        trial.folder / "out",
        "--passphrase-file",
        secret,
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", _STOPPED, *map(str, arguments)],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "smpctl ended without stopping"
        assert (trial.folder / "out" / "scan.bin").read_bytes() == data
        found = find(process.pid, needles)
        assert not found, f"in smpctl: {found}"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def run(trials: Trials) -> None:
    """Half of the trials with a credential, half with a passphrase; jobs of all kinds in turn."""
    with ExitStack() as stack:
        store, served = stack.enter_context(gated_s3({}))
        scenes: dict[bool, Scene] = {}
        for trial in trials:
            with trial:
                passphrase = trial.number >= trials.experiment.trials // 2
                if passphrase not in scenes:
                    scene = Scene(trials.folder / f"box-{passphrase}", store, served, passphrase=passphrase)
                    scene.start(stack)
                    scenes[passphrase] = scene
                scene = scenes[passphrase]
                kind = KINDS[trial.number % len(KINDS)]
                mark = trial.rng.randbytes(8)
                length = trial.rng.choice((trial.rng.randrange(100, 9000), trial.rng.randrange(MIB // 4, 3 * MIB)))
                length = min(length, 3000) if kind == "crowd" else length
                data = (mark * (length // 8 + 1))[:length]
                if kind == "smpctl":
                    _client(scene, trial, mark * 3, data)
                else:
                    _judge(scene, trials, _use(scene, trial, kind, data), mark * 3)


def _planted(fault: str) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def plant() -> Iterator[None]:
        with planting(f"torture.faults.secrets:{fault}"):
            yield

    return plant


EXPERIMENT = Experiment(
    "R18",
    "keys, passphrases and content looked for in the memory of smpd, its workers and smpctl after use",
    "0 copies; of the private keys in use one each, in OpenSSL's objects",
    20,
    4,
    run,
    {"a file key kept as bytes": _planted("keep_file_key"), "the credential not wiped": _planted("keep_credential")},
    1,
    lambda: "" if os.geteuid() == 0 else "reading another process's memory needs root",
)
