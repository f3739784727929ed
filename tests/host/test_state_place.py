"""A state folder among code would be open to workers, and is told."""

import sys

import smpd
from smpd.state import within_reach


def test_a_state_among_code_is_told(tmp_path, monkeypatch):
    """A folder of the search path that holds the state is named; the one that smpd was started in is no worker's."""
    state = tmp_path / "app" / "state"
    state.mkdir(parents=True)
    assert within_reach(str(state)) == []
    monkeypatch.setattr(sys, "path", [str(tmp_path / "app"), *sys.path])
    assert within_reach(str(state)) == []
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "app"), *sys.path[1:]])
    assert within_reach(str(state)) == [str(tmp_path / "app")]
    link = tmp_path / "link"
    link.symlink_to(state)
    assert within_reach(str(link)) == [str(tmp_path / "app")]
    assert within_reach(smpd.__path__[0])
