"""R17: processors that go wrong in every way, one after the other at one daemon; a good job follows each.

Four of five trials try a way out of the compute process, which must be refused with the process going on. The fifth does
harm: its job must end with the error that says so. The daemon stays up, and its memory flat.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from box import Box
from compute.harness import HOSTILE, install_hostile
from compute.hostile_escapes import ACTS, OTHERWISE
from scene import done

from smp_proto.control import JobView, LocalConfig, RunSpec
from smp_proto.sealed.bundle import BundleReader, BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpctl import Client
from smpd.host.memory import usage
from smpd.walls.sandbox import Kernel
from torture.harness import Experiment, Trials
from torture.planted import planting

MIB = 1 << 20
GROWTH_BYTES = 32 * MIB
MEMORY_BYTES = 384 * MIB
HARM = (
    ("hostile.crashes", "worker_died"),
    ("hostile.spins", "processor_timeout"),
    ("hostile.allocates", "device_memory"),
    ("hostile.leaks", ""),  # each run keeps some; it is replaced before there is an error
    ("hostile.threads", "processor_failed"),
    ("hostile.sleeps", "processor_timeout"),
    ("hostile.objects", "device_memory"),
    ("hostile.signals", "worker_died"),
    ("hostile.exits", "processor_failed"),
    ("hostile.raises", "processor_failed"),
)
FIRST = ("signal_by_a_socket", "sockets_of_all", "outlive_the_daemon", "uncounted_memory")
ESCAPES = (*FIRST, *(act for act in ACTS if act not in FIRST))


class Scene:
    """A box with the hostile distribution, a good object, and who can read the results."""

    def __init__(self, trials: Trials, stack: ExitStack) -> None:
        folder = trials.folder
        plugins, stored = folder / "plugins", folder / "stored"
        plugins.mkdir()
        stored.mkdir()
        install_hostile(plugins)
        settings = {"processors": list(HOSTILE), "slots": 2, "memory_bytes": MEMORY_BYTES, "timeout_s": 3.0}
        config: dict[str, dict[str, Any]] = {
            "compute": {**settings, "sandbox": "required"},
            "fetch": {"processes": 1, "slots": 2, "slot_bytes": MIB},
            "jobs": {"attempts": 1},
        }
        self.box = Box(folder / "box", config)
        self.box.env["PYTHONPATH"] = str(plugins)
        stack.callback(self.box.close)
        self.box.start()
        self.client = stack.enter_context(Client(str(self.box.socket)))
        self.public = PublicIdentity.parse(self.client.box_key().text)
        self.sender = Identity.generate("sender")
        self.client.trust_add("sender", self.sender.public.text())
        self.client.remote_add("disk", LocalConfig(str(stored)))
        sealed = bytearray()
        writer = BundleWriter(sealed.extend, sender=self.sender, recipients=[self.public])
        writer.begin("scan.bin")
        writer.write(bytes(range(256)))
        writer.end()
        writer.finish()
        (stored / "scan.smp").write_bytes(sealed)

    def run(self, processor: str, **params: str) -> JobView:
        """Run one over the good object."""
        return self.client.wait(self.client.submit(RunSpec("disk:scan.smp", processor, params=params)).id)

    def result(self, view: JobView) -> bytes:
        """What the one entry of a result holds."""
        found = bytearray()
        (path,) = (self.box.state / "vault" / "objects").glob(f"{done(view).result.vault_id}*")
        data = path.read_bytes()

        def read_into(offset: int, into: memoryview) -> None:
            into[:] = data[offset : offset + len(into)]

        with BundleReader(read_into, len(data), identities=[self.sender], trust=lambda _: self.public) as reader:
            reader.extract(lambda entry, offset, part: found.extend(part))
        return bytes(found)

    def memory(self) -> int:
        """What the daemon uses, in bytes."""
        assert self.box.process
        assert self.box.process.poll() is None
        return usage(self.box.process.pid).resident_bytes


def run(trials: Trials) -> None:
    """All at one daemon, which is warm before its memory is first looked at."""
    with ExitStack() as stack:
        scene = Scene(trials, stack)
        done(scene.run("hostile.sums"))
        before = scene.memory()
        for trial in trials:
            with trial:
                try:
                    if trial.number % 5 == 4:
                        _harm(scene, *HARM[trial.number // 5 % len(HARM)])
                    else:
                        _escape(scene, ESCAPES[(trial.number - trial.number // 5) % len(ESCAPES)])
                finally:
                    total = scene.result(scene.run("hostile.sums"))
                assert total.endswith(sum(range(256)).to_bytes(8, "little")), "the next job went wrong"
                grown = scene.memory() - before
                trials.figures["smpd grew by at most, MiB"] = max(
                    trials.figures.get("smpd grew by at most, MiB", 0), grown // MIB
                )
                assert grown < GROWTH_BYTES, f"smpd grew by {grown} bytes"


def _escape(scene: Scene, act: str) -> None:
    ended = scene.result(scene.run("hostile.escape", which=act)).decode()
    assert ended == OTHERWISE.get(act, "PermissionError"), f"{act} ended in {ended}"


def _harm(scene: Scene, processor: str, code: str) -> None:
    if not code:
        held = [int(scene.result(scene.run(processor))) for _ in range(8)]
        assert max(held) < len(held), f"one process kept what {held} runs left"
        return
    view = scene.run(processor)
    assert view.state == "failed", view
    assert view.error.code == code, view.error
    assert processor in view.error.message or "processor" in view.error.message, view.error
    assert view.error.hint, view.error


def _missing() -> str:
    kernel = Kernel.probe()
    return "" if kernel.landlock_abi and kernel.seccomp else "this kernel lacks a wall"


def _planted(fault: str) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def plant() -> Iterator[None]:
        with planting(f"torture.faults.walls:{fault}"):
            yield

    return plant


EXPERIMENT = Experiment(
    "R17",
    "processors that try 40 ways out, and 10 that hang, spin, leak, crash, die, take all memory or all threads",
    "the job fails with the right error or the act is refused; the next job runs; smpd grows by less than 32 MiB",
    50,
    4,
    run,
    {"a compute process without its filter of system calls": _planted("no_seccomp")},
    1,
    _missing,
)
