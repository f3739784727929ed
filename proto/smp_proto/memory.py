"""Overwriting secrets in memory, in immutable objects too. Knows nothing of keys, so that any room may use it."""

import ctypes
import os
import resource
import sys

# In the environment of a process that handles plaintext or keys (ld.so(8)). A symbol that is bound when it is first
# called has glibc save the vector registers on the stack (_dl_runtime_resolve_xsavec), and they hold what was copied
# last: up to some hundred bytes, which stay on the stack of a thread for as long as it lives.
BIND_NOW = "LD_BIND_NOW"
_PR_SET_DUMPABLE = 4
_STATE_OFFSET = 4 * ctypes.sizeof(ctypes.c_void_p)  # of a text: reference count, type, length and hash come before
_CPYTHON = sys.implementation.name == "cpython"  # other interpreters may move or share objects
# With the interpreter lock held: to let go of it, as ctypes.memset does, takes longer than to overwrite a message, and
# where other threads want it, far longer.
memset = ctypes.PyDLL(None).memset
memset.argtypes, memset.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), None


def forbid_dumps() -> None:
    """Let this process leave no core, and nobody of the same user trace it or read its memory.

    By RLIMIT_CORE and by PR_SET_DUMPABLE, prctl(2).

    Raises:
        OSError: the kernel refuses.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def wipe(secret: bytearray) -> None:
    """Overwrite in place."""
    secret[:] = bytes(len(secret))


def take(secret: bytes) -> bytearray:
    """Move a secret out of an immutable object and overwrite that object.

    HPKE, SHAKE and the system's randomness return ``bytes``, which Python would free with the secret still in
    it. The caller must hold the only reference.
    """
    taken = bytearray(secret)
    wipe_bytes(secret)
    return taken


def wipe_bytes(secret: bytes) -> None:
    """Overwrite an immutable object that nobody uses any more."""
    if len(secret) > 1 and _CPYTHON:  # one-byte objects are shared by the whole interpreter
        memset(ctypes.c_char_p(secret), 0, len(secret))


def wipe_text(secret: str) -> None:
    """The same for text, if it is ASCII, as secrets of remotes are: its characters follow its head (PEP 393).

    The caller must hold the only reference. What the interpreter shares of itself, as it does constants and names that
    look like one, is left as it is: overwriting it would change the program.
    """
    if len(secret) > 1 and secret.isascii() and _CPYTHON and not _interned(secret):
        memset(id(secret) + sys.getsizeof("") - 1, 0, len(secret))


def _interned(text: str) -> bool:
    """Whether the interpreter shares this object: the first bits of its state, behind length and hash (PEP 393)."""
    return bool(ctypes.c_uint16.from_address(id(text) + _STATE_OFFSET).value & 0b11)
