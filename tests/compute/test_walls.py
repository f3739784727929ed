"""What a processor must not do is denied by the kernel, and the process goes on."""

import json
import os
import socket
import struct
from pathlib import Path

import pytest
from compute.harness import HOSTILE, Entry, compute

from smp_proto.errors import ResourceError, SmpError, UsageError
from smpd.walls import seccomp
from smpd.walls.sandbox import WALLS

ONE = [Entry("a", b"x")]
REFUSED = {"PermissionError"}
WITH_A_LEAK = """
import os, sys
from smpd.compute.__main__ import main
leaked = os.open("/etc/hosts", os.O_RDONLY), os.dup2(os.open("/etc/hosts", os.O_RDONLY), 500)
os._exit(main(sys.argv[1:]))
"""
WITH_A_NODE = """
import os, sys
from smpd.compute import sandbox
from smpd.compute.__main__ import main
sandbox._DEVICES = ("/dev/null",)
os._exit(main(sys.argv[1:]))
"""
WITHOUT_A_NODE = WITH_A_NODE.replace("/dev/null", "/dev/none")
FAKE_KERNEL = """
import os, sys
from smpd.compute.__main__ import main
from smpd.walls.sandbox import Kernel
os._exit(main(sys.argv[1:], Kernel(os.uname().machine, {abi}, {seccomp})))
"""


async def _report(worker, processor, **params):
    _, [result] = await worker.run(processor, ONE, **params)
    return json.loads(result.data)


async def test_files_are_out_of_reach(plugins, tmp_path):
    """No file but code can be read and none at all written, removed, renamed or changed in any way."""
    key = tmp_path / "identity.key"
    key.write_text("secret")
    async with compute(*HOSTILE, plugins=plugins, shared=True) as worker:
        assert worker.ready.sandbox == dict.fromkeys(WALLS, "on")
        report = await _report(worker, "hostile.files", path=str(key))
    assert report.pop("allowed") == "done: 1"
    assert report.pop("home") in REFUSED | {"FileNotFoundError"}  # whose that is may not be found out
    assert set(report.values()) == REFUSED, report
    assert sorted(p.name for p in tmp_path.iterdir()) == ["identity.key"]
    assert key.read_text() == "secret"
    assert "KEPT" in (plugins / "hostile.py").read_text()


async def test_a_driver_may_name_its_threads(plugins):
    """With a device node (a stand-in for a GPU's) threads can be named, as CUDA needs; nothing more can be read."""
    async with compute("hostile.names", plugins=plugins, code=WITH_A_NODE) as worker:
        report = await _report(worker, "hostile.names")
    assert report.pop("name") == "done: 6"
    assert set(report.values()) == REFUSED, report
    async with compute("hostile.names", plugins=plugins, device="cpu", code=WITHOUT_A_NODE) as worker:
        assert set((await _report(worker, "hostile.names")).values()) == REFUSED


