"""Where a job's time went: its stages one after the other, kept with the job.

A stage is a state that it waited in (``queued``, ``waiting``, ``paused``), or what an attempt was at, says its runner.
``interrupted`` is what is not known of an attempt that a crash cut off. Times are of the wall clock, for display only.
"""

from collections.abc import Iterable

import msgspec

from smp_proto.control import JobStage

STAGES_MAX = 48
_KEPT = 24  # of the newest, one by one, when there are more


class Stage(msgspec.Struct, frozen=True, array_like=True):
    """A stage: how long after the job's submission it began, and how long it took, in milliseconds."""

    name: str
    at_ms: int
    ms: int

    @property
    def end_ms(self) -> int:
        """When it was over."""
        return self.at_ms + self.ms


Stages = tuple[Stage, ...]


def added(stages: Stages, name: str, begin_s: float, end_s: float) -> Stages:
    """The stages with one more, between two times in seconds after the submission, as far as it is after the last one.

    One that continues the last, of the same name, makes that longer. Of many the oldest are added up by name.
    """
    begin = max(round(begin_s * 1000), stages[-1].end_ms if stages else 0)
    took = round(end_s * 1000) - begin
    if took <= 0:
        return stages
    if stages and stages[-1].name == name and stages[-1].end_ms == begin:
        return (*stages[:-1], Stage(name, stages[-1].at_ms, stages[-1].ms + took))
    found = (*stages, Stage(name, begin, took))
    return found if len(found) <= STAGES_MAX else (*_totals(found[:-_KEPT]), *found[-_KEPT:])


def left(stages: Stages, state: str, since_s: float, now_s: float) -> Stages:
    """With a state that the job leaves. One that runs without anybody here knowing of it was cut off by a crash."""
    return added(stages, "interrupted" if state == "running" else state, since_s, now_s)


def _totals(stages: Iterable[Stage]) -> Stages:
    found: dict[str, Stage] = {}
    for each in stages:
        before = found.get(each.name)
        found[each.name] = Stage(each.name, before.at_ms, before.ms + each.ms) if before else each
    return tuple(found.values())


def shown(stages: Stages) -> list[JobStage]:
    """As people are told of them."""
    return [JobStage(each.name, each.at_ms / 1000, each.ms / 1000) for each in stages]
