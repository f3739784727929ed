"""How the kernel schedules what moves and opens data: for throughput, and behind what somebody waits for."""

import contextlib
import os


def work_in_bulk() -> None:
    """From now on this thread, and those it starts, preempt nobody when they wake up (SCHED_BATCH, sched(7)).

    Whoever hands data on wakes somebody for each piece, who would take the core from under it: with fewer cores than
    processes two switches for what one does, and less data each time. Where a core is idle it changes nothing. Any
    process may choose this for itself; one that was given another policy than the usual keeps that.
    """
    with contextlib.suppress(OSError):  # a sandbox may refuse it, and then it is as it was
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
