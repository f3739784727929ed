"""The states of a job and the moves between them. This table is the whole truth; nothing else decides a state.

Rules it encodes:

- ``start`` and what follows it (``succeed``, ``retry``, ``fail``, ``quarantine``) are the scheduler's moves;
  ``pause``, ``resume`` and ``cancel`` are a person's.
- ``hold`` has a job wait, before it starts, for room or for a remote that is down; it is no attempt.
- ``recover`` is what happens to a running job whose daemon died: it goes back to the queue.
- ``done`` and ``cancelled`` are the end. ``failed`` and ``quarantined`` can be resumed: a new try goes on from
  what the spool holds. They can also be cancelled, which lets go of what the spool holds.
"""

from typing import Literal, get_args

from smp_proto.control import JobState
from smp_proto.errors import StateError

Move = Literal["start", "succeed", "retry", "fail", "quarantine", "pause", "resume", "cancel", "recover", "due", "hold"]

STATES: tuple[JobState, ...] = get_args(JobState)

MOVES: dict[JobState, dict[Move, JobState]] = {
    "queued": {"start": "running", "hold": "waiting", "pause": "paused", "cancel": "cancelled"},
    "waiting": {"due": "queued", "pause": "paused", "cancel": "cancelled"},
    "running": {
        "succeed": "done",
        "retry": "waiting",
        "fail": "failed",
        "quarantine": "quarantined",
        "pause": "paused",
        "cancel": "cancelled",
        "recover": "queued",
    },
    "paused": {"resume": "queued", "cancel": "cancelled"},
    "failed": {"resume": "queued", "cancel": "cancelled"},
    "quarantined": {"resume": "queued", "cancel": "cancelled"},
    "done": {},
    "cancelled": {},
}

# States that no move leaves: the spool of such a job is of no more use.
ENDED: frozenset[JobState] = frozenset(state for state, moves in MOVES.items() if not moves)

_OF_A_PERSON: tuple[Move, ...] = ("pause", "resume", "cancel")


def next_state(state: JobState, move: Move, job: str = "") -> JobState:
    """Return the state that ``move`` leads to from ``state``.

    Args:
        state: where the job is.
        move: what is to happen.
        job: the job's id, for the message.

    Raises:
        StateError: ``wrong_state``; the message says what is possible instead.
    """
    to = MOVES[state].get(move)
    if to is not None:
        return to
    possible = [name for name in _OF_A_PERSON if name in MOVES[state]]
    hint = f"from here it can {' or '.join(possible)}" if possible else "this is the end of it; submit it as a new job"
    raise StateError(
        "wrong_state",
        f"job {job} is {state}: it cannot {move}" if job else f"a {state} job cannot {move}",
        hint=hint,
        details={"state": state, "possible": possible},
    )
