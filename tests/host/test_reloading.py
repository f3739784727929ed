"""A configuration that is taken up by a running daemon: what changes at once, what is named, what is refused."""

import re
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from whole import ADMINS, OPERATORS, configured, whole

from smp_proto import control as c
from smp_proto.errors import DaemonError, DeniedError, UsageError
from smpd.config import Permission, known_keys
from smpd.reloading import LIVE, Reloading, merge


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A configuration of defaults."""
    return configured(tmp_path_factory.mktemp("box"))


def other(config, key):
    """A configuration in which one key has another value; whether a file may hold it is not asked here."""
    section, _, name = key.partition(".")
    value = getattr(getattr(config, section), name)
    changed = (*value, "x") if isinstance(value, tuple) else f"{value}x" if isinstance(value, str) else value + 1
    return msgspec.structs.replace(
        config, **{section: msgspec.structs.replace(getattr(config, section), **{name: changed})}
    )


def test_live_keys_exist():
    """Each key that is said to change at once is one."""
    assert set(known_keys()) >= LIVE


def test_live_keys_are_documented():
    """docs/reference/configuration.md names exactly the keys that hold at once."""
    text = (Path(__file__).parents[2] / "docs" / "reference" / "configuration.md").read_text()
    section = text.partition("\n## Changing it while")[2].partition("\n## ")[0]
    listed = section.partition("These hold at once:")[2].partition("All other keys")[0]
    assert set(re.findall(r"`(\w+\.\w+)`", listed)) == LIVE


@given(keys=st.sets(st.sampled_from(sorted(known_keys()))))
def test_merge(running, keys):
    """Exactly the live keys that changed are taken up, exactly the others are named; going back undoes both."""
    fresh = running
    for key in keys:
        if key != "compute.memory_bytes":  # "auto", or a number
            fresh = other(fresh, key)
    merged, changed, restart = merge(running, fresh)
    expected = {key for key in keys if key != "compute.memory_bytes"}
    assert (set(changed), set(restart)) == (expected & LIVE, expected - LIVE)
    for key in known_keys():
        section, _, name = key.partition(".")
        source = fresh if key in LIVE else running
        assert getattr(getattr(merged, section), name) == getattr(getattr(source, section), name)
    assert merge(merged, fresh)[1:] == ([], restart)
    assert merge(merged, running) == (running, changed, [])


async def test_a_mistake_is_refused_whole(running):
    """Nothing is taken up of a configuration with a mistake; it is told until a good one is read."""
    told, around = [], []
    answers = [UsageError("bad_config", "jobs.attempts is odd"), other(running, "jobs.attempts")]

    def read():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def record(changed, restart):
        told.append(("record", changed, restart))

    async def take(config):
        told.append(("taken", config.jobs.attempts))

    @contextmanager
    def noting():
        around.append("begin")
        try:
            yield
        finally:
            around.append("end")

    reloading = Reloading(running, read)
    reloading.around = noting
    reloading.when(take)
    with pytest.raises(UsageError):
        await reloading.reload(record)
    assert (reloading.config, reloading.refused, told) == (running, "jobs.attempts is odd", [])
    found = await reloading.reload(record)
    assert (found.changed, found.restart, reloading.refused) == (["jobs.attempts"], [], "")
    assert told == [("record", "jobs.attempts", ""), ("taken", running.jobs.attempts + 1)]
    assert around == ["begin", "end"] * 2


async def test_without_a_record_nothing_changes(running):
    """Where the audit log refuses, the one before goes on."""
    reloading = Reloading(running, lambda: other(running, "jobs.attempts"))

    async def record(changed, restart):
        raise DaemonError("busy", "no")

    with pytest.raises(DaemonError):
        await reloading.reload(record)
    assert reloading.config == running


async def test_whose_rights_change_is_disconnected(tmp_path):
    """Rights that were taken away are gone from open connections, too; the others' stay open."""
    tables = {"a": Permission(groups=("70001",), read=("*",), list=("*",))}
    async with (
        whole(tmp_path, permissions=tables) as one,
        one.client(50_001, [OPERATORS, 70_001]) as loser,
        one.client(50_002, [ADMINS]) as admin,
    ):
        permissions = one.daemon.accounts.permissions
        permissions.become(type(permissions)({"b": Permission(groups=("70002",), read=("*",))}))
        await one.server.configure(one.daemon.config.control, one.daemon.accounts.groups)
        with pytest.raises(DaemonError, match="is gone"):
            await loser.call(c.ListObjects("r:"), c.Objects)
        assert (await admin.call(c.StatusRequest(), c.Status)).role == "admin"
        async with one.client(50_001, [OPERATORS, 70_001]) as again:
            with pytest.raises(DeniedError):
                await again.call(c.ListObjects("r:"), c.Objects)
