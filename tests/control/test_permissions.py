"""Permissions: what they let pass, what they hide, and that a job has the rights its owner has now."""

import pwd
from pathlib import Path

import anyio
import pytest
from whole import ADMINS, OPERATORS, VIEWERS, Whole, whole

from smp_proto import control as c
from smp_proto.aio import decode
from smp_proto.errors import DeniedError, NotFoundError, SmpError
from smp_proto.sealed.keys import Identity
from smpd.config import Permission
from smpd.control.actor import RoleGroups, owner_of
from smpd.control.permissions import EVERYTHING, NOTHING, Need, Permissions, Rights, check, needs_of_job, owner_uid
from smpd.vault.objects import Adoption

ANNA, BERT, CARL, DORA, ROOT = 70_001, 70_002, 70_003, 70_004, 0
TABLES = {
    "anna": Permission(users=(str(ANNA),), read=("pacs",), list=("pacs",), write=("results",), run=("image.*",)),
    "chief": Permission(groups=("61000",), read=("pacs",), write=("results",), jobs="all"),
}
OPERATOR = (VIEWERS, OPERATORS)
GET = c.GetSpec("pacs:a/one.smp")


def rights(**given) -> Rights:
    return Rights(**{key: frozenset(value) if key != "others" else value for key, value in given.items()})


@pytest.mark.parametrize(
    ("names", "name", "passes"),
    [
        ({"pacs"}, "pacs", True),
        ({"pacs"}, "pacs2", False),
        ({"pacs-*"}, "pacs-a", True),
        ({"pacs-*"}, "pacs", False),
        ({"*"}, "anything", True),
        (set(), "pacs", False),
        (set(), "", False),
    ],
)
def test_names_and_beginnings(names, name, passes):
    """A name stands for itself, one with a star for all that begin so, and no name for nothing."""
    assert rights(read=names).allow(Need("read", name)) == passes
    assert rights(write=names).allow(Need("any", name)) == passes
    assert not rights(read=names).allow(Need("write", name))


@pytest.mark.parametrize(
    ("spec", "needs"),
    [
        (c.GetSpec("r:p"), [("read", "r")]),
        (c.GetSpec("r:p/"), [("read", "r"), ("list", "r")]),
        (c.GetSpec("r:"), [("read", "r"), ("list", "r")]),
        (c.RunSpec("r:p", "x"), [("read", "r"), ("run", "x")]),
        (c.RunSpec("r:p", "x", target="t:q/"), [("read", "r"), ("run", "x"), ("write", "t")]),
        (c.PutSpec("t:q", []), [("write", "t")]),
    ],
)
def test_what_a_job_needs(spec, needs):
    """Each part of a job is asked for."""
    assert list(needs_of_job(spec)) == [Need(*each) for each in needs]


def test_without_tables_nobody_is_held_back():
    """The reading of absence is that of a box that was told nothing; with a table it is nothing at all."""
    assert Permissions({}).of(5, frozenset(), "viewer") == EVERYTHING
    permissions = Permissions({"x": Permission(groups=("root",), read=("pacs",))})
    assert permissions.of(5, frozenset({5}), "operator") == NOTHING
    assert permissions.of(5, frozenset({0}), "operator") == rights(read={"pacs"})
    assert permissions.of(5, frozenset({5}), "admin") == EVERYTHING


def test_tables_add_up():
    """Who is named by several has what all of them give."""
    tables = {
        "a": Permission(groups=("root",), read=("pacs",), jobs="all"),
        "b": Permission(users=("root",), read=("lake",), run=("digest",)),
    }
    permissions = Permissions(tables)
    assert permissions.of(0, frozenset({0}), "operator") == rights(read={"pacs", "lake"}, run={"digest"}, others=True)


def test_who_is_unknown_is_named():
    """A group or user that the system does not know is told, and gives nothing."""
    permissions = Permissions({"x": Permission(groups=("no-such-group",), users=("no-such-user", "root"), read=("a",))})
    assert [text.split(",")[0] for text in permissions.unknown] == [
        "permissions.x names the group no-such-group",
        "permissions.x names the user no-such-user",
    ]
    assert permissions.of(0, frozenset(), "operator").read == {"a"}


