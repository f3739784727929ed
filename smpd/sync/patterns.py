"""Patterns of paths: ``*`` and ``?`` stay within a step, ``**`` crosses steps, ``**/`` may stand for nothing.

Whoever may add a sync writes them, and whoever may write to its source names the paths. So how long a match takes must
not depend on either: all states that a pattern may be in are the bits of one number, which each character moves.
"""

import re
from collections.abc import Callable

from smp_proto.errors import UsageError

_PATTERN_MAX = 1024
_QUICK = 2  # stars that a regular expression may have: more of them try too many ways
_PARTS = re.compile(r"(\*\*/|\*\*|\*|\?)")


def pattern(text: str) -> Callable[[str], bool]:
    """Whether a path is one of a pattern's.

    Raises:
        UsageError: ``bad_request``; it is empty or too long.
    """
    if not 0 < len(text) <= _PATTERN_MAX:
        raise UsageError("bad_request", "a pattern has 1 to 1024 characters", hint="for example: --include '**/*.smp'")
    parts = [part for part in _PARTS.split(text) if part]
    if sum(part[0] == "*" for part in parts) > _QUICK:
        return _States(parts).match
    found = re.compile("".join(map(_expression, parts)), re.DOTALL)
    return lambda path: found.fullmatch(path) is not None


def _expression(part: str) -> str:
    if part[0] == "*":
        return "(?:.*/)?" if part == "**/" else ".*" if len(part) > 1 else "[^/]*"
    return "[^/]" if part == "?" else re.escape(part)


class _States:
    """The places of a pattern that a path may have come to, after each of its characters: bit ``n`` is place ``n``."""

    def __init__(self, parts: list[str]) -> None:
        self._by: dict[str, int] = {}  # the places that a character leads on from, to the next
        self._any = 0  # from which every character but the slash does
        self._stays = 0  # where every character leads to the same place
        self._stays_within = 0  # every one but the slash
        self._skips = 0  # from which nothing has to come to be at the next
        self._folders = 0  # behind which is the place within "**/", and then what comes after it
        place = 0
        for part in parts:
            bit = 1 << place
            if part == "**/":
                self._folders |= bit
                self._stays |= bit << 1
                self._by["/"] = self._by.get("/", 0) | bit << 1
                place += 2
            elif part[0] == "*":
                self._skips |= bit
                if len(part) > 1:
                    self._stays |= bit
                else:
                    self._stays_within |= bit
                place += 1
            elif part == "?":
                self._any |= bit
                place += 1
            else:
                for character in part:
                    self._by[character] = self._by.get(character, 0) | 1 << place
                    place += 1
        self._end = 1 << place

    def match(self, path: str) -> bool:
        """Whether the whole path is one of the pattern's."""
        at = self._rest(1)
        for character in path:
            moved = (at & self._by.get(character, 0)) << 1 | at & self._stays
            if character != "/":
                moved |= (at & self._any) << 1 | at & self._stays_within
            at = self._rest(moved)
            if not at:
                return False
        return bool(at & self._end)

    def _rest(self, at: int) -> int:
        """With all places that nothing has to come for."""
        while True:
            more = at | (at & self._skips) << 1 | (at & self._folders) << 1 | (at & self._folders) << 2
            if more == at:
                return at
            at = more
