"""proto/CONTROL.md says what the code does."""

import re
import runpy
from pathlib import Path

import pytest

from smp_proto import wire
from smp_proto.channel import CLIENT_UNREAD_BYTES_MAX, UNREAD_BYTES_MAX, UNREAD_FDS_MAX, UNREAD_MESSAGES_MAX
from smpd.config import Control
from smpd.control.roles import LEAST_ROLE

PROTO = Path(__file__).parents[2] / "proto"
TEXT = (PROTO / "CONTROL.md").read_text()


def test_tables_are_fresh():
    """The tables are what the structs and the list of errors give; else run: python proto/render_control.py."""
    render = runpy.run_path(str(PROTO / "render_control.py"))["render"]
    assert render(TEXT) == TEXT


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
def test_roles(role):
    """The list of each role is the table's."""
    (line,) = re.findall(rf"^- \*\*{role}\*\*: (.*)$", TEXT, re.MULTILINE)
    listed = re.findall(r"`([a-z-]+)`", line)
    assert listed == sorted(kind.__struct_config__.tag for kind, least in LEAST_ROLE.items() if least == role)


def test_frame_types_and_limits():
    """Types, limits and versions on the page are the codec's."""
    assert dict(re.findall(r"^\| (\d) \| ([A-Z]+) \|", TEXT, re.MULTILINE)) == {
        str(int(kind)): kind.name for kind in wire.FrameType
    }
    assert f"# The control protocol, version {wire.PROTOCOL_MAX}\n" in TEXT
    assert f"at most {wire.BODY_MAX_BYTES} |" in TEXT
    assert f"at most {wire.FDS_MAX} |" in TEXT
    assert f"1 to {wire.STREAM_MAX}" in TEXT
    unread = f"{UNREAD_MESSAGES_MAX} messages, {UNREAD_BYTES_MAX >> 20} MiB and {UNREAD_FDS_MAX} descriptors"
    assert f"({CLIENT_UNREAD_BYTES_MAX >> 20} MiB of what a client sends)" in TEXT
    assert unread in TEXT
    assert f"(`control.requests_max`, {Control().requests_max})" in TEXT
    assert f"`control.stall_s` ({Control().stall_s:g} s)" in TEXT