def test_refusal_says_what_is_missing():
    """The error names the act and the remote, and where it is decided."""
    with pytest.raises(DeniedError, match=r"anna\(1\) may not deliver to remote 'lake'") as caught:
        check(rights(read={"lake"}), "anna(1)", needs_of_job(c.PutSpec("lake:x", [])))
    assert caught.value.details == {"use": "write", "name": "lake"}
    assert "[permissions." in caught.value.hint


@pytest.mark.parametrize(("label", "uid"), [("anna(7)", 7), ("uid(0)", 0), ("a(b)(12)", 12), ("smpd", None)])
def test_owner_of_a_label(label, uid):
    """The user is the number at the end, whatever the name is."""
    assert owner_uid(label) == uid


def test_owner_without_a_name_has_no_rights():
    """Whom the user database does not know has neither role nor rights, and neither has a label without a number."""
    for label in ("gone(4000000001)", "smpd"):
        owner = owner_of(label, RoleGroups(None, None, 5), Permissions({"x": Permission(groups=("root",))}))
        assert (owner.role, owner.rights) == (None, NOTHING)


def add_remotes(box: Whole) -> None:
    for name in ("pacs", "lake", "results"):
        box.daemon.remotes.add(name, c.LocalConfig("/nowhere"))


async def seen(box: Whole, uid: int, groups, request, kind, part):
    async with box.client(uid, groups) as caller:
        return [getattr(each, part) for each in getattr(await caller.call(request, kind), kind.__struct_fields__[0])]


async def test_what_may_not_be_used_is_refused_and_not_shown(tmp_path):
    """Refusals do not depend on what exists, and no answer names a remote that one may not use."""
    async with whole(tmp_path, permissions=TABLES) as box:
        add_remotes(box)
        key = Identity.generate("s").public
        box.daemon.trust.add("s", key.text(), key_id=key.key_id, fingerprint="f", prefixes=["lake:x", "pacs:y"])
        async with box.client(ANNA, OPERATOR) as anna:
            await anna.call(c.Submit(GET, "1"), c.JobView)
            refused = [
                c.Submit(c.GetSpec("lake:x"), "2"),
                c.Submit(c.GetSpec("nothing:x"), "3"),
                c.Submit(c.RunSpec("pacs:x", "digest"), "4"),
                c.Submit(c.RunSpec("pacs:x", "image.edges", target="pacs:y"), "5"),
                c.Submit(c.PutSpec("lake:x", [key.text()]), "6"),
                c.ListObjects("results:"),
                c.RemoteTest("lake"),
                c.AuditRead(),
            ]
            for request in refused:
                with pytest.raises(DeniedError) as caught:
                    await anna.call(request, dict)
                assert caught.value.code == "forbidden"
            status = await anna.call(c.StatusRequest(), c.Status)
            assert status.remotes == ["pacs", "results"]
            (sender,) = (await anna.call(c.TrustList(), c.Trusted)).senders
            assert sender.prefixes == ["pacs:y"]
        assert await seen(box, ANNA, OPERATOR, c.RemoteList(), c.Remotes, "name") == ["pacs", "results"]
        assert await seen(box, BERT, OPERATOR, c.RemoteList(), c.Remotes, "name") == []
        assert await seen(box, BERT, OPERATOR, c.TrustList(), c.Trusted, "name") == []
        assert len(await seen(box, CARL, (ADMINS,), c.RemoteList(), c.Remotes, "name")) == 3


async def test_doctor_names_no_sender_that_is_not_listed(tmp_path):
    """Nor when what is believed of them ends."""
    async with whole(tmp_path, permissions=TABLES, compute={"processors": ()}) as box:
        for name, prefix in (("shown", "pacs:x"), ("hidden", "lake:x")):
            key = Identity.generate(name).public
            facts = {"key_id": key.key_id, "fingerprint": "f", "prefixes": [prefix], "until": 1.0}
            box.daemon.trust.add(name, key.text(), **facts)
        assert await seen(box, ANNA, OPERATOR, c.TrustList(), c.Trusted, "name") == ["shown"]
        texts = await seen(box, ANNA, OPERATOR, c.DoctorRequest(), c.Doctor, "text")
        assert [text.split()[2] for text in texts if text.startswith("trust in ")] == ["shown"]


