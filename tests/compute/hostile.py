"""Processors that do what a processor must not, and a few that do what one may. Copied to a folder of its own."""

import contextlib
import ctypes
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import hostile_escapes
import msgspec
import torch

from smpd.processors import Output, Refused, processor

libc = ctypes.CDLL(None, use_errno=True)


class Path(msgspec.Struct):
    path: str


class Number(msgspec.Struct):
    pid: int = 0


def _tried(act):
    """What an act ended in, by the name of the error."""
    try:
        result = act()
    except BaseException as error:  # noqa: BLE001 - SystemExit is an answer too
        return type(error).__name__
    return f"done: {result!r}"[:200]


def _call(*arguments):
    libc.syscall.restype = ctypes.c_long
    if libc.syscall(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return 0


def _report(**acts):
    return Output("report.json", msgspec.json.encode({name: _tried(act) for name, act in acts.items()}))


@processor("hostile.files", params=Path)
def files(item, ctx):
    path = ctx.params.path
    return _report(
        read=lambda: open(path).read(),
        append=lambda: open(path, "a"),
        create=lambda: open(path + ".new", "w"),
        remove=lambda: os.unlink(path),
        truncate=lambda: os.truncate(path, 0),
        chmod=lambda: os.chmod(path, 0o777),
        utime=lambda: os.utime(path),
        rename=lambda: os.rename(path, path + ".2"),
        link=lambda: os.link(path, path + ".3"),
        mkdir=lambda: os.mkdir(path + ".4"),
        listing=lambda: os.listdir(os.path.dirname(path)),
        shadow=lambda: open("/etc/shadow").read(),
        home=lambda: os.listdir(os.path.expanduser("~")),
        shm=lambda: open(f"/dev/shm/smp-{os.getpid()}", "w"),
        own_code=lambda: open(__file__, "a"),
        parent_memory=lambda: open(f"/proc/{os.getppid()}/mem", "rb"),
        parent_environment=lambda: open(f"/proc/{os.getppid()}/environ", "rb").read(),
        allowed=lambda: bool(open(__file__).read()) and os.memfd_create("x") > 0 and open("/dev/null", "w").write("x"),
    )


@processor("hostile.network", params=Number)
def network(item, ctx):
    port = ctx.params.pid
    return _report(
        inet=lambda: socket.create_connection(("127.0.0.1", port), 5),
        inet6=lambda: socket.socket(socket.AF_INET6),
        udp=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        unix=lambda: socket.socket(socket.AF_UNIX),
        netlink=lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        packet=lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        vsock=lambda: socket.socket(socket.AF_VSOCK),
        datagrams=lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
        connect=lambda: socket.socketpair()[0].connect("\0abstract"),
        bind=lambda: socket.socketpair()[0].bind("\0abstract"),
        io_uring=lambda: _call(425, 4, ctypes.create_string_buffer(120)),
        allowed=_pair,
    )


@processor("hostile.processes", params=Number)
def processes(item, ctx):
    parent, machine = os.getppid(), os.uname().machine == "x86_64"
    buffer = ctypes.create_string_buffer(256)
    return _report(
        fork=os.fork,
        vfork=lambda: _call(58) if machine else os.fork(),
        clone=lambda: _call(56 if machine else 220, signal.SIGCHLD, 0, 0, 0, 0),
        clone3=lambda: _call(435, buffer, 88),
        execute=lambda: os.execv("/bin/true", ["true"]),
        run=lambda: subprocess.run(["/bin/true"]),
        trace=lambda: _call(101 if machine else 117, 16, parent, 0, 0),
        read_memory=lambda: _call(310 if machine else 270, parent, buffer, 1, buffer, 1, 0),
        kill=lambda: os.kill(parent, 0),
        kill_group=lambda: os.kill(0, 0),
        kill_all=lambda: os.kill(-1, 0),
        queue=lambda: _call(129 if machine else 138, parent, 0, buffer),
        pidfd=lambda: os.pidfd_open(parent),
        limit=lambda: _call(302 if machine else 261, parent, 7, None, buffer),
        unshare=lambda: _call(272 if machine else 97, 0x10000000),
        mount=lambda: _call(165 if machine else 40, b"x", b"/mnt", b"tmpfs", 0, 0),
        bpf=lambda: _call(321 if machine else 280, 0, 0, 0),
        keys=lambda: _call(250 if machine else 219, 0, -3, 0),
        shared=lambda: _call(29 if machine else 194, 5, 4096, 0o1000),
        future=lambda: _call(499),
        x32=lambda: _call(0x40000000 | 39) if machine else _call(499),
        become_root=lambda: os.setuid(0) if os.getuid() else os.chroot("/"),
        allowed=lambda: os.kill(os.getpid(), 0),
        thread=_start_thread,
    )


def _pair():
    one, other = socket.socketpair()
    return one.send(b"x") and other.recv(1)


class Which(msgspec.Struct):
    which: str


@processor("hostile.escape", params=Which)
def escape(item, ctx):
    return Output("ended", _tried(hostile_escapes.ACTS[ctx.params.which]).encode())


@processor("hostile.descriptors")
def descriptors(item, ctx):
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return Output("fds", "\n".join(found).encode())


def _start_thread():
    done = []
    thread = threading.Thread(target=lambda: done.append(_tried(os.fork)))
    thread.start()
    thread.join()
    return done


@processor("hostile.names")
def names(item, ctx):
    """What NVIDIA's driver does to its threads, and what else could be read or written beside that."""
    done, task = threading.Event(), f"/proc/self/task/{threading.get_native_id()}"
    thread = threading.Thread(target=done.wait)
    thread.start()
    other = f"/proc/self/task/{thread.native_id}/comm"
    try:
        return _report(
            name=lambda: os.write(os.open(other, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), b"driver"),
            connections=lambda: open(f"{task}/net/tcp").read(),
            mounts=lambda: open(f"{task}/mountinfo").read(),
            memory=lambda: open(f"{task}/mem", "rb"),
            environment=lambda: open("/proc/self/environ").read(),
            clear=lambda: open("/proc/self/clear_refs", "w"),
            folder=lambda: os.listdir("/proc/self/task"),
            spared=lambda: os.write(os.open(f"{task}/oom_score_adj", os.O_WRONLY), b"-900"),
        )
    finally:
        done.set()


@processor("hostile.raises")
def raises(item, ctx):
    raise ValueError(f"cannot read {item.name}")


@processor("hostile.refuses")
def refuses(item, ctx):
    raise Refused("there is\nno lung in this")


@processor("hostile.exits")
def exits(item, ctx):
    sys.exit("Doe^Jane")


@processor("hostile.swallows", stream=True)
def swallows(item, ctx):
    while True:
        try:
            for _ in item:
                pass
            time.sleep(0.05)
        except Exception:  # noqa: BLE001 - on purpose
            pass


@processor("hostile.dawdles", stream=True)
def dawdles(item, ctx):
    for _ in item:
        time.sleep(0.3)


@processor("hostile.works", group=True)
def works(items, ctx):
    time.sleep(0.3)
    return Output("done", b"")


@processor("hostile.spins")
def spins(item, ctx):
    while True:
        pass


@processor("hostile.sleeps")
def sleeps(item, ctx):
    yield Output("begun", b"")
    time.sleep(3600)


@processor("hostile.allocates")
def allocates(item, ctx):
    held = []
    while True:
        held.append(torch.ones(64 << 20, dtype=torch.uint8, device=ctx.device))


@processor("hostile.objects")
def objects(item, ctx):
    held = []
    while True:
        held.append(bytearray(1 << 20))


@processor("hostile.leaks")
def leaks(item, ctx):
    held = globals().setdefault("LEAKED", [])
    held.append(bytearray(b"x") * (64 << 20))
    return Output("held", str(len(held)).encode())


@processor("hostile.threads")
def threads(item, ctx):
    while True:
        threading.Thread(target=threading.Event().wait, daemon=True).start()


@processor("hostile.asserts")
def asserts(item, ctx):
    """On a GPU an index that is out of bounds is found by the kernel, and no call of this process works after it."""
    return Output("never", torch.zeros(1, device=ctx.device)[torch.tensor([5], device=ctx.device)])


@processor("hostile.uses")
def uses(item, ctx):
    """What processors use of a device: its libraries, each loaded at its first call, and kernels made at run time."""
    square = torch.rand(512, 512, device=ctx.device)
    picture = square.expand(1, 3, 512, 512)
    kernel = torch.rand(8, 3, 5, 5, device=ctx.device)
    interpolate, convolve = torch.nn.functional.interpolate, torch.nn.functional.conv2d
    return _report(
        product=lambda: bool((square @ square).isfinite().all()),
        convolution=lambda: bool(convolve(picture, kernel).isfinite().all()),
        transform=lambda: bool(torch.fft.fft2(square).abs().isfinite().all()),
        singular=lambda: bool(torch.linalg.svdvals(square[:64, :64]).isfinite().all()),
        sort=lambda: bool(square.flatten().sort()[0].isfinite().all()),
        resize=lambda: bool(interpolate(picture, size=(70, 90), mode="bilinear", antialias=True).isfinite().all()),
        much=lambda: int(torch.ones(1 << 30, dtype=torch.uint8, device=ctx.device).sum()) == 1 << 30,
        pinned=lambda: torch.empty(1 << 20, pin_memory=True).is_pinned(),
    )


@processor("hostile.leaves")
def leaves(item, ctx):
    """Leave a pattern in memory that the allocator of torch gives back at the job's end."""
    held = torch.full((256 << 20,), 0xA7, dtype=torch.uint8, device=ctx.device)
    return Output("sum", str(int(held.sum())).encode())


@processor("hostile.finds")
def finds(item, ctx):
    """How much of all the memory that can be had shows the pattern of ``hostile.leaves``."""
    held, found, size = [], 0, 1 << 30
    while size >= 256 << 20:
        try:
            held.append(torch.empty(size, dtype=torch.uint8, device=ctx.device))
        except torch.OutOfMemoryError:
            size //= 2
    del held[-1]
    torch.cuda.empty_cache()  # room for what comparing takes: nine bytes for each that is compared
    for block in held:
        for part in block.split(8 << 20):
            found += int((part == 0xA7).sum())
    return Output("found", str(found).encode())


@processor("hostile.crashes")
def crashes(item, ctx):
    ctypes.string_at(8)


@processor("hostile.prints")
def prints(item, ctx):
    sys.stdout.write("printed " + item.name + "\n")
    sys.stdout.flush()
    os.write(2, b"written " + item.name.encode() + b"\n")


@processor("hostile.signals")
def signals(item, ctx):
    os.kill(os.getpid(), signal.SIGKILL)


@processor("hostile.sums", group=True)
def sums(items, ctx):
    yield Output("sum.npy", torch.tensor([item.data.long().sum() for item in items]), attributes={"n": len(items)})


@processor("hostile.peeks", group=True, stream=True)
def peeks(items, ctx):
    firsts = [bytes(next(iter(item), torch.zeros(0, dtype=torch.uint8))[:1].tolist()) for item in items]
    return Output("firsts", b"".join(firsts))


@processor("hostile.litters")
def litters(item, ctx):
    return Output("collects", str(gc.isenabled()).encode())


@processor("hostile.windows", stream=True)
def windows(item, ctx):
    for number, window in enumerate(item):
        yield Output(f"{item.name}/{number}", bytes(window.tolist()))


@processor("hostile.keeps")
def keeps(item, ctx):
    previous, globals()["KEPT"] = globals().get("KEPT"), item.data
    return Output("kept", bytes(previous.tolist()) if previous is not None else b"none")


@processor("hostile.empties")
def empties(item, ctx):
    return (Output(f"{n}", b"") for n in range(3000))


@processor("hostile.nothing")
def nothing(item, ctx):
    return None


@processor("hostile.nonsense", params=Which)
def nonsense(item, ctx):
    deep = {}
    for _ in range(20):
        deep = {"a": deep}
    return {
        "text": "text",
        "tensor": torch.ones(2),
        "number": 5,
        "list": [Output("a", b""), 5],
        "twice": [Output("a", b""), Output("a", b"")],
        "absolute": Output("/etc/x", b""),
        "dots": Output("a/../b", b""),
        "control": Output("a\nb", b""),
        "backslash": Output("a\\b", b""),
        "surrogate": Output("a\ud800", b""),
        "long": Output("a" * 300, b""),
        "no_name": Output(None, b""),
        "data": Output("a", {"no": "data"}),
        "type": Output("a", b"", "t\u00e4xt"),
        "attributes": Output("a", b"", attributes={"a": object()}),
        "deep": Output("a", b"", attributes=deep),
        "big": Output("a", b"", attributes={"a": 1 << 70}),
        "png": Output("a", torch.ones(3, 3), "image/png"),
        "float8": Output("a", torch.zeros(3, dtype=torch.float8_e5m2)),
    }[ctx.params.which]
