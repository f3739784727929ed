"""Hardening, memory figures and logs, in real processes where they change one."""

import io
import json
import logging
import mmap
import os
import subprocess
import sys

import anyio
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from smpd.host.logs import FORBIDDEN, REMOVED, configure_logs, remove_forbidden
from smpd.host.memory import hidden_usage, machine_bytes, usage
from smpd.host.process import cpu_seconds, lock_memory
from smpd.links.starting import environment
from smpd.transfer.bounds import Bounds

HARDEN = """
import ctypes, os, resource
from smpd.host.process import harden
harden()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE), oct(os.umask(0)))
"""


def test_harden():
    """Afterwards the process is not dumpable, has no core dumps and makes files for itself only."""
    done = subprocess.run([sys.executable, "-c", HARDEN], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 (0, 0) 0o77"


BOUND = """
import os
from smpd.host.process import bind_now
before = os.environ.get("LD_BIND_NOW")
bind_now()
print(os.getpid(), before, os.environ["LD_BIND_NOW"])
"""


def test_bind_now():
    """The same process, the same program; what it was started with is the environment that it has afterwards."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_BIND_NOW"}
    for each in (environment, environment | {"LD_BIND_NOW": "1"}, environment | {"LD_BIND_NOW": ""}):
        with subprocess.Popen([sys.executable, "-c", BOUND], env=each, stdout=subprocess.PIPE, text=True) as started:
            assert started.communicate()[0].split() == [str(started.pid), "1", "1"]


# A secret that is nowhere but in one mapping is copied to another; then functions are called for the first time.
COPYING = """
import ctypes, mmap, os
size = 330
secret, other = mmap.mmap(-1, size), mmap.mmap(-1, size)
masked = os.urandom(size)
for i in range(size):
    secret[i] = masked[i] ^ 0x5A
source, target = (ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in (secret, other))
copy = ctypes.memmove
copy(target, source, 1)
for first in (os.getloadavg, lambda: os.getpgid(0), os.ctermid, lambda: os.getpriority(0, 0), lambda: os.nice(0)):
    copy(target, source, size)
    first()
line = next(each for each in open("/proc/self/maps") if each.endswith("[stack]\\n"))
start, end = (int(each, 16) for each in line.split()[0].split("-"))
with open("/proc/self/mem", "rb", 0) as memory:
    memory.seek(start)
    stack = memory.read(end - start)
print(sum(bytes(each ^ 0x5A for each in masked[at : at + 16]) in stack for at in range(size - 16)))
"""


def test_nothing_that_was_copied_stays_on_the_stack():
    """In the environment of a worker the linker saves no registers. Without, on most machines, this finds some hundred."""
    command = [sys.executable, "-c", COPYING]
    done = subprocess.run(command, env=environment("opening"), capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_lock_memory():
    """Locking a buffer shows in VmLck, or says that it could not; an empty one is no question."""
    buffer = bytearray(1 << 16)
    assert lock_memory(buffer) in (True, False)
    assert lock_memory(bytearray())
    buffer.append(1)  # no export is left behind


def test_peak_rss():
    """The peak of a living process is what it used; a process that is gone has none."""
    now = usage(os.getpid())
    assert now.peak_bytes >= now.resident_bytes > 1 << 20
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not any(usage(child.pid))


def test_usage_counts_what_is_hidden():
    """Memory without a name counts, private or shared; a process that is gone has none."""
    before = usage(os.getpid())
    size = 8 << 20
    own = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # fresh: an array may be made of what this process has already
    with mmap.mmap(-1, size) as shared, mmap.mmap(-1, size, flags=own) as private:
        for start in range(0, size, mmap.PAGESIZE):
            shared[start] = private[start] = 1
        now = usage(os.getpid())
        assert now.memory_bytes - before.memory_bytes > 2 * size * 3 // 4  # the kernel counts in batches
    assert before.threads >= 1
    assert not any(usage(0))


def test_memory_is_seen_when_the_first_thread_has_ended():
    """What a process takes counts, also where it hides behind the thread that /proc shows first."""
    code = """
import ctypes, mmap, os, threading
def work():
    while open(f"/proc/self/task/{os.getpid()}/stat").read().rpartition(")")[2].split()[0] != "Z":
        os.sched_yield()
    print("ended", flush=True)
    input()
taken = mmap.mmap(-1, 32 << 20)
taken.write(bytes(32 << 20))
threading.Thread(target=work).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ended\n"
            assert not usage(process.pid).memory_bytes
            found = hidden_usage(process.pid)
            assert found.memory_bytes > 32 << 20
            error = anyio.run(Bounds(0, 16 << 20, 100).exceeded, process.pid)
            assert (error and error.code) == "device_memory"
            assert found.peak_bytes >= found.resident_bytes > 32 << 20
            assert found.threads == 2
        finally:
            process.kill()


@pytest.mark.parametrize(("limits", "expected"), [({}, 8 << 30), ({"a": "max", "": "3072"}, 3072), ({"a/b": "7"}, 7)])
def test_the_machine_is_no_larger_than_its_control_group(tmp_path, limits, expected):
    """The least of the machine's memory and of what the groups above this process allow."""
    for name, text in {"proc/meminfo": "MemTotal: 8388608 kB\n", "proc/self/cgroup": "1:x:/y\n0::/a/b\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for group, text in limits.items():
        folder = tmp_path / "sys/fs/cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(text + "\n")
    assert machine_bytes(str(tmp_path)) == expected


@pytest.fixture
def log():
    """Set up logging into a buffer, and undo it."""
    out = io.StringIO()
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]

    def start(level: str = "info", form: str = "json", **environ: str) -> io.StringIO:
        configure_logs(level, form, out, environ)
        return out

    yield start
    structlog.reset_defaults()
    root.setLevel(level)
    root.handlers[:] = handlers


def test_json_lines(log):
    """One JSON object a line, with level and time; below the level nothing."""
    out = log("warning")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud", job="j1", n=3)
    (line,) = out.getvalue().splitlines()
    shown = json.loads(line)
    assert (shown["event"], shown["level"], shown["job"], shown["n"]) == ("loud", "warning", "j1", 3)
    assert shown["timestamp"].endswith("Z")


@pytest.mark.parametrize("reason", ["full", "gone"])
def test_a_log_that_cannot_be_written_ends_nothing(reason):
    """A disk that is full, or a reader that has gone: the line is lost, and the next is tried again."""
    code = """
import os, sys, structlog
from smpd.host.logs import configure_logs
if sys.argv[1] == "full":
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
else:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 2)
configure_logs("info", "json")
for _ in range(3):
    structlog.get_logger().error("lost")
print("there", flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code, reason], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("there\n", 0)


def test_console(log):
    """The console form is for people, and keeps the same things out."""
    out = log(form="console")
    structlog.get_logger().info("hello", secret="hunter2", job="j1")
    assert "hello" in out.getvalue()
    assert "hunter2" not in out.getvalue()


def test_auto_is_json_without_a_terminal(log):
    """`auto` gives JSON where no terminal is."""
    out = log(form="auto")
    structlog.get_logger().info("x")
    assert json.loads(out.getvalue())["event"] == "x"


def test_journal_priorities(log):
    """Under the journal each line begins with its priority."""
    out = log(JOURNAL_STREAM="8:1")
    structlog.get_logger().error("bad")
    structlog.get_logger().info("fine")
    assert [line[:3] for line in out.getvalue().splitlines()] == ["<3>", "<6>"]


@given(
    st.sampled_from(sorted(FORBIDDEN)),
    st.sampled_from(["{}", "remote_{}", "X-{}", "{}"]),
    st.lists(st.sampled_from("dl"), max_size=4),
)
def test_forbidden_keys_never_show(word, form, nesting):
    """A forbidden key's value is gone at any depth, in any case, with any prefix; its neighbours stay."""
    value = {form.format(word).upper(): "hunter2", "count": 1}
    for kind in nesting:
        value = {"inner": value} if kind == "d" else [value]
    cleaned = repr(remove_forbidden(None, "", {"event": "e", "value": value}))
    assert "hunter2" not in cleaned
    assert REMOVED in cleaned
    assert "'count': 1" in cleaned


def test_identifiers_stay():
    """Keys that identify without naming are kept."""
    kept = {"event": "e", "key_id": "abc", "job_id": "j", "remote": "pacs", "code": "corrupt"}
    assert remove_forbidden(None, "", dict(kept)) == kept


def test_exceptions_show_place_and_type_only(log):
    """An exception is logged by type and place, also inside a group; its text is not."""
    out = log()
    try:
        raise ExceptionGroup("hunter2", [KeyError("hunter2"), OSError(2, "hunter2", "patient.dcm")])
    except ExceptionGroup:
        structlog.get_logger().exception("failed")
    shown = json.loads(out.getvalue())
    assert shown["exception"] == "ExceptionGroup(KeyError, FileNotFoundError)"
    assert "test_process.py" in shown["at"][0]
    assert "hunter2" not in out.getvalue()
    assert "patient" not in out.getvalue()


def test_bytes_do_not_show(log):
    """Bytes in a log call are never printed."""
    out = log()
    structlog.get_logger().info("x", blob=b"hunter2", more=[bytearray(b"hunter2")])
    assert "hunter2" not in out.getvalue()


def test_libraries_log_without_their_arguments(log):
    """A library's warning comes through with its template, not with what would be filled in."""
    out = log()
    logging.getLogger("asyncio").warning("slow %s", "patient.dcm")
    logging.getLogger("asyncio").info("chatter")
    shown = json.loads(out.getvalue())
    assert (shown["logger"], shown["template"], shown["level"]) == ("asyncio", "slow %s", "warning")


def test_cpu_seconds_are_of_the_whole_process() -> None:
    """All threads of another one, as the system counts them; of one that is not there, none."""
    code = (
        "import hashlib, os, threading, time\n"
        "threads = [threading.Thread(target=hashlib.pbkdf2_hmac, args=('sha256', b'', b'', 200_000)) for _ in range(2)]\n"
        "[each.start() for each in threads], [each.join() for each in threads]\n"
        "print(time.process_time(), flush=True), input()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = float(process.stdout.readline())
        assert told <= cpu_seconds(process.pid) < told + 0.5
        pid = process.pid
        process.communicate(b"\n")
    assert cpu_seconds(pid) == 0.0
    assert cpu_seconds(0) == 0.0


def test_what_lives_is_not_looked_through_again():
    """Nor are young objects, but now and then; in a process of its own, since this one is not to keep that."""
    code = "import gc; from smpd.host.process import collect_seldom as f; f(); print(gc.get_threshold(), gc.get_freeze_count() > 1000)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "(10000, 10, 10) True\n"
