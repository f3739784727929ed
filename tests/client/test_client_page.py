"""The examples of docs/reference/client.md run as they stand, against the stand-in."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from client.standin import VERSION, StandIn

from smp_proto import aio
from smp_proto import control as c

PAGE = (Path(__file__).parents[2] / "docs/reference/client.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^## (.+?)$.*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


def test_every_example_is_found() -> None:
    """Each heading of the page has one example."""
    assert len(EXAMPLES) == PAGE.count("```python") == PAGE.count("\n## ")


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(daemon: StandIn, home: Path, name: str) -> None:
    """It ends without an error, and printed something or asked for something."""

    async def submit(request: c.Submit, exchange: aio.Exchange) -> c.JobView:
        if isinstance(request.job, c.PutSpec):
            return await daemon.putting(request, exchange)
        return daemon.answers[c.JobRequest]

    async def listing(_request: c.ListObjects, exchange: aio.Exchange) -> None:
        await exchange.send(c.Objects([c.ObjectInfo("2026/a.smp", 1024)]))

    async def reading(_request: c.AuditRead, exchange: aio.Exchange) -> c.AuditProof:
        await exchange.send(c.AuditLines([b"{}\n"]))
        return c.AuditProof([], "box/audit", bytes(32))

    daemon.answers |= {
        c.Submit: submit,
        c.BoxKey: c.PublicKey("smp1pub:x", "", ""),
        c.RemoteAdd: c.RemoteView("lake", "zero-knowledge", c.S3Config("scans"), True),
        c.RemoteTest: c.RemoteTested("lake", 1.0, {"server": "x"}),
        c.ListObjects: listing,
        c.RemoveObject: None,
        c.TrustList: c.Trusted([c.TrustView("ann", "", "", 1.0)]),
        c.AuditRead: reading,
    }
    (home / "scans").mkdir()
    (home / "scans/a").write_bytes(b"a")
    (home / "notes.txt").write_bytes(b"n")
    ran = subprocess.run([sys.executable, "-c", EXAMPLES[name]], cwd=home, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout or len(daemon.seen) > 2
    expected = {
        "Connect": VERSION,
        "Files in and out": "a.txt 5",
        "Remotes, trust, audit": "1 box/audit",
        "Errors": "daemon_down",
    }
    assert expected.get(name, "") in ran.stdout
