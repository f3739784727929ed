"""The reserve: ordinary work gets none of it, the journal does, and it comes back; files and memory have limits too."""

import contextlib
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disk import no_small_disk, small_disk

from smp_proto.errors import ResourceError
from smpd.configuring import load_config
from smpd.host import bounds as memory
from smpd.host import descriptors
from smpd.host import space as room
from smpd.host.bounds import Bound
from smpd.host.space import BALLAST, COMMIT_BYTES, Space, disk_error
from smpd.links.ring import Ring

MIB = 1 << 20
DISK = 24 * MIB
RESERVE = 8 * MIB


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tmpfs of 24 MiB, where this user may mount one."""
    if reason := no_small_disk():
        pytest.skip(reason)
    with small_disk(tmp_path_factory.mktemp("disk"), DISK) as found:
        yield found.path


@pytest.fixture
def disk(mounted: Path) -> Iterator[Path]:
    """That disk, empty."""
    yield mounted
    for path in mounted.iterdir():
        path.unlink()


@pytest.fixture
def space(disk: Path) -> Iterator[Space]:
    """A reserve of 8 MiB on it."""
    with contextlib.closing(Space(str(disk), RESERVE)) as found:
        yield found


def fill(disk: Path, leave: int = 0) -> Path:
    """Somebody else's file, over all but so many bytes."""
    path = disk / "other"
    path.unlink(missing_ok=True)
    stat = os.statvfs(disk)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize - leave)
    return path


def write(path: Path, size: int) -> None:
    """Append so many bytes, or ENOSPC."""
    with path.open("ab", buffering=0) as file:
        while size:
            size -= file.write(bytes(min(size, MIB)))


def test_the_reserve_is_held(space: Space, disk: Path):
    """It holds blocks, not only a size, and again after a restart; a smaller one gives the rest back."""
    room = space.look()
    assert (room.held, room.usable) == (RESERVE, DISK - RESERVE)
    assert os.stat(disk / BALLAST).st_blocks * 512 == RESERVE
    with contextlib.closing(Space(str(disk), MIB)) as smaller:
        assert smaller.look().held == MIB