async def test_there_is_no_network(plugins):
    """No socket of any family can be made, not even to a listener on this machine; a pair of streams can."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with compute(*HOSTILE, plugins=plugins, shared=True) as worker:
            report = await _report(worker, "hostile.network", pid=listener.getsockname()[1])
    assert report.pop("allowed") == "done: b'x'"
    assert set(report.values()) == REFUSED, report


async def test_other_processes_are_out_of_reach(plugins):
    """No process can be made, traced, read, signalled or limited; threads can be made, and are walled in too."""
    async with compute(*HOSTILE, plugins=plugins, shared=True) as worker:
        report = await _report(worker, "hostile.processes")
        assert report.pop("allowed") == "done: None"
        assert report.pop("thread") == "done: ['PermissionError']"
        assert {report.pop(name) for name in ("clone3", "future", "x32")} == {"OSError"}  # ENOSYS
        assert set(report.values()) == REFUSED, report
        assert worker.process.poll() is None


async def test_the_process_is_not_open_to_others(plugins):
    """No core dump, no new privilege, no capability, one seccomp filter, and no descriptor beside its own."""
    async with compute("hostile.descriptors", plugins=plugins, code=WITH_A_LEAK) as worker:
        folder = f"/proc/{worker.process.pid}"
        core = next(line for line in _lines(f"{folder}/limits") if line.startswith("Max core file size"))
        tasks = [f"{folder}/task/{name}/status" for name in os.listdir(f"{folder}/task")]
        modes = {line for task in tasks for line in _lines(task) if line.startswith(("Seccomp:", "NoNewPrivs:"))}
        capabilities = {line.split()[1] for task in tasks for line in _lines(task) if line.startswith("CapEff:")}
        _, [result] = await worker.run("hostile.descriptors", ONE)
    assert core.split()[4:6] == ["0", "0"]
    assert capabilities == {"0" * 16}
    assert b"memfd:plain" in result.data
    assert b"/etc/hosts" not in result.data
    assert modes == {"Seccomp:\t2", "NoNewPrivs:\t1"}


def _lines(path):
    with open(path) as file:
        return file.read().splitlines()


@pytest.mark.parametrize(("abi", "filters", "wall"), [(0, True, "landlock"), (7, False, "seccomp")])
async def test_a_kernel_without_a_wall(plugins, abi, filters, wall):
    """``required`` refuses to start and names the wall; ``auto`` starts and says why it is not up."""
    code = FAKE_KERNEL.format(abi=abi, seccomp=filters)
    with pytest.raises(ResourceError) as caught:
        async with compute("digest", code=code, sandbox="required"):
            pass
    assert (caught.value.code, wall in caught.value.message) == ("sandbox", True)
    async with compute("digest", code=code, sandbox="auto") as worker:
        assert {name for name, state in worker.ready.sandbox.items() if state != "on"} == {wall}
        assert "kernel" in worker.ready.sandbox[wall]
        assert (await worker.run("digest", ONE))[0].outputs == 2


async def test_off_is_said(plugins, tmp_path):
    """Without a sandbox nothing is denied, and both the walls and the notes say so."""
    key = tmp_path / "k"
    key.write_text("secret")
    async with compute("hostile.files", plugins=plugins, sandbox="off") as worker:
        assert set(worker.ready.sandbox.values()) == {"off by configuration"}
        assert any("sandbox is off" in note for note in worker.ready.notes)
        assert (await _report(worker, "hostile.files", path=str(key)))["read"] == "done: 'secret'"
        Path(f"/dev/shm/smp-{worker.process.pid}").unlink()  # that one was let be made, too


async def test_wrong_settings_are_refused():
    """An unknown mode or device is told with what there is; a device that is not here, with why."""
    for options, said in (({"sandbox": "on"}, "required"), ({"device": "tpu"}, "cuda"), ({"device": "rocm"}, "ROCm")):
        with pytest.raises(UsageError) as caught:
            async with compute("digest", **options):
                pass
        assert caught.value.code == "bad_config"
        assert said in caught.value.message + caught.value.hint


async def test_what_is_printed_goes_nowhere(plugins, tmp_path):
    """Neither standard output nor standard error of a processor reaches the journal."""
    fd = os.open(tmp_path / "stderr", os.O_RDWR | os.O_CREAT)
    async with compute("hostile.prints", plugins=plugins, stderr=fd) as worker:
        await worker.run("hostile.prints", [Entry("Doe^Jane", b"x")])
    assert os.fstat(fd).st_size == 0
    os.close(fd)


async def test_only_listed_processors_of_good_distributions(plugins):
    """Unknown, misnamed, broken and ambiguous processors are refused by name."""
    cases = {
        "digset": ("no_such_processor", "digest"),
        "wrong.name": ("bad_config", "@processor"),
        "wrong.import": ("bad_config", "ModuleNotFoundError"),
        "digest": ("bad_config", "secure-media-processor and smp-hostile"),
    }
    for name, (code, said) in cases.items():
        with pytest.raises(SmpError) as caught:
            async with compute(name, plugins=plugins):
                pass
        assert (caught.value.code, said in caught.value.message + caught.value.hint) == (code, True), caught.value


def _interpret(code, number, arch, arguments):
    """A classic BPF interpreter for the few operations the filter uses (Documentation/networking/filter.rst)."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments)
    accumulator, at = 0, 0
    while True:
        operation, yes, no, k = struct.unpack_from("=HBBI", code, at * 8)
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x06:
            return k
        else:
            taken = {0x15: accumulator == k, 0x25: accumulator > k, 0x45: bool(accumulator & k)}[operation]
            at += yes if taken else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_decides_as_its_table_says(machine):
    """On both architectures each named call is refused, each other one allowed, and a foreign architecture killed."""
    code = seccomp.program(machine, 1234)
    column, arch = list(seccomp.AUDIT_ARCH).index(machine), seccomp.AUDIT_ARCH[machine]
    allow, eperm, enosys = 0x7FFF0000, 0x50001, 0x50026

    def decide(number, *arguments):
        return _interpret(code, number, arch, [*arguments, 0, 0, 0, 0, 0, 0][:6])

    refused = {numbers[column] for numbers in seccomp.REFUSED.values()}
    clone, pair, limits = (56, 53, 302) if column == 0 else (220, 199, 261)
    signals = {62, 234, 129, 297} if column == 0 else {129, 131, 138, 240}
    own = (142, 144, 203, 314) if column == 0 else (118, 119, 122, 274)
    kinds = {141: 0, 251: 1} if column == 0 else {140: 0, 30: 1}
    told = (157, 72, 16, 9) if column == 0 else (167, 25, 29, 222)
    for number in range(seccomp.LAST_KNOWN + 1):
        if number == 435:
            assert decide(number) == enosys
        elif number not in {clone, pair, limits, *own, *kinds, *told} | signals:
            assert decide(number) == (eperm if number in refused else allow), number
    assert decide(clone, 0x3D0F00) == allow  # what pthread_create passes
    assert decide(clone, 17) == decide(clone, 0x4111) == eperm
    assert decide(pair, 1, 0x80801) == decide(pair, 1, 5) == allow
    assert decide(pair, 1, 2) == decide(pair, 2, 1) == eperm
    assert {decide(number, 1234) for number in signals} == {allow}
    assert {decide(number, pid) for number in signals for pid in (0, 1, 2**32 - 1)} == {eperm}
    assert decide(limits, 0) == decide(limits, 1234) == allow
    assert decide(limits, 1) == eperm
    for number in own:
        assert decide(number, 0) == decide(number, 1234) == allow
        assert decide(number, 1) == decide(number, 2**32 - 1) == eperm
    for number, kind in kinds.items():
        assert decide(number, kind, 0) == decide(number, kind, 1234) == allow
        assert decide(number, kind, 1) == decide(number, kind + 1, 0) == eperm
    prctl, fcntl, ioctl, mmap = told
    assert {n for n in range(70) if decide(prctl, n) == eperm} == {1, 4, 35, 36}
    assert decide(prctl, 0x59616D61) == eperm
    assert {n for n in range(2000) if decide(fcntl, 3, n) == eperm} == {8, 10, 15, 1024, 1026}
    assert {n for n in range(0x5400, 0x8980) if decide(ioctl, 0, n) == eperm} == {
        *(0x540E, 0x5410, 0x5412, 0x541C, 0x5423, 0x8901, 0x8902)
    }
    assert decide(mmap, 0, 9, 3, 0x22) == decide(mmap, 0, 9, 3, 0x21) == decide(mmap, 0, 9, 3, 0x1) == allow
    assert decide(mmap, 0, 9, 3, 0x122) == eperm
    closed = seccomp.program(machine, 1234, shared_memory=False)
    arguments = [(0, 9, 3, flags, 0, 0) for flags in (0x22, 0x1, 0x3, 0x20022, 0x21, 0x23, 0x8021, 0x122)]
    assert [_interpret(closed, mmap, arch, each) for each in arguments] == [allow] * 4 + [eperm] * 4
    assert decide(463) == decide(0x40000000) == decide(2**32 - 1) == enosys
    assert _interpret(code, 0, 0x40000003, [0] * 6) == 0x80000000
