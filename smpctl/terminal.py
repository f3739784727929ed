"""Secrets typed on the terminal: no echo, and straight into memory that can be wiped."""

import os
import termios

from smp_proto.errors import UsageError
from smp_proto.memory import forbid_dumps, wipe

LENGTH_MAX = 4096  # what a terminal holds of one line


def ask(prompt: str, *, otherwise: str) -> bytearray:
    """A line typed on the controlling terminal, without its end.

    Args:
        prompt: shown before it.
        otherwise: what to do where there is no terminal.

    Raises:
        UsageError: ``bad_request``; there is no terminal, or nothing was typed.
    """
    forbid_dumps()
    try:
        fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        raise UsageError("bad_request", f"there is no terminal to ask for: {prompt}", hint=otherwise) from None
    try:
        before = termios.tcgetattr(fd)
        silent = termios.tcgetattr(fd)
        silent[3] &= ~termios.ECHO
        try:
            termios.tcsetattr(fd, termios.TCSAFLUSH, silent)
            os.write(fd, f"{prompt}: ".encode())
            typed = bytearray(LENGTH_MAX)
            count = os.readv(fd, [typed])
        finally:
            termios.tcsetattr(fd, termios.TCSAFLUSH, before)
            os.write(fd, b"\n")
    finally:
        os.close(fd)
    line = strip_line(typed, count)
    if not line:
        raise UsageError("bad_request", "nothing was typed", hint=otherwise)
    return line


def ask_twice(prompt: str, *, otherwise: str) -> bytearray:
    """A new secret, typed two times alike.

    Raises:
        UsageError: ``bad_request``, also when they differ.
    """
    first = ask(prompt, otherwise=otherwise)
    second = ask(f"{prompt}, again", otherwise=otherwise)
    same = first == second
    wipe(second)
    if not same:
        wipe(first)
        raise UsageError("bad_request", "the two differ", hint="try again")
    return first


def strip_line(data: bytearray, size: int) -> bytearray:
    """The first line of a buffer, whose content is wiped."""
    with memoryview(data)[:size] as view:
        end = next((i for i, byte in enumerate(view) if byte in b"\r\n"), size)
        line = bytearray(view[:end])
    wipe(data)
    return line
