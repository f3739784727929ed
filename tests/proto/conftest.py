"""Every test of this room leaves no descriptor open."""

import contextlib
import gc
import os

import pytest


@pytest.fixture(autouse=True)
def no_descriptor_leaks():
    """Each test here ends with as many open descriptors as it began with (a new event loop's come and go in both)."""
    gc.collect()
    before = {fd for fd in os.listdir("/proc/self/fd") if link_of(fd)}
    yield
    gc.collect()
    after = {fd: link_of(fd) for fd in os.listdir("/proc/self/fd") if link_of(fd)}
    leaked = {fd: link for fd, link in after.items() if fd not in before and "eventpoll" not in link}
    assert not leaked


def link_of(fd: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}")
    return ""