async def submitted(box: Whole, uid: int, source: str) -> str:
    """A job of a user, whatever they may do now."""
    job, _ = box.daemon.box.journal.add(c.GetSpec(source), owner=f"uid({uid})", key=source)
    part = box.daemon.runner.leavings.part(job.id)
    with open(part, "wb") as file:
        file.write(b"sealed")
    item = Adoption(job.id, part, b"o" * 16, b"s" * 16, 6, 1, 3)
    await anyio.to_thread.run_sync(box.daemon.box.vault.adopt, job.id, [item])
    refused = c.QuarantineItem(job.id, job.id, source, "corrupt", "a tag does not match")
    await anyio.to_thread.run_sync(box.daemon.box.quarantine.add, refused)
    return job.id


async def test_whose_jobs_one_sees(tmp_path):
    """One's own; with `all` those of others in remotes one may use; and what may not be seen is not there."""
    async with whole(tmp_path, permissions=TABLES) as box:
        add_remotes(box)
        annas = await submitted(box, ANNA, "pacs:1")
        berts = await submitted(box, BERT, "pacs:2")
        hidden = await submitted(box, BERT, "lake:3")
        chief = (VIEWERS, OPERATORS, 61_000)
        everybody = {
            (ANNA, OPERATOR): {annas},
            (BERT, OPERATOR): {berts, hidden},
            (CARL, chief): {annas, berts},
            (DORA, OPERATOR): set(),
            (ROOT, ()): {annas, berts, hidden},
        }
        for (uid, groups), expected in everybody.items():
            assert set(await seen(box, uid, groups, c.JobsRequest(), c.Jobs, "id")) == expected
            assert set(await seen(box, uid, groups, c.VaultList(), c.Vault, "id")) == expected
            assert set(await seen(box, uid, groups, c.QuarantineList(), c.Quarantine, "id")) == expected
            async with box.client(uid, groups) as caller:
                for job in (annas, berts, hidden):
                    for request, code in (
                        (c.JobRequest(job), "no_such_job"),
                        (c.JobControl(job, "pause"), "no_such_job"),
                        (c.Watch(jobs=[job]), "no_such_job"),
                        (c.VaultEntries(job), "no_such_object"),
                        (c.VaultOpen(job), "no_such_object"),
                        (c.VaultRemove(job), "no_such_object"),
                        (c.QuarantineShow(job), "no_such_object"),
                        (c.QuarantineRetry(job), "no_such_object"),
                        (c.QuarantineRemove(job), "no_such_object"),
                    ):
                        if job not in expected:
                            with pytest.raises(NotFoundError) as caught:
                                await caller.call(request, dict)
                            assert caught.value.code == code
        async with box.client(CARL, chief) as carl, box.client(BERT, OPERATOR) as bert:
            assert (await carl.call(c.JobControl(annas, "pause"), c.JobView)).state == "paused"
            assert (await bert.call(c.JobControl(hidden, "pause"), c.JobView)).state == "paused"
            with pytest.raises(DeniedError):  # his own, but he may not read there any more
                await bert.call(c.JobControl(hidden, "resume"), c.JobView)
            assert (await carl.call(c.JobControl(annas, "resume"), c.JobView)).state == "queued"


async def test_a_watch_shows_no_more_than_a_list(tmp_path):
    """Snapshot and events leave out jobs that one may not see."""
    async with whole(tmp_path, permissions=TABLES) as box:
        add_remotes(box)
        annas, berts = await submitted(box, ANNA, "pacs:1"), await submitted(box, BERT, "pacs:2")
        async with box.client(ANNA, OPERATOR) as anna, box.client(ROOT) as root:
            async with anna.open(c.Watch()) as mine, root.open(c.Watch()) as all_of_them:
                got = [decoded(await all_of_them.receive(c.Event)) for _ in range(2)]
                assert {view.id for view in got} == {annas, berts}
                assert decoded(await mine.receive(c.Event)).id == annas
                for job in (berts, annas):
                    await root.call(c.JobControl(job, "pause"), c.JobView)
                assert [decoded(await all_of_them.receive(c.Event)).id for _ in range(2)] == [berts, annas]
                assert decoded(await mine.receive(c.Event)).id == annas


