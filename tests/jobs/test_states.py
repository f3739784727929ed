"""The table of moves."""

from typing import get_args

import pytest

from smp_proto.control import FINAL_STATES, JobState
from smp_proto.errors import StateError
from smpd.jobs.states import ENDED, MOVES, Move, next_state


def test_table_names_every_state_and_move() -> None:
    """Each state has its row, each move is used, and every state but the first is reached."""
    assert set(get_args(JobState)) == set(MOVES)
    assert set(get_args(Move)) == {move for moves in MOVES.values() for move in moves}
    assert set(get_args(JobState)) == {to for moves in MOVES.values() for to in moves.values()}


def test_final_states_are_left_only_by_a_person() -> None:
    """Only resume and cancel leave a final state, and nothing leaves an ended one; cancel leaves every other."""
    assert FINAL_STATES >= ENDED == {"done", "cancelled"}
    for state, moves in MOVES.items():
        if state in FINAL_STATES:
            assert set(moves) <= {"resume", "cancel"}
        if state not in ENDED:
            assert moves["cancel"] == "cancelled"


@pytest.mark.parametrize("state", get_args(JobState))
@pytest.mark.parametrize("move", get_args(Move))
def test_next_state_is_the_table(state: JobState, move: Move) -> None:
    """A move in the table gives its state; any other is refused with what is possible."""
    if move in MOVES[state]:
        assert MOVES[state][move] == next_state(state, move)
        return
    with pytest.raises(StateError) as caught:
        next_state(state, move, "j1")
    assert caught.value.code == "wrong_state"
    assert "j1" in caught.value.message
    assert all(name in MOVES[state] for name in caught.value.details["possible"])
    assert all(name in caught.value.hint for name in caught.value.details["possible"])