def test_a_full_disk_has_room_for_a_commit(space: Space, disk: Path):
    """When somebody else took every byte, what must be written still can be, again and again, until nothing is left."""
    fill(disk)
    with pytest.raises(OSError, match="space"):
        write(disk / "journal", 1)
    for _ in range(RESERVE // COMMIT_BYTES):
        space.spare()
        write(disk / "journal", COMMIT_BYTES)
    space.spare()
    assert space.look().held == space.look().free == 0


def test_room_that_is_there_costs_nothing(space: Space, disk: Path):
    """The ballast stays whole while the disk has room for a commit."""
    fill(disk, COMMIT_BYTES)
    space.spare()
    assert space.look().held == RESERVE


def test_where_there_is_plenty_nobody_looks_again_at_once(space: Space, monkeypatch):
    """For a tenth of a second; a disk that might be full by then is looked at each time."""
    looks, free, now = [], [4 << 30], [100.0]
    monkeypatch.setattr(space, "_free", lambda: looks.append(1) or free[0])
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    for _ in range(5):
        space.spare()
    assert len(looks) == 1
    now[0] += 0.11
    free[0] = (1 << 30) + COMMIT_BYTES - 1
    for _ in range(5):
        space.spare()
    assert len(looks) == 6


def test_it_comes_back(space: Space, disk: Path):
    """The ballast is made whole when there is space, and not out of what a commit needs."""
    other = fill(disk)
    space.spare()
    assert not space.restore()
    assert space.look().held == RESERVE - COMMIT_BYTES
    other.unlink()
    assert space.restore()
    assert space.look().held == RESERVE


def test_ordinary_work_gets_none_of_it(space: Space, disk: Path):
    """Also when the ballast gave way: what is missing of it is not there for jobs. The error says how much is missing."""
    fill(disk, 3 * MIB)
    space.require(3 * MIB, "a test")
    with pytest.raises(ResourceError) as caught:
        space.require(3 * MIB + 1, "a test")
    assert caught.value.code == "disk_full"
    assert caught.value.details == {"needed_bytes": 3 * MIB + 1, "usable_bytes": 3 * MIB}
    fill(disk)
    space.spare()
    with pytest.raises(ResourceError):
        space.require(1, "a test")
    space.require(0, "a test")


def test_claims_count(space: Space):
    """What one job set aside another does not get; it is free again afterwards, also after an error."""
    usable = space.look().usable
    with contextlib.suppress(KeyError), space.claim(usable - MIB, "one"):
        assert space.look().claimed == usable - MIB
        space.require(MIB, "two")
        with pytest.raises(ResourceError):
            space.require(MIB + 1, "two")
        raise KeyError
    assert space.look().claimed == 0


def test_files_are_allocated_one_after_the_other(space: Space, disk: Path):
    """Of many that ask at once for more than there is, as many get it as fit, and none takes of the reserve."""
    size, refused = 3 * MIB, []

    def allocate(number: int) -> None:
        fd = os.open(disk / f"spool-{number}", os.O_RDWR | os.O_CREAT)
        try:
            space.allocate(fd, size, "the spool")
        except ResourceError as error:
            refused.append(error.code)
        finally:
            os.close(fd)

    threads = [threading.Thread(target=allocate, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == ["disk_full"] * (12 - (DISK - RESERVE) // size)
    assert space.look().held == RESERVE


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EMFILE, "no_descriptors"), (5, "disk_failed")],
)
def test_errors_have_names(number: int, code: str):
    """A full disk, a quota, a lack of descriptors and a broken disk are told apart; all may pass."""
    error = disk_error(OSError(number, os.strerror(number)), "a test")
    assert error.code == code
    assert error.retryable
    assert error.hint


def test_the_limit_on_files_is_raised():
    """From a low soft limit to the hard one."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 300))\n"
        "from smpd.host.descriptors import limit, raise_limit; raise_limit(); print(limit())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "300\n"


def test_few_descriptors_mean_few_connections(monkeypatch, tmp_path):
    """Where the limit does not allow what is configured, clients are what is cut, but not to nothing."""
    config = load_config(environ={"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)})
    assert descriptors.bounded(config).connections_max == config.control.connections_max
    monkeypatch.setattr(descriptors, "limit", lambda: descriptors.needed(config) - 100)
    assert descriptors.bounded(config).connections_max == config.control.connections_max - 50
    monkeypatch.setattr(descriptors, "limit", lambda: 64)
    assert (bound := descriptors.bounded(config)).connections_max == bound.connections_user_max == 2


def test_a_ring_needs_memory(monkeypatch):
    """Memory that is short now may come back; a limit that is too low will not."""
    monkeypatch.setattr(memory, "bounds", lambda: [Bound(20 * MIB, 1 << 30, "the machine")])
    with contextlib.closing(Ring.create("test", 2, MIB)):
        pass
    with pytest.raises(ResourceError, match="the machine has 20 MiB left") as caught:
        Ring.create("test", 16, MIB)
    assert (caught.value.code, caught.value.retryable) == ("no_memory", True)
    monkeypatch.setattr(memory, "bounds", lambda: [Bound(20 * MIB, 32 * MIB, "the machine")])
    with pytest.raises(ResourceError) as caught:
        Ring.create("test", 64, MIB)
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("cgroup", "files", "left"),
    [
        ("0::/a/b\n", {"a/memory.max": "100", "a/memory.current": "70", "a/memory.stat": "inactive_file 10\n"}, 40),
        (
            "4:memory:/a\n0::/\n",
            {
                "memory/a/memory.limit_in_bytes": "100",
                "memory/a/memory.usage_in_bytes": "70",
                "memory/a/memory.stat": "total_inactive_file 5\n",
            },
            35,
        ),
    ],
    ids=["v2", "v1"],
)
def test_limits_of_control_groups(monkeypatch, tmp_path, cgroup, files, left):
    """Those of a group above count too, and cached files are no use of memory."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name, text in {"a/b/memory.max": "max\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "cgroup").write_text(cgroup)
    monkeypatch.setattr(memory, "_CGROUPS", str(tmp_path))
    monkeypatch.setattr(memory, "_CGROUP_OF", str(tmp_path / "cgroup"))
    assert [bound.left for bound in memory.bounds() if bound.limit == 100] == [left]


def test_limit_on_address_space():
    """A process that may map little gets no ring, and an error instead of a crash."""
    code = (
        "import resource\nfrom smpd.links.ring import Ring\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "try:\n    Ring.create('test', 1024, 1 << 20)\nexcept Exception as error:\n    print(error.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "no_memory\n"
