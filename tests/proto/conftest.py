"""Every test of this room leaves no descriptor open."""

import gc
from collections.abc import Collection, Iterator

import pytest
from descriptors import descriptors


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    """Each test here ends with as many open descriptors as it began with (a new event loop's come and go in both)."""
    before = descriptors().keys()
    yield
    if leaked(before):
        gc.collect()  # which takes a tenth of a second, so only where there is a reason
    assert not leaked(before)


def leaked(before: Collection[str]) -> dict[str, str]:
    """What is open and was not before."""
    return {fd: link for fd, link in descriptors().items() if fd not in before and "eventpoll" not in link}
