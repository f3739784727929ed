"""A user database that does not answer keeps waiting those who are asked about, and nobody else."""

import os
import pwd
import threading

import anyio
import pytest

from smp_proto import control as c
from smp_proto.errors import DaemonError
from smpd.config import Permission
from smpd.control.accounts import Accounts, UserDatabase
from smpd.reloading import Reloading
from tests.whole import configured


@pytest.fixture
def hanging(monkeypatch):
    """Has questions for a user hang, for the length of the test, once ``set`` is called."""
    hangs, over = threading.Event(), threading.Event()
    real = pwd.getpwuid

    def look_up(uid):
        if hangs.is_set():
            over.wait()
        return real(uid)

    monkeypatch.setattr("smpd.control.actor.pwd.getpwuid", look_up)
    yield hangs
    over.set()


async def test_callers_are_told(serving, hanging):
    """Twelve that come at once are told why they are not let in; who is in goes on, and threads are left for all."""
    async with serving(database=UserDatabase(0.05)) as daemon, daemon.client() as early:
        hanging.set()
        found = []

        async def come() -> None:
            channel, hello = await daemon.hello()
            channel.close()
            found.append(hello.error and (hello.error.code, "does not answer" in hello.error.message))

        async with anyio.create_task_group() as group:
            for _ in range(12):
                group.start_soon(come)
        assert found == [("busy", True)] * 12
        assert await anyio.to_thread.run_sync(os.getpid) == os.getpid()
        await early.call(c.StatusRequest(), dict)


async def test_it_is_asked_again():
    """What nobody waits for any more keeps its place until it is answered, and then another may ask."""
    database, over = UserDatabase(0.05), threading.Event()
    for _ in range(10):
        with pytest.raises(DaemonError, match="does not answer"):
            await database.ask(over.wait)
    over.set()
    with anyio.fail_after(20):
        while True:
            try:
                assert await database.ask(int, "7") == 7
                break
            except DaemonError:
                continue
    with pytest.raises(KeyError):
        await database.ask({}.__getitem__, "x")


async def test_a_configuration_is_refused_then(tmp_path, monkeypatch):
    """What names users and groups is taken up whole, or not at all."""
    config = configured(tmp_path)
    accounts, over = Accounts(config, UserDatabase(0.05)), threading.Event()
    fresh = configured(tmp_path, permissions={"x": Permission(users=("root",), read=("*",))})
    reloading = Reloading(config, lambda: fresh)
    reloading.first(accounts.prepare)
    reloading.when(accounts.take_up)

    async def record(changed, restart):
        pass

    real = pwd.getpwnam
    monkeypatch.setattr("smpd.control.permissions.pwd.getpwnam", lambda name: over.wait() and real(name))
    try:
        with pytest.raises(DaemonError, match="does not answer"):
            await reloading.reload(record)
        assert (reloading.config, accounts.permissions.configured) == (config, False)
        assert "does not answer" in reloading.refused
    finally:
        over.set()
    await reloading.reload(record)
    assert accounts.permissions.configured


async def test_a_job_waits_then(tmp_path, hanging):
    """An owner of whom nothing can be told now has their job held, without an attempt."""
    config = configured(tmp_path, permissions={"x": Permission(users=("root",), read=("*",))})
    accounts = Accounts(config, UserDatabase(0.05))
    hanging.set()
    with pytest.raises(DaemonError) as caught:
        await accounts.require("root(0)", c.GetSpec("r:x"))
    assert (caught.value.code, caught.value.retryable, caught.value.details["held"]) == ("busy", True, "")
