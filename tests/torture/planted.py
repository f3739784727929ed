"""Starts smpd, or one of its workers, with faults planted into it: ``python -m torture.planted FAULTS -- ARGUMENTS``.

A fault is named ``module:function``, or ``module:function=text`` for one that takes a text; calling the function plants it.
An experiment says which with :func:`planting`; every :class:`box.Box` that is started inside starts its daemon so. The
daemon's workers are started the same way, with the same faults: a fault tells by :data:`ROLE` where it is.
"""

import contextlib
import importlib
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import box

ROLE = "smpd"
WORKERS = ("smpd.fetch", "smpd.compute", "smpd.opening")  # what else it may be
TESTS = str(Path(__file__).resolve().parents[1])


@contextlib.contextmanager
def planting(*faults: str) -> Iterator[None]:
    """For a block, every daemon that is started has these faults, beside those that hold already."""
    before = box.LAUNCH
    already = before[2:-1] if before[1] == "torture.planted" else []
    box.LAUNCH = ["-m", "torture.planted", *already, *faults, "--"]
    try:
        yield
    finally:
        box.LAUNCH = before


def plant(faults: Sequence[str]) -> None:
    """Put them into this process."""
    for fault in faults:
        place, _, text = fault.partition("=")
        module, _, name = place.partition(":")
        function = getattr(importlib.import_module(module), name)
        if text:
            function(text)
        else:
            function()


def _workers_too(faults: Sequence[str]) -> None:
    """Have the daemon start its workers through this module."""
    from smpd.transfer import workers

    open_process = workers.anyio.open_process

    async def planted(command: list[str], **options: Any) -> Any:
        python, isolated, m, module, fd = command
        options["env"]["PYTHONPATH"] = os.pathsep.join([TESTS, options["env"].get("PYTHONPATH", "")]).rstrip(os.pathsep)
        return await open_process([python, isolated, m, "torture.planted", *faults, "--", module, fd], **options)

    workers.anyio.open_process = planted  # type: ignore[assignment]


def main() -> None:
    """Plant, and become what the arguments say."""
    global ROLE  # noqa: PLW0603 - each process has one
    at = sys.argv.index("--")
    faults, arguments = sys.argv[1:at], sys.argv[at + 1 :]
    if arguments and arguments[0] in WORKERS:
        ROLE = arguments.pop(0)
    sys.modules["torture.planted"] = sys.modules[__name__]
    if ROLE == "smpd":
        _workers_too(faults)
    plant(faults)
    sys.argv = [ROLE, *arguments]
    runpy.run_module(ROLE, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
