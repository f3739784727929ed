"""Telling somebody: a real command, a real audit log of a real daemon, and what is on disk in between."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator

import anyio
import msgspec
import pytest
from hook_server import HookServer
from hypothesis import given
from hypothesis import strategies as st
from whole import ADMINS, OPERATORS, Whole, whole

from smp_proto import control as c
from smp_proto.audit.record import AuditRecord, encode_line, format_time
from smp_proto.errors import DeniedError, ResourceError, UsageError
from smpd.notices.command import Command
from smpd.notices.launch import around
from smpd.notices.message import Condition, Gathered
from smpd.notices.notices import Notices
from smpd.verbs.notices import COMMAND_FILE
from smpd.walls.sandbox import Kernel

SECRET = "Doe^Jane-knee.dcm"


class Mailbox:
    """A command that sends each message to a socket here, since it may write no file; and says what it was started with."""

    SCRIPT = (
        "import json,os,socket,sys\n"
        "s=socket.create_connection(('127.0.0.1',int(sys.argv[1])))\n"
        "s.sendall(json.dumps([json.loads(sys.stdin.read()),dict(os.environ),os.getcwd()]).encode()+b'\\n')\n"
        "sys.exit(s.recv(1)!=b'0')"
    )

    def __init__(self) -> None:
        self.messages: list[dict] = []
        self.environment: dict[str, str] = {}
        self.folder = ""
        self.takes = True
        self._arrived = anyio.Event()

    async def __aenter__(self) -> "Mailbox":
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    @property
    def argv(self) -> tuple[str, ...]:
        return (sys.executable, "-I", "-c", self.SCRIPT, str(self._server.sockets[0].getsockname()[1]))

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        message, self.environment, self.folder = json.loads(await reader.readline())
        writer.write(b"0" if self.takes else b"1")
        await writer.drain()
        await reader.read()  # until the command has gone
        writer.close()
        await writer.wait_closed()
        self.messages.append(message)
        self._arrived.set()
        self._arrived = anyio.Event()

    async def until(self, count: int) -> dict:
        with anyio.fail_after(60):
            while len(self.messages) < count:
                await self._arrived.wait()
        return self.messages[count - 1]


@pytest.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    async with Mailbox() as found:
        yield found


def notify(mailbox: Mailbox, every_s: float = 1.0) -> dict:
    return {"command": mailbox.argv, "every_s": every_s, "timeout_s": 50.0}


async def refuse(box: Whole, code: str, number: int) -> str:
    """What a refused object leaves in the log."""
    subject = f"lake:{SECRET}-{number}"
    await box.daemon.box.audit("quarantine.add", actor="somebody(1)", job=f"job{number}", subject=subject, reason=code)
    return subject


async def test_what_happened_is_told_once_and_together(tmp_path, mailbox, monkeypatch):
    """Counts and codes, in one message; nothing that anything is called; not what was before; and not again."""
    monkeypatch.setattr("smpd.notices.notices._SETTLE_S", 0.01)
    async with whole(tmp_path, compute={"processors": ()}) as first:
        await refuse(first, "truncated", 0)  # before anybody wanted to know
    async with whole(tmp_path, compute={"processors": ()}, notify=notify(mailbox, 0.01)) as box:
        async with anyio.create_task_group() as group:
            (run,) = box.daemon.notices
            await anyio.to_thread.run_sync(run._begin)
            for number, code in enumerate(("corrupt", "corrupt", "untrusted_sender"), 1):
                await refuse(box, code, number)
            await box.daemon.box.audit("job.failed", actor="somebody(1)", job="job9", outcome="remote_auth")
            group.start_soon(run.run)
            message = await mailbox.until(1)
            with anyio.fail_after(60):
                while json.loads((tmp_path / "state" / COMMAND_FILE).read_bytes())["seq"] < box.daemon.audit.size:
                    await anyio.sleep(0.01)
            await refuse(box, "misplaced", 4)
            box.daemon.events.publish("quarantine", None)
            second = await mailbox.until(2)
            group.cancel_scope.cancel()
        found = {event["kind"]: event for event in message["events"]}
        assert found["quarantine"]["count"] == 3
        assert found["quarantine"]["codes"] == {"corrupt": 2, "untrusted_sender": 1}
        assert found["quarantine"]["jobs"] == ["job1", "job2", "job3"]
        assert found["failure"]["codes"] == {"remote_auth": 1}
        assert message["box"] == box.daemon.public.fingerprint()
        assert [event["codes"] for event in second["events"]] == [{"misplaced": 1}]
        said = json.dumps(mailbox.messages)
        assert SECRET not in said
        assert "lake" not in said


async def test_what_was_not_taken_is_told_after_a_restart(tmp_path, mailbox, monkeypatch):
    """A command that fails, then the daemon ends: the next one tells it, and then it is settled."""
    monkeypatch.setattr("smpd.notices.notices._SETTLE_S", 0.01)
    mailbox.takes = False
    settings = {"compute": {"processors": ()}, "notify": notify(mailbox, 600.0)}
    async with whole(tmp_path, **settings) as box, anyio.create_task_group() as group:
        await anyio.to_thread.run_sync(box.daemon.notices[0]._begin)
        await refuse(box, "corrupt", 1)
        group.start_soon(box.daemon.notices[0].run)
        await mailbox.until(1)
        with anyio.fail_after(60):
            while not box.daemon.notices[0].failure:
                await anyio.sleep(0.01)
        async with box.client(70_000, (ADMINS,)) as caller:
            checks = (await caller.call(c.DoctorRequest(), c.Doctor, timeout=100)).checks
        (check,) = [each for each in checks if each.name == "notify"]
        assert (check.state, check.hint) == ("fail", "mend it, then: smpctl notify test")
        group.cancel_scope.cancel()
    mailbox.takes = True
    async with whole(tmp_path, **settings) as box, anyio.create_task_group() as group:
        group.start_soon(box.daemon.notices[0].run)
        message = await mailbox.until(2)
        assert message["events"][0]["codes"] == {"corrupt": 1}
        with anyio.fail_after(60):
            while json.loads((tmp_path / "state" / COMMAND_FILE).read_bytes())["seq"] < box.daemon.audit.size:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()


async def test_a_way_that_fails_does_not_hold_up_the_other(tmp_path, mailbox, monkeypatch):
    """A command that takes nothing is tried again; the webhook beside it was told, once, of the same."""
    monkeypatch.setattr("smpd.notices.notices._SETTLE_S", 0.01)
    mailbox.takes = False
    with HookServer() as server:
        both = {**notify(mailbox, 0.01), "url": f"http://127.0.0.1:{server.listen().port}/"}
        async with whole(tmp_path, compute={"processors": ()}, notify=both) as box, anyio.create_task_group() as group:
            for notices in box.daemon.notices:
                await anyio.to_thread.run_sync(notices._begin)
            await refuse(box, "corrupt", 1)
            for notices in box.daemon.notices:
                group.start_soon(notices.run)
            _, _, body = await anyio.to_thread.run_sync(server.next)
            told = await mailbox.until(3)
            assert json.loads(body) == told == mailbox.messages[0]
            mailbox.takes = True
            async with box.client(70_000, (ADMINS,)) as caller:
                tried = (await caller.call(c.NotifyTest(), c.NotifyTested, timeout=60)).tried
            assert [(each.by, each.error) for each in tried] == [
                (sys.executable, None),
                ("the webhook at 127.0.0.1", None),
            ]
            assert json.loads((await anyio.to_thread.run_sync(server.next))[2])["test"]
            assert server.posted.empty()
            group.cancel_scope.cancel()


async def test_no_more_than_one_message_in_a_while(tmp_path, mailbox, monkeypatch):
    """What happens meanwhile is gathered, and waits."""
    monkeypatch.setattr("smpd.notices.notices._SETTLE_S", 0.01)
    settings = {"compute": {"processors": ()}, "notify": notify(mailbox, 3600.0)}
    async with whole(tmp_path, **settings) as box, anyio.create_task_group() as group:
        (notices,) = box.daemon.notices
        await anyio.to_thread.run_sync(notices._begin)
        await refuse(box, "corrupt", 1)
        group.start_soon(notices.run)
        await mailbox.until(1)
        for number in (2, 3):
            await refuse(box, "misplaced", number)
            with anyio.fail_after(60):
                while notices._seen < box.daemon.audit.size:
                    box.daemon.events.publish("quarantine", None)
                    await anyio.sleep(0.01)
        assert len(mailbox.messages) == 1
        assert [told.codes for told in notices._due()] == [{"misplaced": 2}]
        group.cancel_scope.cancel()


async def test_the_verb_tries_it_and_admins_alone_may(tmp_path, mailbox):
    """A message marked as a test; without a command a sentence that says what to set; a failing one says what it said."""
    async with whole(tmp_path, compute={"processors": ()}, notify=notify(mailbox)) as box:
        async with box.client(70_000, (ADMINS,)) as caller:
            (tried,) = (await caller.call(c.NotifyTest(), c.NotifyTested, timeout=60)).tried
        assert (tried.by, tried.error) == (sys.executable, None)
        assert mailbox.messages == [{"box": box.daemon.public.fingerprint(), "events": [], "version": 1, "test": True}]
        assert (set(mailbox.environment) - {"LC_CTYPE"}, mailbox.folder) == ({"PATH", "LANG"}, "/")
        async with box.client(70_000, (OPERATORS,)) as caller:
            with pytest.raises(DeniedError):
                await caller.call(c.NotifyTest(), c.NotifyTested)
        box.daemon.notices[0].way = Command([sys.executable, "-c", "raise SystemExit('no such hook')"], 50, "auto", [])
        async with box.client(70_000, (ADMINS,)) as caller:
            (tried,) = (await caller.call(c.NotifyTest(), c.NotifyTested, timeout=60)).tried
        assert tried.error
        assert (tried.error.code, tried.error.details["said"]) == ("notify_failed", "no such hook\n")
        assert "exit status 1" in tried.error.message
        box.daemon.notices = []
        async with box.client(70_000, (ADMINS,)) as caller:
            with pytest.raises(UsageError, match="neither a command nor a webhook"):
                await caller.call(c.NotifyTest(), c.NotifyTested)


async def test_a_command_that_hangs_is_killed_with_its_children(tmp_path):
    """At its deadline, and nothing of it stays."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    held = "import subprocess,sys; f=open(sys.argv[1],'w'); f.write('x'); f.flush(); subprocess.run(['sleep','600'],pass_fds=[f.fileno()])"
    command = Command([sys.executable, "-I", "-c", held, str(fifo)], 3.0, "off", [])
    with pytest.raises(ResourceError, match="did not end within 3 s"):
        await command.run(b"{}")
    os.set_blocking(reader, True)
    try:
        with anyio.fail_after(60):
            while await anyio.to_thread.run_sync(os.read, reader, 10):  # until nobody holds the other end
                pass
    finally:
        os.close(reader)


