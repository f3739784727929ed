"""The verbs that talk to a daemon, run as processes against the stand-in."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from client.conftest import Smpctl
from client.standin import ITEM_ID, JOB_ID, StandIn, entry, job, status

from smp_proto import control as c
from smp_proto.aio import Exchange
from smp_proto.errors import DeniedError, IntegrityError, NotFoundError, StateError

OTHER_ID = "0ther" + ITEM_ID[5:]


def test_status_prints_aligned_facts(smpctl: Smpctl, daemon: StandIn) -> None:
    """Status names the version, the role and the free space in binary units."""
    ran = smpctl("status")
    assert ran.code == 0
    assert "9.9.9, process 4242, up 1 h 2 min" in ran.out
    assert "5.0 TiB free in /var/lib/smpd" in ran.out
    assert "\x1b" not in ran.out


VERBS: list[tuple[list[str], object]] = [
    (["status"], status()),
    (["doctor"], c.Check("sandbox", "ok", "Landlock 5")),
    (["processors"], c.ProcessorInfo("digest", "*/*", "secure-media-processor", "hashes")),
    (["jobs"], job()),
    (["job", "show", JOB_ID[:6]], job("done")),
    (["job", "wait", JOB_ID[:6]], job("done")),
    (["job", "pause", JOB_ID], job("paused")),
    (["remote", "list"], c.RemoteView("lab", "standard", c.S3Config("b"), True)),
    (["remote", "test", "lab"], c.RemoteTested("lab", 12.0, {"server": "x"})),
    (["ls", "lab:"], c.ObjectInfo("a/b.smp", 1024)),
    (["vault", "ls"], c.VaultItem(ITEM_ID, "", 1, 1, "", 0.0, "")),
    (["vault", "ls", ITEM_ID[:4]], entry("a.txt", 5)),
    (["trust", "list"], c.TrustView("ann", "00", "ab-cd", 1.0)),
    (["get", "lab:a.smp"], job("done")),
    (["run", "digest", "lab:a.smp"], job("done")),
]


@pytest.mark.parametrize(("args", "kind"), VERBS, ids=[" ".join(args) for args, _ in VERBS])
def test_json_decodes_into_the_protocols_structs(
    smpctl: Smpctl, daemon: StandIn, args: list[str], kind: msgspec.Struct
) -> None:
    """Each line of --json is one of the protocol's structs, and nothing else is on standard output."""

    async def listing(_request: c.ListObjects, exchange: object) -> None:
        await exchange.send(c.Objects([c.ObjectInfo("a/b.smp", 1024)]))  # type: ignore[attr-defined]

    daemon.answers |= {
        c.DoctorRequest: c.Doctor([c.Check("sandbox", "ok", "Landlock 5")]),
        c.ProcessorsRequest: c.Processors([c.ProcessorInfo("digest", "*/*", "secure-media-processor", "hashes")]),
        c.RemoteList: c.Remotes([c.RemoteView("lab", "standard", c.S3Config("b"), True)]),
        c.RemoteTest: c.RemoteTested("lab", 12.0, {"server": "x"}),
        c.ListObjects: listing,
        c.TrustList: c.Trusted([c.TrustView("ann", "00", "ab-cd", 1.0)]),
    }
    ran = smpctl(*args, "--json")
    assert ran.code == 0, ran.err
    (line,) = ran.out.splitlines()
    assert isinstance(msgspec.json.decode(line, type=type(kind)), type(kind))
    assert args != ["status"] or smpctl("--json", *args).out == ran.out


class Wanted(msgspec.Struct):
    """The parameters of some processor."""

    method: Literal["sobel", "canny"]
    sigma: Annotated[float, msgspec.Meta(gt=0, le=100, description="in pixels")] = 1.0
    width: Annotated[int, msgspec.Meta(ge=1)] | None = None


