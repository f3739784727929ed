"""Answers that do not fit one frame, of a whole daemon, as both clients read them."""

import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import anyio
import anyio.lowlevel
import pytest
from whole import Whole, whole

from smp_proto import control as c
from smp_proto.channel import UNREAD_FDS_MAX
from smp_proto.errors import DaemonError, UsageError
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.entries import ATTRIBUTES_MAX_BYTES
from smpctl import AsyncClient, Client
from smpd.links.computing import PROCESSORS_BYTES_MAX
from smpd.vault.objects import Adoption

Asked = Callable[..., Awaitable[Any]]


@pytest.fixture(params=["blocking", "anyio"])
def asked(request: pytest.FixtureRequest) -> Asked:
    """Calls a method of either client, as root."""

    async def call(box: Whole, method: str, *args: Any, **named: Any) -> Any:
        def connect(_path: str | None) -> Any:
            return box.socket(0)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("smpctl.connection.connect", connect)
            patch.setattr("smpctl.async_asking.connect", connect)
            if request.param == "anyio":
                async with AsyncClient() as client:
                    return await getattr(client, method)(*args, **named)
            with Client() as blocking:
                return await anyio.to_thread.run_sync(functools.partial(getattr(blocking, method), *args, **named))

    return call


async def test_more_checkpoints_than_fit_a_frame(tmp_path: Path, asked: Asked) -> None:
    """Some days of checkpoints, one a minute, come whole and in order."""
    async with whole(tmp_path) as box:
        log = box.daemon.audit
        await box.daemon.box.audit("daemon.start", actor="test")
        first = await anyio.to_thread.run_sync(log.checkpoint)
        notes = [first.replace(b"\n", b" %d\n" % number, 1) for number in range(12_000)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(log), "checkpoints", lambda _: notes)
            lines, proof = await asked(box, "audit_read")
        assert len(lines) == log.size
        assert proof.checkpoints == [note.decode() for note in notes]
        assert proof.origin == log.keys[0].name


async def test_an_old_job_by_the_beginning_of_its_id(tmp_path: Path, asked: Asked) -> None:
    """It is found although it is not among the newest that fit a frame; what may not be seen is not."""
    async with whole(tmp_path) as box:
        journal = box.daemon.box.journal
        for number in range(300):
            spec = c.GetSpec(f"r:{'x' * 5000}{number}")
            journal.add(spec, owner="somebody(1)", key=str(number), job_id=f"{number:03}aaaaaaaaaaaaa")
        assert len(await asked(box, "jobs", limit=10_000)) < 250
        found = await asked(box, "jobs", begins="00", limit=3)
        assert [job.id[:3] for job in found] == ["009", "008", "007"]
        assert [job.id for job in await asked(box, "jobs", begins="001a")] == ["001aaaaaaaaaaaaa"]
        assert await asked(box, "jobs", begins="001b") == []
        assert await asked(box, "jobs", ("done",), begins="001a") == []
        assert await asked(box, "jobs", begins="\uffff") == []


async def test_no_checkpoint_more_than_is_asked_for(tmp_path: Path) -> None:
    """Who wants records, or the newest checkpoint alone, is not sent those of all time."""
    async with whole(tmp_path) as box, box.client(0) as caller:
        await box.daemon.box.audit("daemon.start", actor="test")
        notes = [b"an old one" * 1000] * 1000 + [await anyio.to_thread.run_sync(box.daemon.audit.checkpoint)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(box.daemon.audit), "checkpoints", lambda _: notes)
            async with caller.open(c.AuditRead(newest=True)) as exchange:
                batches = [batch async for batch in exchange.messages(c.AuditLines)]
                proof = await exchange.result(c.AuditProof)
        assert [batch.checkpoints for batch in batches] == [[]]
        assert proof.checkpoints == [notes[-1].decode()]


def kept(box: Whole, names: list[str], about: str = "") -> str:
    """An item of the vault with empty entries of these names."""
    job, _ = box.daemon.box.journal.add(c.GetSpec("r:x"), owner="somebody(1)", key="k")
    identity = box.daemon.box.identity
    part = box.daemon.runner.leavings.part(job.id)
    with open(part, "wb") as file:
        writer = BundleWriter(file.write, sender=identity, recipients=[identity.public])
        for name in names:
            writer.begin(name, "application/dicom", {"about": about})
            writer.end()
        info = writer.finish()
        size = file.tell()
    item = Adoption(job.id, part, info.object_id, identity.public.key_id, size, len(names), 0)
    box.daemon.box.vault.adopt(job.id, [item])
    return job.id


