"""How long nothing has moved."""

from hypothesis import given
from hypothesis import strategies as st

from smpd.host.pulse import Pulse

looks = st.lists(st.tuples(st.floats(0.0, 1e4), st.integers(0, 2), st.booleans()), max_size=30)


@given(looks)
def test_still_is_counted_from_the_last_move(looks):
    """Any change of the marks, and having nothing to do, begins anew; it never goes back, nor beyond what passed."""
    now = moved = 0.0
    marks = None
    pulse = Pulse(lambda: now)
    for seconds, seen, busy in looks:
        now += seconds
        if not busy or seen != marks:
            marks, moved = seen, now
        assert pulse.still_s(seen, busy=busy) == now - moved
