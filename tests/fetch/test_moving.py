"""Moving an object within its remote: nothing is replaced, nothing is lost, and only the version meant is moved."""

import os

import anyio
import pytest
from counting_s3 import counting_s3
from fetch_link import Link, fetch_in_process, fetch_process
from servers import Served, admin

from smp_proto.control import LocalConfig, ObjectInfo
from smp_proto.errors import SmpError
from smpd.fetch import local, moving, sftp
from smpd.fetch.s3 import S3Remote
from smpd.links.fetching import Deadlines

SERVERS = ["rclone", "moto", "go_sftp", "openssh", "local"]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path) -> Served:
    if request.param == "local":
        return Served(LocalConfig(str(tmp_path)), None, tmp_path)
    found: Served = request.getfixturevalue(request.param)
    return found


async def content(link: Link, path: str) -> bytes:
    info = await link.stat(path)
    return await link.read(path, info.pin, 0, info.size)


async def paths(link: Link, prefix: str) -> list[str]:
    return [info.path for info in await link.list(prefix)]


async def code_of(link: Link, path: str, pin: str, target: str) -> str:
    with pytest.raises(SmpError) as caught:
        await link.move(path, pin, target)
    return caught.value.code


async def test_one_version_is_moved(server: Served) -> None:
    """It is at the target and nowhere else; asked again it is gone; another version stays where it is."""
    async with fetch_process(server.config, server.secret) as link:
        info = await link.write("m/in/a.smp", b"one")
        assert await link.move("m/in/a.smp", info.pin, "m/done/x/a.smp") == "moved"
        assert await paths(link, "m/") == ["m/done/x/a.smp"]
        assert await content(link, "m/done/x/a.smp") == b"one"
        assert await link.move("m/in/a.smp", info.pin, "m/done/x/a.smp") == "gone"
        newer = await link.write("m/in/a.smp", b"another")
        assert await link.move("m/in/a.smp", info.pin, "m/done/b.smp") == "replaced"
        assert await code_of(link, "m/in/a.smp", newer.pin, "m/done/x/a.smp") == "target_changed"
        assert await paths(link, "m/") == ["m/done/x/a.smp", "m/in/a.smp"]
        assert await content(link, "m/done/x/a.smp") == b"one"
        with pytest.raises(SmpError) as caught:
            await link.delete("m/in/a.smp", info.pin)
        assert caught.value.code == "source_changed"
        await link.delete("m/in/a.smp", newer.pin)
        await link.delete("m/in/a.smp", newer.pin)
        assert await paths(link, "m/in/") == []


@pytest.mark.parametrize("server", ["rclone", "moto"], indirect=True)
async def test_what_was_copied_is_not_copied_again(server: Served) -> None:
    """A crash between copy and delete leaves both; the next try deletes the source."""
    async with fetch_process(server.config, server.secret) as link:
        info = await link.write("again/a", b"one")
        await link.write("again/b", b"one")
        assert await link.move("again/a", info.pin, "again/b") == "moved"
        assert await paths(link, "again/") == ["again/b"]


async def test_one_that_looks_alike_is_somebody_elses(server: Served) -> None:
    """Of one size, one end and one second: scans are so. It is not taken for a copy, and the source stays."""
    pad = bytes(65 << 10)
    async with fetch_process(server.config, server.secret) as link:
        for name in ("a", "b"):
            await link.write(f"alike/{name}", name.encode() + pad)
            if server.config.__struct_config__.tag != "s3":
                assert server.path is not None
                os.utime(server.path / "alike" / name, (1_700_000_000, 1_700_000_000))
        info = await link.stat("alike/a")
        assert await code_of(link, "alike/a", info.pin, "alike/b") == "target_changed"
        assert [(await content(link, f"alike/{name}"))[:1] for name in ("a", "b")] == [b"a", b"b"]


async def test_replaced_between_the_look_and_the_copy(moto: Served, monkeypatch) -> None:
    """The server's own conditions keep a newer version from being moved, and from being deleted."""
    stat = S3Remote.stat
    looks: list[str] = []
    at = [0]

    async def replacing(self: S3Remote, path: str) -> ObjectInfo:
        info = await stat(self, path)
        looks.append(path)
        if len(looks) == at[0]:
            admin(moto).put_object(Bucket="scans", Key="race/a", Body=b"newer")
        return info

    async with fetch_in_process(moto.config, moto.secret) as link:
        info = await link.write("race/a", b"older")
        monkeypatch.setattr(S3Remote, "stat", replacing)
        at[0] = 1  # the first look is at the source
        assert await link.move("race/a", info.pin, "race/b") == "replaced"
        assert await paths(link, "race/") == ["race/a"]
        assert await content(link, "race/a") == b"newer"


