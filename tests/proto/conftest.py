"""Every test of this room leaves no descriptor open."""

import contextlib
import gc
import os
from collections.abc import Collection, Iterator

import pytest


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    """Each test here ends with as many open descriptors as it began with (a new event loop's come and go in both)."""
    before = _descriptors().keys()
    yield
    if leaked(before):
        gc.collect()  # which takes a tenth of a second, so only where there is a reason
    assert not leaked(before)


def leaked(before: Collection[str]) -> dict[str, str]:
    """What is open and was not before."""
    return {fd: link for fd, link in _descriptors().items() if fd not in before and "eventpoll" not in link}


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found