@pytest.mark.parametrize("count", [1, 20_000])
async def test_more_entries_than_fit_a_frame(tmp_path: Path, asked: Asked, count: int) -> None:
    """The names inside an object of any number of entries come whole and in order, and it can be opened."""
    names = [f"series/{number:06}.dcm" for number in range(count)]
    async with whole(tmp_path) as box:
        item = await anyio.to_thread.run_sync(kept, box, names)
        assert [entry.name for entry in await asked(box, "vault_entries", item)] == names
        opened = functools.partial(asked, box, "vault_open", item, tmp_path / "out", names=names[-2:])
        assert [entry.name for entry in await opened()] == names[-2:]
        assert {path.name for path in (tmp_path / "out/series").iterdir()} == {name[7:] for name in names[-2:]}


async def test_more_opened_than_fit_a_frame(tmp_path: Path) -> None:
    """A client that opens many entries at once, as many as may wait, and there is much to say of, is told of them all."""
    names = [f"{number:03}" for number in range(UNREAD_FDS_MAX)]
    async with whole(tmp_path) as box:
        item = await anyio.to_thread.run_sync(kept, box, names, "x" * 5000)
        async with box.client(0) as caller, caller.open(c.VaultOpen(item)) as exchange:
            with open(tmp_path / "out", "wb") as file:
                for name in names:
                    await exchange.send(c.OpenInto(name, last=name is names[-1]), [file.fileno()])
            parts = [part async for part in exchange.messages(c.Entries)]
            parts.append(await exchange.result(c.Entries))
        assert [entry.name for part in parts for entry in part.entries] == names


async def test_descriptors_that_one_request_holds(tmp_path: Path) -> None:
    """Who hands over one after the other, and never the last, does not take all that the daemon may have."""
    async with whole(tmp_path) as box:
        item = await anyio.to_thread.run_sync(kept, box, ["x"])
        async with box.client(0) as caller:
            with open(tmp_path / "out", "wb") as file, pytest.raises(DaemonError, match="at most 256|too many unread"):
                async with caller.open(c.VaultOpen(item)) as exchange:
                    for number in range(UNREAD_FDS_MAX + 1):
                        await exchange.send(c.OpenInto(str(number)), [file.fileno()])
                        await anyio.lowlevel.checkpoint()
                    with anyio.fail_after(60):
                        await exchange.result(c.Entries)


async def test_as_much_as_there_can_be_of_an_entry(tmp_path: Path, asked: Asked) -> None:
    """Whatever can be sealed can be listed: names and attributes as long as they may be."""
    names = [f"{'n' * 250}/{'n' * 250}/{'n' * 250}/{'n' * 250}/{number:03}" for number in range(20)]
    async with whole(tmp_path) as box:
        item = await anyio.to_thread.run_sync(kept, box, names, "x" * (ATTRIBUTES_MAX_BYTES - 10))
        assert [entry.name for entry in await asked(box, "vault_entries", item)] == names
        with pytest.raises(UsageError):
            kept(box, names, "x" * (ATTRIBUTES_MAX_BYTES - 9))


@pytest.mark.parametrize("count", [0, 1, 6])
async def test_more_of_remotes_than_fits_a_frame(tmp_path: Path, asked: Asked, count: int) -> None:
    """Remotes with many certificates are all listed, with what was kept of them."""
    async with whole(tmp_path) as box:
        for number in range(count):
            config = c.S3Config(f"b{number}", ca_pem=f"{number}" * 220_000)
            await anyio.to_thread.run_sync(box.daemon.remotes.add, f"r{number}", config)
        found = await asked(box, "remotes")
        assert [(each.name, each.config.bucket) for each in found] == [(f"r{n}", f"b{n}") for n in range(count)]
        assert [each.config.ca_pem[:1] for each in found] == [f"{n}" for n in range(count)]


