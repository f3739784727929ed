"""What holds for every async test: nothing of ours blocks its event loop, and it leaves no task and no descriptor.

And a database and a seal, for whatever keeps something in them.
"""

import asyncio
import contextlib
import functools
import gc
import inspect
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from blockbuster import BlockBuster, BlockBusterFunction
from descriptors import descriptors

from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal

hypothesis.settings.register_profile("smp", deadline=None)  # nothing here is about how long an example takes
hypothesis.settings.load_profile("smp")
TESTS = str(Path(__file__).parent)
OURS = ["smpd", "smp_proto", "smpctl"]
# Calls on files that blockbuster does not look at by itself.
FILE_CALLS = ("open", "fsync", "fdatasync", "posix_fallocate", "ftruncate", "pread", "preadv", "pwrite")
# (file, function) where an event loop may wait, each with its reason.
EXCEPTIONS = [
    # Without the daemon's own set-up of the log, structlog prints tracebacks with the lines of the source.
    ("structlog/_base.py", "_process_event"),
    # What the kernel says of a process comes from no disk.
    ("smpd/host/memory.py", "_status"),
    # asyncio forks in the event loop: milliseconds, once for each worker process.
    ("asyncio/unix_events.py", "_start"),
    # A fetch process imports its one library when it is told which, and botocore reads its tables of services
    # at the first request. That process has nothing else to do yet.
    ("smpd/fetch/service.py", "make_remote"),
    ("smpd/fetch/bucket.py", "_client"),
]


def pytest_configure() -> None:
    """What the programs that the suite starts would else inherit, wherever it is started."""
    # A suite started in the background has SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # As in the Makefile: without byte code each process compiles what it imports, and each worker all tests.
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_finish() -> None:
    """What was imported stays, and need not be looked through again and again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Watch every async test."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = _watched(item.obj)


def _watched(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def watched(*arguments: Any, **options: Any) -> None:
        tasks = asyncio.all_tasks()
        with _blocking_calls_fail():
            await test(*arguments, **options)
        left = [task for task in asyncio.all_tasks() - tasks if not task.done()]
        assert not left, f"tasks are left: {left}"

    return watched


@pytest.fixture(autouse=True)
def no_descriptor_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """An async test and its own fixtures close what they open; where tests share a process this is overridden."""
    if not inspect.iscoroutinefunction(inspect.unwrap(getattr(request, "function", None) or len)):
        yield
        return
    before = descriptors()
    yield
    if descriptors().keys() - before.keys():
        gc.collect()
    # An event loop comes and goes on its own; a pipe leads to a server that the tests of a module share.
    new = {fd: link for fd, link in descriptors().items() if fd not in before}
    leaked = {fd: link for fd, link in new.items() if not re.search("eventpoll|eventfd|pipe:", link)}
    assert not leaked, f"descriptors are left open: {leaked}"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """A new database."""
    db = Database(str(tmp_path / "smp.db"))
    yield db
    db.close()


@pytest.fixture
def seal() -> StateSeal:
    """A seal with a fixed key."""
    return StateSeal(bytearray(range(32)))


@contextlib.contextmanager
def _blocking_calls_fail() -> Iterator[None]:
    """A blocking call of ours in an event loop raises BlockingError."""
    watch = BlockBuster(OURS)
    for name in FILE_CALLS:
        watch.functions[f"os.{name}"] = BlockBusterFunction(None, f"os.{name}", scanned_modules=OURS)
    for function in watch.functions.values():
        function.can_block_predicate = _or_of_a_test(function.can_block_predicate)
        for file, where in EXCEPTIONS:
            function.can_block_in(file, where)
    watch.activate()
    try:
        yield
    finally:
        watch.deactivate()


def _or_of_a_test(allowed: Callable[..., bool]) -> Callable[..., bool]:
    """Also let a test itself block: nobody but it waits for its event loop."""

    def predicate(*arguments: Any, **options: Any) -> bool:
        if allowed(*arguments, **options):
            return True
        frame = sys._getframe(2)
        while frame is not None:  # out to the innermost coroutine
            if frame.f_code.co_filename.startswith(TESTS):
                return True
            if frame.f_code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
                return False
            frame = frame.f_back
        return False

    return predicate
