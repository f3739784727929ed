"""``smpctl traces``: what a collector would read of jobs, and nothing of their objects."""

import base64
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from client.conftest import Smpctl
from client.standin import JOB_ID, StandIn, job, standin
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from smp_proto import control as c
from smp_proto.errors import ErrorBody
from smpctl.traces import trace_of

STAGES = [c.JobStage("queued", 0.0, 0.5), c.JobStage("fetch", 0.5, 1.5), c.JobStage("store", 2.0, 0.25)]


def ended(state: c.JobState = "done", **changes: Any) -> c.JobView:
    facts = {"processor": "image.edges", "target": "ward:Doe^Jane/out.smp", "created": 1e9, "updated": 1e9 + 2.25}
    return job(state, **{**facts, "stages": STAGES, "attempt": 1, **changes})


def read(line: str) -> ExportTraceServiceRequest:
    """As OTLP's own messages have it; ids are hex in OTLP/JSON, where protobuf's JSON has base64."""
    hexed = re.compile(r'("(?:trace|span|parentSpan)Id":)"([0-9a-f]+)"')
    text = hexed.sub(lambda found: f'{found[1]}"{base64.b64encode(bytes.fromhex(found[2])).decode()}"', line)
    return json_format.Parse(text, ExportTraceServiceRequest())


def spans_of(line: str) -> list[Any]:
    (resource,) = read(line).resource_spans
    (scope,) = resource.scope_spans
    return list(scope.spans)


def test_a_trace_is_one_to_otlp() -> None:
    """Every field is one of OTLP's; stages are below the job, of one trace, in nanoseconds; what failed is an error."""
    view = ended("failed", error=ErrorBody("remote_auth", "the server said Doe^Jane"))
    line = msgspec.json.encode(trace_of(view, "box")).decode()
    root, *stages = spans_of(line)
    assert (root.name, root.start_time_unix_nano, root.end_time_unix_nano) == (
        "job get",
        10**18,
        10**18 + 2_250_000_000,
    )
    assert (root.status.code, root.status.message) == (root.status.STATUS_CODE_ERROR, "remote_auth")
    assert [(each.name, each.start_time_unix_nano - 10**18) for each in stages] == [
        ("queued", 0),
        ("fetch", 500_000_000),
        ("store", 2_000_000_000),
    ]
    assert {each.parent_span_id for each in stages} == {root.span_id}
    assert {each.trace_id for each in stages} == {root.trace_id}
    assert (len(root.trace_id), len({each.span_id for each in (root, *stages)})) == (16, 4)
    said = {each.key: each.value.string_value for each in root.attributes}
    assert (said["smp.remote.source"], said["smp.remote.target"], said["smp.job.id"]) == ("lab", "ward", JOB_ID)
    assert "Doe" not in line
    assert "scan" not in line


def test_the_same_job_is_the_same_trace() -> None:
    """Written twice it is one trace; another job is another."""
    one, again, other = (trace_of(ended(id=each), "box") for each in ("a", "a", "b"))
    assert one == again
    assert one != other


def test_print(smpctl: Smpctl, daemon: StandIn) -> None:
    """A line for each job that has ended, or for those named."""
    daemon.answers |= {c.JobsRequest: c.Jobs([ended(), ended()]), c.JobRequest: ended()}
    assert len(smpctl("traces", "print").out.splitlines()) == 2
    daemon.answers[c.JobsRequest] = c.Jobs([ended()])
    (line,) = smpctl("traces", "print", JOB_ID[:8]).out.splitlines()
    assert spans_of(line)[0].status.code == 1


def test_append_writes_each_end_once(home: Path, tmp_path: Path) -> None:
    """What ended before is left out; a restart of the daemon shows jobs again, and they are not written again."""
    path, file = os.environ["SMPD_SOCKET"], tmp_path / "traces.jsonl"
    file.write_text("")
    argv = [sys.executable, "-m", "smpctl", "traces", "append", str(file)]
    late = [ended(id=name, updated=5.0) for name in ("a", "b", "c")]  # by a clock that was set back
    with standin(path) as daemon:
        daemon.answers[c.Watch] = daemon.watching([ended(id="old"), late[0], job("running"), late[1]])
        with subprocess.Popen(argv) as process:
            assert process.wait(60) == 0
    assert len(file.read_text().splitlines()) == 2
    with standin(path) as daemon:
        daemon.answers[c.Watch] = daemon.watching([late[2], late[2], ended(id="c", updated=5e9)])
        with subprocess.Popen(argv) as process:
            assert process.wait(60) == 0
    lines = file.read_text().splitlines()
    assert len({spans_of(line)[0].trace_id for line in lines}) == 3
    assert len(lines) == 3


@pytest.mark.parametrize("half", ['{"resourceSpans":[{"res', '{"re', "a note"])
def test_append_after_half_a_line(home: Path, tmp_path: Path, half: str) -> None:
    """A disk that is full leaves no half of a trace, and one that a crash left is cut off; what is no trace stays."""
    path, file = os.environ["SMPD_SOCKET"], tmp_path / "traces.jsonl"
    file.write_text("{}\n" + half)
    argv = [sys.executable, "-m", "smpctl", "traces", "append", str(file)]
    limit = 1000  # bytes: less than two lines
    full = ["prlimit", f"--fsize={limit}", *argv]
    for command, code in ((full, 8), (argv, 0)):
        with standin(path) as daemon:
            daemon.answers[c.Watch] = daemon.watching([ended(id="old"), ended(id="a"), ended(id="b")])
            with subprocess.Popen(command) as process:
                assert process.wait(60) == code
        lines = file.read_text().splitlines()
        assert file.read_text().endswith("\n")
        assert [line for line in lines if not line.startswith('{"resourceSpans"')] == [
            "{}",
            *["a note"] * (half == "a note"),
        ]
        assert all(spans_of(line) for line in lines if line.startswith('{"resource'))


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("absent/traces.jsonl", 8, "there is no such folder"), ("link", 2, "link is a symbolic link")],
)
def test_append_where_it_cannot(
    smpctl: Smpctl, daemon: StandIn, tmp_path: Path, name: str, code: int, said: str
) -> None:
    """No folder, or a link: it is said, and nothing is written."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    ran = smpctl("traces", "append", tmp_path / name)
    assert (ran.code, said in ran.err) == (code, True), ran.err
    assert not (tmp_path / "elsewhere").exists()


def test_append_ends_with_ctrl_c(home: Path, daemon: StandIn, tmp_path: Path) -> None:
    """It is told to stop as any verb is."""
    file = tmp_path / "traces.jsonl"

    async def answer(_request: c.Watch, exchange: Any) -> None:
        await exchange.send(c.Event(1, "job", msgspec.Raw(msgspec.msgpack.encode(ended()))))
        await exchange.receive(c.Event)  # which never comes

    daemon.answers[c.Watch] = answer
    with subprocess.Popen([sys.executable, "-m", "smpctl", "traces", "append", str(file)]) as process:
        while not (file.exists() and file.read_text()):
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
