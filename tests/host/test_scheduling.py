"""Whom a thread that works in bulk preempts; in real threads."""

import os
import threading

import pytest

from smpd.host.scheduling import work_in_bulk


def in_a_thread(act) -> list[int]:
    """What ``act`` returns in a thread of its own; its policy is its own, too."""
    found: list[int] = []

    def run() -> None:
        found.extend(act())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found


def policy() -> list[int]:
    return [os.sched_getscheduler(0)]


def test_it_is_this_thread_and_those_it_starts():
    """Not those that were there before, nor the one that started it."""

    def act() -> list[int]:
        work_in_bulk()
        work_in_bulk()
        return policy() + in_a_thread(policy)

    before = policy()
    assert in_a_thread(act) == [os.SCHED_BATCH] * 2
    assert policy() == before


def test_another_policy_is_kept():
    """Whoever starts the service may have chosen one."""

    def act() -> list[int]:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        work_in_bulk()
        return policy()

    assert in_a_thread(act) == [os.SCHED_IDLE]


def test_where_it_is_refused_all_is_as_it_was(monkeypatch: pytest.MonkeyPatch):
    """It is no reason not to work."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    before = policy()

    def act() -> list[int]:
        work_in_bulk()
        return policy()

    assert in_a_thread(act) == before
