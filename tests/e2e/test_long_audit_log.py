"""A box whose audit log is long: it works at once, and tells of what was changed in the log once it has come there."""

from pathlib import Path

import pytest
from box import Box
from faulty import until
from scene import client
from whole import configured

from smp_proto.errors import SmpError
from smp_proto.sealed.keys import Identity
from smpctl import Client
from smpd.audit.opening import WHOLE_RECORDS
from smpd.host.folders import ensure_dir
from smpd.state import open_state

EVE = Identity.generate("eve").public
RECORDS = WHOLE_RECORDS + 1000


@pytest.fixture
def box(tmp_path: Path) -> Box:
    """Its log has a year behind it."""
    machine = Box(tmp_path / "box")
    ensure_dir(str(machine.state))
    state = open_state(configured(tmp_path, paths={"state": str(machine.state)}))
    for begin in range(0, RECORDS, 1000):
        state.audit.append("object.open", actor="0:root", subjects=[str(begin + each) for each in range(1000)])
    state.close()
    return machine


def said(caller: Client) -> str:
    return next(check.text for check in caller.doctor() if check.name == "audit")


def test_it_works_at_once_and_is_looked_at_meanwhile(box: Box) -> None:
    """What was changed is told of later; from then on nothing is done, not even for a moment after a start."""
    try:
        box.start()
        with client(box) as caller:
            assert "are still to be verified" in said(caller)
            caller.trust_add("eve", EVE.text())
            until(lambda: "still" not in said(caller))
            assert caller.status().audit_ok
        assert box.stop() == 0
        log = box.state / "audit" / "audit.jsonl"
        at = log.read_bytes().index(b'"0:root"', 12_000_000)
        with log.open("r+b") as file:
            file.seek(at)
            file.write(b'"0:toor"')
        box.start()
        with client(box) as caller:
            assert caller.status().audit_ok
            until(lambda: not caller.status().audit_ok)
            assert "at least one was changed" in said(caller)
            with pytest.raises(SmpError) as refused:
                caller.trust_remove("eve")
            assert refused.value.code == "audit_broken"
        assert b"older records of the audit log are not verified" in box.log.read_bytes()
        box.kill()
        box.start()
        with client(box) as caller:
            assert not caller.status().audit_ok
    finally:
        box.close()