def test_a_processor_is_shown_with_its_parameters(smpctl: Smpctl, daemon: StandIn) -> None:
    """Each with what it takes, its default and what it means; and why a processor is not there."""
    schema = msgspec.json.schema(Wanted)
    there = c.ProcessorInfo("edges", "image/*", "smp-edges", "Edges.", params=schema)
    gone = c.ProcessorInfo("odd", "", "smp-odd", "", trouble="it cannot be imported")
    daemon.answers[c.ProcessorsRequest] = c.Processors([there, gone])
    shown = smpctl("processors", "edges").out.splitlines()
    assert shown[-3:] == [
        '  -p method=…  "canny" or "sobel", required',
        "  -p sigma=…  number > 0 ≤ 100, default 1.0; in pixels",
        "  -p width=…  integer ≥ 1 or null, default null",
    ]
    assert "it cannot be imported" in smpctl("processors").out
    assert "it cannot be imported" in smpctl("processors", "odd").out


def test_people_get_text(smpctl: Smpctl, daemon: StandIn) -> None:
    """Without --json every listing is a table or a sentence, empty ones with what to type next."""
    daemon.answers |= {c.JobsRequest: c.Jobs([]), c.VaultList: c.Vault([]), c.RemoteList: c.Remotes([])}
    assert "smpctl get REMOTE:PATH" in smpctl("jobs").out
    assert "smpctl get REMOTE:PATH" in smpctl("vault", "ls").out
    assert "smpctl remote add" in smpctl("remote", "list").out


def test_doctor_fails_when_a_check_fails(smpctl: Smpctl, daemon: StandIn) -> None:
    """A failed check gives exit code 8 and shows its hint; no colour goes into a pipe."""
    daemon.answers[c.DoctorRequest] = c.Doctor([c.Check("gpu", "fail", "none found", "install a driver")])
    ran = smpctl("doctor")
    assert (ran.code, "hint: install a driver" in ran.out, "\x1b" in ran.out) == (8, True, False)


def test_an_error_of_the_daemon_is_told(smpctl: Smpctl, daemon: StandIn) -> None:
    """Message and hint go to standard error; the exit code is the family's; --json also puts the body on stdout."""
    daemon.answers[c.RemoteTest] = DeniedError("forbidden", "no role", hint="ask someone")
    ran = smpctl("remote", "test", "lab", "--json")
    assert (ran.code, ran.err) == (4, "smpctl: no role\nhint: ask someone\n")
    assert ran.json == {"error": {"code": "forbidden", "message": "no role", "hint": "ask someone"}}


def test_hostile_text_does_not_reach_the_terminal(smpctl: Smpctl, daemon: StandIn) -> None:
    """Control characters in a name are shown, not obeyed."""
    daemon.answers[c.JobsRequest] = c.Jobs([job(source="lab:\x1b[2J\r\nx")])
    ran = smpctl("jobs")
    assert "\x1b" not in ran.out
    assert "\\x1b[2J\\r\\nx" in ran.out


@pytest.mark.parametrize(
    ("final", "code"),
    [
        (job("failed", error=IntegrityError("truncated", "too short").body()), 7),
        (job("quarantined", error=IntegrityError("corrupt", "bad tag").body()), 7),
        (job("cancelled"), 10),
        (job("failed"), 70),
    ],
)
def test_a_job_that_failed_gives_its_code(smpctl: Smpctl, daemon: StandIn, final: c.JobView, code: int) -> None:
    """Get exits with the code of the job's error; in JSON the job itself is the one object."""
    daemon.answers |= {c.Watch: daemon.watching([final]), c.JobRequest: final}
    ran = smpctl("get", "lab:scan.smp")
    assert (ran.code, ran.out) == (code, "")
    if final.error:
        assert f"smpctl: {final.error.message}" in ran.err
    ran = smpctl("get", "lab:scan.smp", "--json")
    assert (ran.code, msgspec.json.decode(ran.out, type=c.JobView).state) == (code, final.state)


def test_detach_prints_the_id(smpctl: Smpctl, daemon: StandIn) -> None:
    """With --detach only the id is printed and nobody waits."""
    ran = smpctl("get", "lab:scan.smp", "--detach", "--priority", "high", "--key", "k1")
    assert (ran.code, ran.out) == (0, f"{JOB_ID}\n")
    assert daemon.seen == [c.Submit(c.GetSpec("lab:scan.smp"), "k1", "high")]