def decoded(received) -> c.JobView:
    from smp_proto.aio import decode

    return decode(received[0].body, c.JobView)


async def test_a_job_has_the_rights_that_its_owner_has_now(tmp_path):
    """A job whose owner may not submit it any more fails at its next attempt, whoever resumes it."""
    async with whole(tmp_path, scheduler=True, permissions=TABLES) as box:
        add_remotes(box)
        async with box.client(ROOT) as root:
            job = await submitted(box, BERT, "pacs:1")
            box.daemon.scheduler.submitted(box.daemon.box.journal.get(job))
            for resumed in (False, True):
                if resumed:
                    await root.call(c.JobControl(job, "resume"), c.JobView)
                async with root.open(c.Watch(jobs=[job])) as watch:
                    views = [decoded((event, [])) async for event in watch.messages(c.Event)]
                assert views[-1].state == "failed"
                assert views[-1].error is not None
                assert views[-1].error.code == "forbidden"
            own = await root.call(c.Submit(c.GetSpec("pacs:1"), "k"), c.JobView)
            async with root.open(c.Watch(jobs=[own.id])) as watch:
                views = [decoded((event, [])) async for event in watch.messages(c.Event)]
            assert isinstance(views[-1].error, c.jobs.ErrorBody)
            assert views[-1].error.code != "forbidden"


async def test_a_directory_that_is_away_fails_no_job(tmp_path, monkeypatch):
    """It says of every owner that there is none: their jobs wait, without an attempt, and go on once it is back."""
    away, known = True, pwd.struct_passwd(("anna", "x", ANNA, 65_000, "", "/", "/bin/sh"))

    def look_up(uid: int) -> pwd.struct_passwd:
        if uid != ANNA or away:
            raise KeyError(uid)
        return known

    monkeypatch.setattr("smpd.control.actor.pwd.getpwuid", look_up)
    monkeypatch.setattr("smpd.control.actor.os.getgrouplist", lambda _name, gid: [gid, *OPERATOR])
    monkeypatch.setattr("smpd.control.accounts._OWNER_AGAIN_S", 0.01)
    monkeypatch.setattr("smpd.jobs.holding.LOOK_AGAIN_S", 0.01)
    async with whole(tmp_path, scheduler=True, permissions=TABLES) as box:
        add_remotes(box)
        scheduler, journal = box.daemon.scheduler, box.daemon.box.journal
        job, _ = journal.add(GET, owner=f"anna({ANNA})", key="k")
        async with box.client(ROOT) as root, root.open(c.Watch(jobs=[job.id])) as watch:
            scheduler.submitted(job)
            views = []
            with anyio.fail_after(30):
                async for event in watch.messages(c.Event):
                    views.append(decoded((event, [])))
                    if views[-1].state == "waiting":
                        assert views[-1].error.code == "forbidden"
                        assert views[-1].attempt == 0
                        away = False
        assert views[-1].state == "failed"
        assert views[-1].error.code != "forbidden"  # there is no such object


async def test_so_many_jobs_and_no_more(tmp_path):
    """A user's unfinished jobs are limited, those of root are not, and an old key still gives its job."""
    async with whole(tmp_path, jobs={"unfinished_user_max": 2}) as box:
        add_remotes(box)
        async with box.client(ANNA, OPERATOR) as anna, box.client(BERT, OPERATOR) as bert, box.client(ROOT) as root:
            jobs = [await anna.call(c.Submit(GET, str(key)), c.JobView) for key in range(2)]
            with pytest.raises(SmpError) as caught:
                await anna.call(c.Submit(GET, "2"), c.JobView)
            assert (caught.value.code, caught.value.retryable) == ("too_many_jobs", True)
            assert (await anna.call(c.Submit(GET, "1"), c.JobView)).id == jobs[1].id
            await bert.call(c.Submit(GET, "0"), c.JobView)
            for key in range(3):
                await root.call(c.Submit(GET, str(key)), c.JobView)
            await anna.call(c.JobControl(jobs[0].id, "cancel"), c.JobView)
            await anna.call(c.Submit(GET, "2"), c.JobView)


