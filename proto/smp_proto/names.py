"""Names of files: which ones file systems take for the same, and what a terminal or a log would obey in one."""

import unicodedata

# Control characters, lone surrogates, line and paragraph separators.
_CONTROLS = frozenset({"Cc", "Cs", "Zl", "Zp"})


def has_controls(text: str) -> bool:
    """Whether there is a control character, half a surrogate pair or a separator of lines in it."""
    return not text.isprintable() and any(unicodedata.category(char) in _CONTROLS for char in text)


def folded(name: str) -> str:
    """A name as it is compared where case and Unicode normal form do not count."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
