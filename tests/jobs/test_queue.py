"""The queue against a plain list, whatever comes and goes; and what it keeps of what went."""

from hypothesis import given
from hypothesis import strategies as st

from smp_proto.control import GetSpec, Priority
from smpd.jobs.job import Job
from smpd.jobs.queue import RANKS, Queue

PRIORITIES: list[Priority] = ["critical", "high", "normal", "low"]


def made(number: int, priority: Priority = "normal") -> Job:
    spec = GetSpec("a:b")
    return Job(
        id=str(number), number=number, spec=spec, state="queued", priority=priority, owner="", created=0.0, updated=0.0
    )


@given(st.lists(st.tuples(st.sampled_from(["put", "leave", "take"]), st.integers(0, 30)), max_size=400))
def test_who_is_first(acts: list[tuple[str, int]]) -> None:
    """The most urgent, and of these the one that was submitted first; who left is never it, who came back is again."""
    queue, waiting = Queue(), dict[str, Job]()
    for act, number in acts:
        job = made(number, PRIORITIES[number % 4])
        if act == "put":
            queue.put(job)
            waiting[job.id] = job
        elif act == "leave":
            queue.discard(job.id)
            waiting.pop(job.id, None)
        elif queue.first is not None:
            del waiting[queue.first[0]]
            queue.discard(queue.first[0])
        expected = min(waiting.values(), key=lambda each: (RANKS[each.priority], each.number), default=None)
        assert queue.first == (expected and (expected.id, expected.priority))
        assert len(queue) == len(waiting)


def test_what_left_is_not_kept_behind_what_stays() -> None:
    """Nor is kept twice what left and came back."""
    queue = Queue()
    queue.put(made(0))
    for number in range(1, 500):
        queue.put(made(number))
        queue.discard(str(number))
        queue.put(made(0))
    assert len(queue) == 1
    assert len(queue._heap) < 80