@pytest.mark.parametrize("count", [0, 1, 8])
async def test_more_of_syncs_than_fits_a_frame(tmp_path: Path, asked: Asked, count: int) -> None:
    """Syncs with many patterns, as they may be kept from before there was a limit, are all listed, by name."""
    (tmp_path / "r").mkdir()
    async with whole(tmp_path) as box:
        await anyio.to_thread.run_sync(box.daemon.remotes.add, "r", c.LocalConfig(str(tmp_path / "r")))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("smpd.sync.syncs.SYNC_BYTES_MAX", 1 << 20)
            for number in range(count):
                spec = c.SyncSpec(name=f"s{number}", source="r:", include=[f"{number}" * 1000] * 600)
                await box.daemon.syncs.add(spec, "somebody(1)")
        found = await asked(box, "syncs")
        assert [(each.spec.name, each.spec.include[0][:1]) for each in found] == [
            (f"s{n}", f"{n}") for n in range(count)
        ]


async def test_a_sync_with_more_patterns_than_there_may_be(tmp_path: Path, asked: Asked) -> None:
    """It is refused, and the message says what it is too large for."""
    (tmp_path / "r").mkdir()
    async with whole(tmp_path) as box:
        await anyio.to_thread.run_sync(box.daemon.remotes.add, "r", c.LocalConfig(str(tmp_path / "r")))
        most = c.SyncSpec(name="s", source="r:", include=["x" * 1000] * (c.SYNC_BYTES_MAX // 1003 - 1))
        await asked(box, "sync_add", most)
        more = c.SyncSpec(name="t", source="r:", params={"x": "y" * c.SYNC_BYTES_MAX})
        with pytest.raises(UsageError, match="bytes of patterns, parameters and recipients") as caught:
            await asked(box, "sync_add", more)
        assert "65,536" in caught.value.hint
        assert [each.spec for each in await asked(box, "syncs")] == [most]


async def test_a_sync_with_more_troubles_than_fit_a_frame(tmp_path: Path, asked: Asked) -> None:
    """It is shown with as many as fit."""
    (tmp_path / "r").mkdir()
    async with whole(tmp_path) as box:
        await anyio.to_thread.run_sync(box.daemon.remotes.add, "r", c.LocalConfig(str(tmp_path / "r")))
        await asked(box, "sync_add", c.SyncSpec(name="s", source="r:"))
        troubles = [c.SyncTrouble("\u20ac" * 16_000, "failed", 1, "")] * c.TROUBLES_MAX
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("smpd.sync.store.SyncStore.troubles", lambda *_: troubles)
            shown = await asked(box, "sync_show", "s")
        assert 0 < len(shown.troubles) < c.TROUBLES_MAX


@pytest.mark.parametrize("count", [0, 1, c.QUARANTINE_PAGE + 50])
async def test_more_of_the_quarantine_than_fits_a_frame(tmp_path: Path, asked: Asked, count: int) -> None:
    """Items whose names are as long as a fetch process may say are all listed, newest first."""
    async with whole(tmp_path) as box:
        job, _ = box.daemon.box.journal.add(c.GetSpec("r:x"), owner="somebody(1)", key="k")
        for number in range(count):
            place = f"r:{number:03}" + "\u20ac" * 16_000
            item = c.QuarantineItem(f"{number:03}", job.id, place, "corrupt", place, pin="p" * 512)
            await anyio.to_thread.run_sync(box.daemon.box.quarantine.add, item)
        found = await asked(box, "quarantine")
        assert [item.id for item in found] == [f"{number:03}" for number in reversed(range(count))]


async def test_jobs_that_are_long(tmp_path: Path, asked: Asked) -> None:
    """One that does not fit beside the others keeps none of them out, and one that fits is there."""
    async with whole(tmp_path) as box:
        for number, length in enumerate((10, 700_000, 10, 700_000, 10, 2_000_000, 10)):
            spec = c.GetSpec(f"r:{'x' * length}{number}")
            box.daemon.box.journal.add(spec, owner="somebody(1)", key=str(number), job_id=f"{number:03}aaaaaaaaaaaaa")
        assert [job.id[:3] for job in await asked(box, "jobs")] == ["006", "004", "003", "002", "000"]


async def test_more_of_processors_than_fits_a_frame(tmp_path: Path, asked: Asked) -> None:
    """Each distribution may tell so much; all of it is shown."""
    infos = [c.ProcessorInfo(f"p{n}", "", "", "", params={"x": "x" * (PROCESSORS_BYTES_MAX - 100)}) for n in range(6)]
    async with whole(tmp_path) as box:
        kinds = [SimpleNamespace(describe=AsyncMock(return_value=SimpleNamespace(processors=[info]))) for info in infos]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(box.daemon.box.compute, "all", kinds)
            assert await asked(box, "processors") == infos