@pytest.mark.skipif(not Kernel.probe().landlock_abi, reason="this kernel has no Landlock")
async def test_the_walls_hide_the_state_and_nothing_is_written(tmp_path):
    """It reads what is beside a hidden folder, and neither what is in it, nor may it write anywhere."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state/key").write_text("k")
    (tmp_path / "beside").write_text("b")
    script = (
        "import sys\n"
        "open(sys.argv[1]+'/beside').read()\n"
        "for act in (lambda: open(sys.argv[1]+'/state/key'), lambda: open(sys.argv[1]+'/new','w')):\n"
        "    try: act()\n"
        "    except PermissionError: pass\n"
        "    else: sys.exit(1)\n"
    )
    argv = [sys.executable, "-I", "-c", script, str(tmp_path)]
    await Command(argv, 50.0, "required", [str(tmp_path / "state")]).run(b"{}")
    with pytest.raises(ResourceError, match="exit status 1"):
        await Command(argv, 50.0, "required", []).run(b"{}")


def test_around_leaves_out_what_is_hidden(tmp_path):
    """As high up as can be, without links, which may lead to it."""
    for name in ("a/b/c", "a/b/d", "a/e", "f"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a/b/c")
    root = str(tmp_path)
    assert sorted(each.removeprefix(root) for each in around(root, [f"{root}/a/b/c"])) == ["/a/b/d", "/a/e", "/f"]


async def test_a_condition_is_told_when_it_begins_and_again_when_it_comes_back(tmp_path, mailbox):
    """Not for as long as it stays; a new daemon does not tell it again."""
    state = [Condition("space", "low")]
    async with whole(tmp_path, compute={"processors": ()}) as box:

        def made() -> Notices:
            command = Command(mailbox.argv, 50.0, "auto", [])
            return Notices(
                command, str(tmp_path), COMMAND_FILE, "box", box.daemon.audit, lambda: state, anyio.sleep_forever, 1.0
            )

        def look() -> list[str]:
            notices._look()
            return [each.kind for each in notices._due()]

        notices = made()
        await anyio.to_thread.run_sync(notices._begin)
        assert await anyio.to_thread.run_sync(look) == ["space"]
        await notices._tell(notices._due())
        assert await anyio.to_thread.run_sync(look) == []
        notices = made()
        await anyio.to_thread.run_sync(notices._begin)
        assert await anyio.to_thread.run_sync(look) == []
        state.clear()
        assert await anyio.to_thread.run_sync(look) == []
        state.append(Condition("space", "low"))
        assert await anyio.to_thread.run_sync(look) == ["space"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["quarantine.add", "job.failed", "job.done"]), st.text("ab", max_size=6)),
        max_size=300,
    )
)
def test_gathering_counts_all_and_stays_small(found):
    """The counts add up, of whatever many events; the message stays within what a pipe takes."""
    gathered = Gathered()
    lines = [
        encode_line(AuditRecord(n, format_time(n), event, "x", f"job{n}", "", code, {}, ""))
        for n, (event, code) in enumerate(found)
    ]
    gathered.add(lines)
    told = {each.kind: each for each in gathered.told()}
    for kind, event in (("quarantine", "quarantine.add"), ("failure", "job.failed")):
        count = sum(each == event for each, _ in found)
        assert (told[kind].count if kind in told else 0) == count
        assert sum(told[kind].codes.values()) == count if kind in told else True
    assert len(msgspec.json.encode(gathered.told())) < 1 << 14


@pytest.mark.parametrize("error", [ResourceError("disk_failed", "the disk failed"), OSError(24, "Too many open files")])
async def test_what_cannot_be_looked_for_now_is_looked_for_later(tmp_path, mailbox, monkeypatch, error):
    """A disk that fails once, or no descriptor, does not end the daemon, and what happened then is told."""
    monkeypatch.setattr("smpd.notices.notices._SETTLE_S", 0.01)
    monkeypatch.setattr("smpd.notices.notices._LOOK_S", 0.01)
    async with whole(tmp_path, compute={"processors": ()}, notify=notify(mailbox, 0.01)) as box:
        (run,) = box.daemon.notices
        look, failed = run._look, anyio.Event()

        def look_badly() -> None:
            run._look = look
            anyio.from_thread.run_sync(failed.set)
            raise error

        run._look = look_badly
        async with anyio.create_task_group() as group:
            group.start_soon(run.run)
            with anyio.fail_after(30):
                await failed.wait()
            await refuse(box, "corrupt", 1)
            await mailbox.until(1)
            group.cancel_scope.cancel()
