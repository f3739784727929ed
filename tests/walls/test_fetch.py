"""Code that runs in a fetch process finds nothing but its remote: tried in a real one."""

import os
import struct
from pathlib import Path

import pytest
from fetch_link import Link, fetch_process
from walls.conftest import Scene

from smp_proto.control import AnyRemoteConfig, AnyRemoteSecret, LocalConfig, S3Config, S3Secret, SftpConfig, SftpSecret
from smp_proto.errors import SmpError
from smpd.walls import seccomp
from smpd.walls.sandbox import WALLS, Kernel

KERNEL = Kernel.probe()
pytestmark = pytest.mark.skipif(not (KERNEL.landlock_abi and KERNEL.seccomp), reason="this kernel lacks a wall")
S3 = (S3Config("b", endpoint="http://127.0.0.1:1"), S3Secret("k", "s"))
SFTP = (SftpConfig("127.0.0.1", "u", ""), SftpSecret(password="p"))
REFUSED = {"PermissionError"}


async def _report(link: Link) -> dict[str, str]:
    return (await link.probe()).facts


def _split(report: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What is needed, and what must not be."""
    allowed = {name: report.pop(name) for name in list(report) if name.startswith("may_")}
    return allowed, report


@pytest.mark.parametrize(("config", "secret"), [S3, SFTP], ids=["s3", "sftp"])
async def test_nothing_but_the_network_is_within_reach(
    scene: Scene, config: AnyRemoteConfig, secret: AnyRemoteSecret
) -> None:
    """No key, no program, no Unix socket, no other process; names resolve and connections come about all the same."""
    async with fetch_process(config, secret, code=scene.code()) as link:
        assert link.walls == dict.fromkeys(WALLS, "on")
        allowed, report = _split(await _report(link))
    assert set(allowed.values()) == {"done: None"}, allowed
    assert report.pop("pair_elsewhere") == "OSError"  # EISCONN
    assert set(report.values()) == REFUSED, report
    assert [path.name for path in scene.key.parent.iterdir()] == ["identity.key"]
    assert scene.key.read_text() == "secret"


async def test_a_local_remote_reaches_its_folder_only(scene: Scene, tmp_path: Path) -> None:
    """Objects come and go below the root; beside it nothing can be read or made, and nothing be connected to."""
    root = tmp_path / "root"
    root.mkdir()
    async with fetch_process(LocalConfig(str(root)), code=scene.code()) as link:
        await link.write("a/b", b"1234")
        info = await link.write("a/b", b"4321")
        assert await link.read("a/b", info.pin, 0, 4) == b"4321"
        assert await link.list() == [info]
        _, report = _split(await _report(link))
        await link.delete("a/b")
    assert report.pop("pair_elsewhere") == "OSError"
    assert set(report.values()) == REFUSED, report


async def test_a_missing_root_is_told_before_the_walls(tmp_path: Path) -> None:
    """The walls are fitted to a folder that is there; one that comes later finds a new process."""
    with pytest.raises(SmpError) as caught:
        async with fetch_process(LocalConfig(str(tmp_path / "later"))):
            pass
    assert caught.value.code == "no_such_bucket"


async def test_the_agent_costs_one_kind_of_socket(scene: Scene) -> None:
    """With use_agent a stream to a Unix socket can be had, and nothing else more."""
    config = SftpConfig("127.0.0.1", "u", "", use_agent=True)
    async with fetch_process(config, SFTP[1], code=scene.code()) as link:
        _, report = _split(await _report(link))
    assert report.pop("unix") == "done: None"
    assert report.pop("pair_elsewhere") == "OSError"
    assert set(report.values()) == REFUSED, report


async def test_a_profile_opens_the_aws_folder_only(scene: Scene, tmp_path: Path) -> None:
    """Without a profile ~/.aws is closed like all else; with one it can be read and not written."""
    folder = tmp_path / ".aws"
    folder.mkdir()
    scene.key = folder / "credentials"
    scene.key.write_text("[ward]\n")
    env = {"HOME": str(tmp_path), "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    for profile, ends in (("ward", "done: '[ward]\\n'"), ("", "PermissionError")):
        config = S3Config("b", endpoint="http://127.0.0.1:1", profile=profile)
        async with fetch_process(config, code=scene.code(), env=env) as link:
            report = await _report(link)
        assert (report["read"], report["append"]) == (ends, "PermissionError")


async def test_off_is_said(scene: Scene) -> None:
    """Without a sandbox what lies beside the remote can be had, and the answer to Setup says so."""
    only = "acts.processes = lambda: {}; _all = acts.files; acts.files = lambda key: {'read': _all(key)['read']};"
    code = scene.code().replace("acts.main(", only + "acts.main(")
    async with fetch_process(*S3, code=code, sandbox="off") as link:
        assert set(link.walls.values()) == {"off by configuration"}
        report = await _report(link)
    assert (report["read"], report["unix"]) == ("done: 'secret'", "done: None")


@pytest.mark.parametrize(("abi", "filters", "wall"), [(0, True, "landlock"), (7, False, "seccomp")])
async def test_a_kernel_without_a_wall(scene: Scene, abi: int, filters: bool, wall: str) -> None:
    """``required`` refuses the remote and names the wall; ``auto`` serves it and says why the wall is not up."""
    code = f"""
import os
from smpd.fetch.__main__ import main
from smpd.walls.sandbox import Kernel
main(Kernel(os.uname().machine, {abi}, {filters}))
"""
    with pytest.raises(SmpError) as caught:
        async with fetch_process(*S3, code=code):
            pass
    assert (caught.value.code, wall in caught.value.message) == ("sandbox", True)
    async with fetch_process(*S3, code=code, sandbox="auto") as link:
        assert {name for name, state in link.walls.items() if state != "on"} == {wall}
        assert "kernel" in link.walls[wall]


def _decide(code: bytes, number: int, *arguments: int) -> int:
    """A classic BPF interpreter for the few operations the filter uses (Documentation/networking/filter.rst)."""
    arch = next(arch for arch in seccomp.AUDIT_ARCH.values() if struct.pack("=I", arch) in code)
    data = struct.pack("=IIQ6Q", number, arch, 0, *[*arguments, 0, 0, 0, 0, 0, 0][:6])
    accumulator, at = 0, 0
    while True:
        operation, yes, no, k = struct.unpack_from("=HBBI", code, at * 8)
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x06:
            return int(k)
        else:
            taken = {0x15: accumulator == k, 0x25: accumulator > k, 0x45: bool(accumulator & k)}[operation]
            at += yes if taken else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_lets_through_the_sockets_it_is_told(machine: str) -> None:
    """On both architectures: only socket() of these families and types, and connect(), are added to what compute may."""
    allow, eperm = 0x7FFF0000, 0x50001
    column = list(seccomp.AUDIT_ARCH).index(machine)
    bare = seccomp.program(machine, 1234)
    code = seccomp.program(machine, 1234, {2: (1, 2), 10: (1,), 1: (1,)})
    sock, connect = (numbers[column] for numbers in (seccomp.REFUSED["socket"], seccomp.REFUSED["connect"]))
    assert sock
    assert connect
    assert _decide(bare, sock, 2, 1) == _decide(bare, connect) == eperm
    assert _decide(code, connect) == allow
    granted = {
        (family, kind) for family in range(46) for kind in range(16) if _decide(code, sock, family, kind) == allow
    }
    assert granted == {(2, 1), (2, 2), (10, 1), (1, 1)}
    assert _decide(code, sock, 2, 1 | 0o2004000) == allow  # SOCK_CLOEXEC, SOCK_NONBLOCK
    for number in range(seccomp.LAST_KNOWN + 1):
        if number not in (sock, connect):
            assert _decide(code, number) == _decide(bare, number), number
