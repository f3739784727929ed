"""Opening: sealed bytes out of shared memory, checked, and onwards as plaintext.

:mod:`smpd.opening.ranges` does it, for threads of smpd and for processes of this room's own
(``python -m smpd.opening FD``). A small object takes the interpreter lock for most of its time, so several are opened
at once only by several processes. Such a process has the box's decryption keys and no other: it cannot sign, and it has
no network, no file, no job and no audit log. This room imports nothing of the daemon but the rings and the walls.
"""