async def test_a_list_of_jobs_is_cut_to_what_fits(tmp_path):
    """However many are asked for, the newest that fit one frame come."""
    async with whole(tmp_path) as box:
        add_remotes(box)
        name = "pacs:" + "x" * 1000
        for key in range(1200):
            box.daemon.box.journal.add(c.GetSpec(name), owner="root(0)", key=str(key))
        async with box.client(ROOT) as root:
            for limit in (1 << 60, 5000):
                jobs = (await root.call(c.JobsRequest(limit=limit), c.Jobs)).jobs
                assert 600 < len(jobs) < 1200
                assert jobs[0].id == box.daemon.box.journal.list(limit=1)[0].id
            assert (await root.call(c.JobsRequest(limit=-5), c.Jobs)).jobs == []


async def test_what_came_of_a_forgotten_job_is_for_those_who_see_all(tmp_path):
    """Whose it was cannot be told any more; it stays in the vault."""
    async with whole(tmp_path, permissions=TABLES, jobs={"ended_kept": 1}) as box:
        add_remotes(box)
        jobs = [await submitted(box, ANNA, f"pacs:{number}") for number in range(3)]
        assert set(await seen(box, ANNA, OPERATOR, c.VaultList(), c.Vault, "id")) == set(jobs)
        for job in jobs:
            await box.daemon.scheduler.cancel(job)
        assert await anyio.to_thread.run_sync(box.daemon.retention.sweep) == 2
        assert await seen(box, ANNA, OPERATOR, c.JobsRequest(), c.Jobs, "id") == jobs[2:]
        assert await seen(box, ANNA, OPERATOR, c.VaultList(), c.Vault, "id") == jobs[2:]
        assert set(await seen(box, ROOT, (), c.VaultList(), c.Vault, "id")) == set(jobs)


async def test_the_daemon_counts_the_jobs_that_end(tmp_path, monkeypatch):
    """Once a piece of them has ended it forgets what is too much."""
    monkeypatch.setattr("smpd.jobs.retention.PIECE", 3)
    async with whole(tmp_path, jobs={"ended_kept": 1}) as box, anyio.create_task_group() as group:
        add_remotes(box)
        jobs = [await submitted(box, ANNA, f"pacs:{number}") for number in range(3)]
        group.start_soon(box.daemon.retention.run)
        for job in jobs:
            await box.daemon.scheduler.cancel(job)
        with anyio.fail_after(20):
            while set(box.daemon.box.journal.ids()) != {jobs[2]}:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()


async def test_a_sync_is_told_of_to_those_who_may_see_it(tmp_path: Path) -> None:
    """Its owner, and who may use its remotes: its name says as much as a job's."""
    tables = {
        "bert": Permission(users=("70002",), read=("open",), jobs="all"),
        "anna": Permission(users=("70001",), read=("secret",), list=("secret",)),
    }
    source = tmp_path / "source"
    source.mkdir()
    async with whole(tmp_path / "box", compute={"processors": ()}, permissions=tables) as box:
        box.daemon.remotes.add("secret", c.LocalConfig(str(source)), mode="zero-knowledge")
        groups = (VIEWERS, OPERATORS)
        async with box.client(70001, groups) as anna, box.client(70002, groups) as bert:
            since = box.daemon.events.seq
            async with anna.open(c.Watch(since=since)) as hers, bert.open(c.Watch(since=since)) as his:
                await anna.call(c.SyncAdd(c.SyncSpec(name="study", source="secret:in/")), c.SyncView)
                with anyio.fail_after(30):
                    told, _ = await hers.receive(c.Event)
                    assert (told.kind, decode(told.body, c.SyncChanged).name) == ("sync", "study")
                    # What he is told next is what comes next that is for him.
                    box.daemon.events.publish("remote", c.RemoteHealth("open"), remotes=("open",))
                    told, _ = await his.receive(c.Event)
                    assert told.kind == "remote"