async def test_a_large_object_is_copied_in_parts(moto: Served, monkeypatch) -> None:
    """Its ETag is another then, so its end is compared; what an earlier try began is aborted."""
    monkeypatch.setattr(moving, "COPY_MAX_BYTES", 6 << 20)
    monkeypatch.setattr(moving, "COPY_PART_BYTES", 6 << 20)
    data = bytes(range(256)) * (13 << 12)
    bucket = admin(moto)
    async with fetch_in_process(moto.config, moto.secret) as link:
        info = await link.write("large/a", data)
        bucket.create_multipart_upload(Bucket="scans", Key="large/b")
        assert await link.move("large/a", info.pin, "large/b") == "moved"
        moved = await link.stat("large/b")
        assert moved.pin != info.pin
        assert bucket.get_object(Bucket="scans", Key="large/b")["Body"].read() == data
    assert not bucket.list_multipart_uploads(Bucket="scans", Prefix="large/").get("Uploads")


@pytest.mark.parametrize(("method", "conditional"), [("PUT", False), ("POST", True)])
async def test_what_appears_at_the_target_during_a_copy_in_parts_is_not_replaced(
    method: str, conditional: bool, monkeypatch
) -> None:
    """While the parts are copied any server shows it; one that knows conditions also at the last moment."""
    monkeypatch.setattr(moving, "COPY_MAX_BYTES", 1 << 20)
    monkeypatch.setattr(moving, "COPY_PART_BYTES", 1 << 20)
    with counting_s3(conditional=conditional) as (store, served):
        data = bytes(range(256)) * (5 << 10)
        store.store("a", data)

        def appear(found: str, key: str, query: dict[str, list[str]]) -> None:
            if found == method and "uploadId" in query and "b" not in store.objects:
                store.store("b", b"theirs")

        store.before = appear
        async with fetch_in_process(served.config, served.secret) as link:
            info = await link.stat("a")
            assert await code_of(link, "a", info.pin, "b") == "target_changed"
            assert store.objects == {"a": data, "b": b"theirs"}
            assert not store.uploads
            assert await link.move("a", info.pin, "c") == "moved"
            assert store.objects == {"b": b"theirs", "c": data}


@pytest.mark.parametrize("server", ["go_sftp", "openssh", "local"], indirect=True)
async def test_a_version_that_came_just_before_the_renaming_is_put_back(server: Served, monkeypatch) -> None:
    """A rename takes what is there; so it is looked at afterwards."""
    assert server.path is not None
    source = server.path / "late" / "a"

    def replace() -> None:
        source.write_bytes(b"a newer version")

    async with fetch_in_process(server.config, server.secret) as link:
        info = await link.write("late/a", b"older")
        if server.secret is None:
            move = local.durable.move
            monkeypatch.setattr(
                local.durable, "move", lambda *args: (replace() if args[0] == "a" else None, move(*args))
            )
        else:
            within = sftp.SftpRemote._within

            async def replacing(line, call, patience_s=0.0):
                if getattr(call, "__name__", "") == "makedirs":
                    await anyio.to_thread.run_sync(replace)
                return await within(line, call, patience_s)

            monkeypatch.setattr(sftp.SftpRemote, "_within", staticmethod(replacing))
        assert await link.move("late/a", info.pin, "late/done/z") == "replaced"
        assert await paths(link, "late/") == ["late/a"]
        assert await content(link, "late/a") == b"a newer version"


async def test_a_link_is_not_moved(tmp_path) -> None:
    """What a symbolic link leads to would be somewhere else then."""
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to("a")
    async with fetch_process(LocalConfig(str(tmp_path))) as link:
        info = await link.stat("link")
        assert await code_of(link, "link", info.pin, "done/link") == "bad_name"
        assert await code_of(link, "a", info.pin, "../out") == "bad_name"


async def test_a_weak_tag_says_nothing_of_the_server() -> None:
    """It cannot be a condition; other objects are deleted under one all the same."""
    pins = {"weak": 'etag:1:W/"x"', "strong": "etag:1:y"}
    asked: list[str] = []

    class Known:
        async def stat(self, path: str) -> ObjectInfo:
            return ObjectInfo(path, 1, pins[path])

        async def call(self, _method: str, path: str, **parameters: str) -> None:
            asked.append(f"{path} {parameters.get('IfMatch', '')}")

    mover = moving.Mover(Known(), Known(), "", Deadlines())  # type: ignore[arg-type]
    for path in ("weak", "strong"):
        await mover.delete(path, pins[path])
    assert asked == ["weak ", 'strong "y"']