def test_progress_is_plain_lines_in_a_pipe(smpctl: Smpctl, daemon: StandIn) -> None:
    """Where standard error is no terminal, progress is lines without escapes; stdout has the result alone."""
    ran = smpctl("get", "lab:scan.smp")
    assert "get 0198c0de: running, 50 B of 100 B\n" in ran.err
    assert "\x1b" not in ran.err
    assert ran.out == f"vault {ITEM_ID}: 1 entries, 5 B\n"


def test_export_writes_files_and_says_so(smpctl: Smpctl, daemon: StandIn, tmp_path: Path) -> None:
    """Get --export opens the vault item into files of ours, private to us."""
    ran = smpctl("get", "lab:scan.smp", "--export", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert (tmp_path / "out/a.txt").read_bytes() == b"hello"
    assert (tmp_path / "out/a.txt").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path / "out") == ["a.txt"]


def test_export_that_fails_says_where_the_object_is(smpctl: Smpctl, daemon: StandIn, tmp_path: Path) -> None:
    """When the files cannot be made, the hint names the vault item, which is there."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.txt").write_text("mine")
    ran = smpctl("get", "lab:scan.smp", "--export", tmp_path / "out")
    assert (ran.code, f"smpctl vault open {ITEM_ID}" in ran.err) == (StateError.exit_code, True)
    assert (tmp_path / "out/a.txt").read_text() == "mine"


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("names", [("a.txt", "a.txt"), ("a.txt", "A.TXT"), ("a.txt", "a.txt/b")])
def test_export_of_objects_with_the_same_names_is_refused(
    smpctl: Smpctl, daemon: StandIn, tmp_path: Path, names: tuple[str, str], force: list[str]
) -> None:
    """Two objects of a prefix that would be one file: both are named, and nothing is written."""
    contents = dict(zip([ITEM_ID, OTHER_ID], names, strict=True))
    serve_prefix(daemon, contents)
    ran = smpctl("get", "lab:scans/", "--export", tmp_path / "out", *force)
    assert (ran.code, all(each in ran.err for each in contents)) == (StateError.exit_code, True), ran.err
    assert "smpctl vault open ID -o DIR" in ran.err
    assert not (tmp_path / "out").exists()


def test_export_of_several_objects(smpctl: Smpctl, daemon: StandIn, tmp_path: Path) -> None:
    """Objects of a prefix with names of their own share a folder."""
    serve_prefix(daemon, {ITEM_ID: "d/a.txt", OTHER_ID: "d/b.txt"})
    ran = smpctl("get", "lab:scans/", "--export", tmp_path / "out")
    assert (ran.code, "2 files" in ran.err) == (0, True), ran.err
    assert sorted(os.listdir(tmp_path / "out/d")) == ["a.txt", "b.txt"]
    assert [each.id for each in daemon.seen if isinstance(each, c.VaultEntries)] == [ITEM_ID, OTHER_ID]


@pytest.mark.parametrize("in_the_way", [True, False])
def test_export_of_several_objects_is_all_or_nothing(
    smpctl: Smpctl, daemon: StandIn, tmp_path: Path, in_the_way: bool
) -> None:
    """A file in the way of the last is seen before any is opened; an object that does not open leaves none of them."""
    serve_prefix(daemon, {ITEM_ID: "d/a.txt", OTHER_ID: "d/b.txt"}, broken="" if in_the_way else OTHER_ID)
    if in_the_way:
        (tmp_path / "out/d").mkdir(parents=True)
        (tmp_path / "out/d/b.txt").write_text("mine")
    ran = smpctl("get", "lab:scans/", "--export", tmp_path / "out")
    there = (
        f"smpctl vault ls --job {JOB_ID}"
        if in_the_way
        else f"bad tag\nhint: it is in the vault: smpctl vault open {OTHER_ID}"
    )
    assert (ran.code, there in ran.err) == (10 if in_the_way else 7, True), ran.err
    assert [path.name for path in tmp_path.glob("out/**/*.txt")] == (["b.txt"] if in_the_way else [])
    assert any(isinstance(each, c.VaultOpen) for each in daemon.seen) != in_the_way


def serve_prefix(daemon: StandIn, contents: dict[str, str], broken: str = "") -> None:
    """A get of a prefix, done: vault items by id, each with one entry of this name; one may not open."""
    done = job("done", result=c.Result(entries=len(contents), plain_bytes=10))
    items = [c.VaultItem(each, "aa" * 16, 4096, 1, "abab", time.time(), JOB_ID) for each in contents]

    async def entries(request: c.VaultEntries, _exchange: Exchange) -> c.Entries:
        return c.Entries([entry(contents[request.id], 5)])

    async def opening(request: c.VaultOpen, exchange: Exchange) -> c.Entries:
        error = IntegrityError("corrupt", "bad tag") if request.id == broken else None
        return await daemon.opening({contents[request.id]: b"hello"}, error)(request, exchange)

    daemon.answers |= {
        c.Watch: daemon.watching([done]),
        c.JobRequest: done,
        c.VaultList: c.Vault(items),
        c.VaultEntries: entries,
        c.VaultOpen: opening,
    }


def test_run_takes_json_and_text_parameters(smpctl: Smpctl, daemon: StandIn) -> None:
    """A value that is JSON is taken as such, any other as text."""
    params = ["-p", "width=512", "-p", "sharp=true", "-p", "sizes=[1,2]", "-p", "mode=fast", "-p", "note=a=b"]
    assert smpctl("run", "image.resize", "lab:a.smp", *params, "--to", "lab:out/").code == 0
    spec = next(each for each in daemon.seen if isinstance(each, c.Submit)).job
    assert spec.params == {"width": 512, "sharp": True, "sizes": [1, 2], "mode": "fast", "note": "a=b"}
    assert spec.target == "lab:out/"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["get", "lab:a", "--export", "d", "--detach"], "has to wait"),
        (["run", "p", "lab:a", "--to", "lab:b", "--export", "d"], "--to and --export"),
        (["run", "p", "lab:a", "-p", "x"], "is no new K=V"),
        (["get", "no-colon"], "is no REMOTE:PATH"),
        (["get"], "missing argument"),
        (["frobnicate"], "no such command"),
        (["jobs", "--state", "odd"], "'odd' is not one of"),
        (["vault", "rm", ITEM_ID], "there is no terminal"),
    ],
)
def test_wrong_use_is_code_2(smpctl: Smpctl, daemon: StandIn, args: list[str], said: str) -> None:
    """What was typed wrongly is said in one line with a hint, and nothing is asked of the daemon for it."""
    ran = smpctl(*args)
    assert (ran.code, said in ran.err.lower() or said in ran.err) == (2, True), ran.err
    assert ran.err.count("hint: ") == 1
    assert not any(isinstance(each, c.Submit | c.VaultRemove) for each in daemon.seen)


def test_an_id_may_be_cut_short_but_not_ambiguous(smpctl: Smpctl, daemon: StandIn) -> None:
    """A prefix of several jobs is refused, one of none is not found."""
    daemon.answers[c.JobsRequest] = c.Jobs([job(id="aa1"), job(id="aa2"), job(id="aa")])
    assert "2 jobs begin" in smpctl("job", "cancel", "a").err or "3 jobs begin" in smpctl("job", "cancel", "a").err
    assert smpctl("job", "cancel", "zz").code == 5
    assert smpctl("job", "cancel", "aa").code == 0
    assert daemon.seen[-1] == c.JobControl("aa", "cancel")


def test_a_shortened_id_is_asked_of_the_daemon(smpctl: Smpctl, daemon: StandIn) -> None:
    """Which may know older jobs than a listing has room for."""

    async def answer(request: c.JobsRequest, _exchange: Exchange) -> c.Jobs:
        return c.Jobs([job(id="old" + "0" * 13)] if request.begins == "ol" else [])

    daemon.answers[c.JobsRequest] = answer
    assert smpctl("job", "cancel", "ol").code == 0
    assert daemon.seen[-1] == c.JobControl("old" + "0" * 13, "cancel")


def test_table_ids_are_short_and_differ(smpctl: Smpctl, daemon: StandIn) -> None:
    """Ids are cut as short as leaves them different."""
    daemon.answers[c.JobsRequest] = c.Jobs([job(id="0198c0de5a01"), job(id="0198c0de5b01")])
    assert [line.split()[0] for line in smpctl("jobs").out.splitlines()] == ["id", "0198c0de5a", "0198c0de5b"]


def test_events_are_ndjson(smpctl: Smpctl, daemon: StandIn) -> None:
    """Each event is one object with its body decoded; unknown kinds pass."""

    async def answer(_request: c.Watch, exchange: object) -> None:
        await exchange.send(c.Event(1, "job", msgspec.Raw(msgspec.msgpack.encode(job()))))  # type: ignore[attr-defined]
        await exchange.send(c.Event(2, "novelty", msgspec.Raw(msgspec.msgpack.encode({"a": 1}))))  # type: ignore[attr-defined]

    daemon.answers[c.Watch] = answer
    first, second = smpctl("events", "--json").lines
    assert msgspec.convert(first["body"], c.JobView).id == JOB_ID
    assert second == {"seq": 2, "at": 0.0, "kind": "novelty", "body": {"a": 1}}
    assert "novelty" in smpctl("events").out


def test_put_passes_descriptors(smpctl: Smpctl, daemon: StandIn, home: Path) -> None:
    """Files of a folder arrive as descriptors under relative names; links are left out and said; --to box works."""
    from smp_proto.sealed.keys import Identity

    box = Identity.generate("box").public
    daemon.answers |= {c.Submit: daemon.putting, c.BoxKey: c.PublicKey(box.text(), "", box.fingerprint())}
    (home / "scans/sub").mkdir(parents=True)
    (home / "scans/a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (home / "scans/sub/b").write_bytes(b"")
    (home / "scans/link").symlink_to("/etc/passwd")
    ran = smpctl("put", "scans", "lab:x/", "--to", "box", "--detach")
    assert ran.code == 0, ran.err
    assert "left out scans/link" in ran.err
    assert daemon.written == {"scans/a.png": b"\x89PNG\r\n\x1a\n", "scans/sub/b": b""}
    media = {each.name: each.media_type for each in daemon.seen if isinstance(each, c.PutFile)}
    assert media == {"scans/a.png": "image/png", "scans/sub/b": "application/octet-stream"}
    submit = next(each for each in daemon.seen if isinstance(each, c.Submit))
    assert submit.job == c.PutSpec("lab:x/", [box.text()])


def test_vault_open_and_rm(smpctl: Smpctl, daemon: StandIn, tmp_path: Path) -> None:
    """Open writes below DIR, rm deletes when told --yes."""
    assert smpctl("vault", "open", "5eed", "-o", tmp_path / "o").code == 0
    assert (tmp_path / "o/a.txt").read_bytes() == b"hello"
    assert smpctl("vault", "open", "5eed", "-o", tmp_path / "o").code == 10
    assert smpctl("vault", "open", "5eed", "-o", tmp_path / "o", "--force").code == 0
    assert smpctl("vault", "open", "5eed", "-o", tmp_path / "p", "--name", "zz").code == 5
    assert smpctl("vault", "rm", "5eed", "--yes", "--json").json == {"removed": ITEM_ID}
    assert daemon.seen[-1] == c.VaultRemove(ITEM_ID)


def test_no_daemon_says_what_to_type(smpctl: Smpctl) -> None:
    """Without a daemon every verb says how to start one (code 3), and a bare smpctl what works without."""
    ran = smpctl("status")
    assert (ran.code, "systemctl start smpd.socket" in ran.err) == (3, True)
    ran = smpctl()
    assert (ran.code, "smpctl keys new" in ran.out) == (0, True)


def test_bare_smpctl_says_what_to_type_next(smpctl: Smpctl, daemon: StandIn) -> None:
    """With remotes it shows how to use them, without any how to add one."""
    assert "smpctl ls lab:" in smpctl().out
    daemon.answers[c.StatusRequest] = status(remotes=[])
    assert "smpctl remote add" in smpctl().out


def test_help_lists_all_verbs_and_completion_works(smpctl: Smpctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Help names every verb; each has help of its own; click's completion answers."""
    from smpctl.cli import VERBS as TABLE
    from smpctl.cli import cli

    shown = smpctl("--help").out
    assert all(f"  {name} " in shown for name in TABLE)
    for name in TABLE:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.name == name
        assert command.help
    monkeypatch.setenv("_SMPCTL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "smpctl re")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert smpctl().out.splitlines() == ["plain,reload", "plain,rewrap", "plain,remote"]


LEAN = """
import sys
import time
sys.argv = ["smpctl", *{args}]
from smpctl.__main__ import main
try:
    main()
except SystemExit as done:
    print(done.code)
print(*[name for name in ("torch", "anyio", "structlog", "cryptography", "rich", "nacl", "blake3") if name in sys.modules])
"""


@pytest.mark.parametrize("args", [["status"], ["jobs"], ["get", "lab:a"], ["job", "wait", JOB_ID], ["doctor"], []])
def test_hot_verbs_import_nothing_heavy(daemon: StandIn, args: list[str]) -> None:
    """Asking the daemon costs a socket and click: no torch, anyio, structlog, cryptography, rich."""
    ran = subprocess.run(
        [sys.executable, "-c", LEAN.format(args=args)], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.splitlines()[-1] == ""


def test_the_library_is_lazy() -> None:
    """Importing smpctl imports none of its modules; its public names are there, others are not."""
    code = "import sys, smpctl; print([m for m in sys.modules if m.startswith(('smpctl.', 'msgspec', 'anyio'))]); smpctl.Client"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "[]\n"
    import smpctl as library

    assert all(getattr(library, name) for name in library.__all__)
    with pytest.raises(AttributeError):
        library.nothing  # noqa: B018


@pytest.mark.parametrize(("since", "asked"), [("17", (17, 0.0)), ("10m", (0, 600.0)), ("1.5h", (0, 5400.0))])
def test_events_since(smpctl: Smpctl, daemon: StandIn, since: str, asked: tuple[int, float]) -> None:
    """A number goes on after it, a time begins that long ago."""
    assert smpctl("events", "--since", since).code == 0
    (request,) = [each for each in daemon.seen if isinstance(each, c.Watch)]
    assert (request.since, request.ago_s) == asked


def test_events_since_nonsense(smpctl: Smpctl, daemon: StandIn) -> None:
    """What is neither is refused, with examples."""
    ran = smpctl("events", "--since", "yesterday")
    assert (ran.code, "for example: 30s, 5m, 1h" in ran.err) == (2, True)


def test_job_show_says_where_the_time_went(smpctl: Smpctl, daemon: StandIn) -> None:
    """Each stage with its part, and what the same ones took together."""
    stages = [("queued", 0.0, 1.0), ("fetch", 1.0, 5.0), ("waiting", 6.0, 90.0), ("fetch", 96.0, 4.0)]
    daemon.answers[c.JobRequest] = job("done", stages=[c.JobStage(*each) for each in stages])
    rows = [line.split() for line in smpctl("job", "show", JOB_ID).out.splitlines()]
    start = rows.index(["stage", "began", "took", "of", "all"])
    assert rows[start + 3][:8] == ["waiting", "+6.000", "s", "1", "min", "30", "s", "90"]
    assert rows[-2] == ["fetch", "9.000", "s", "9", "%"]


@pytest.mark.parametrize("args", [["job", "show"], ["job", "cancel"], ["vault", "ls", "--job"]], ids=" ".join)
def test_a_job_by_its_whole_id_need_not_be_listed(smpctl: Smpctl, daemon: StandIn, args: list[str]) -> None:
    """A listing is as long as one frame holds; a job that is older is found all the same."""
    old = "0123456789abcdef"

    async def one(request: c.JobRequest, _exchange: object) -> c.JobView:
        if request.id != old:
            raise NotFoundError("no_such_job", "no such job")
        return job("done", id=old)

    daemon.answers |= {c.JobRequest: one, c.JobControl: job("cancelled", id=old)}
    assert smpctl(*args, old).code == 0
    ran = smpctl(*args, "f" * 16)
    assert (ran.code, "no job begins with" in ran.err) == (5, True)
